# SPDX-License-Identifier: Apache-2.0
"""A pipeline whose datamanager knows the model's depth network, and that misses weights early.

Initial points are made before the model is, and where correspondences give none they stand at the
depth that the network sees (initialisation chain of IPSM, arXiv 2412.02225).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanagerConfig
from ps4pro_nerfstudio.diffusion.weights import check_score_weights
from ps4pro_nerfstudio.models.ipsm import IPSMModelConfig


@dataclass
class IPSMPipelineConfig(VanillaPipelineConfig):
    """Datamanager and model of ipsm-gaussian."""

    _target: type = field(default_factory=lambda: IPSMPipeline)
    datamanager: UnseenViewDatamanagerConfig = field(default_factory=UnseenViewDatamanagerConfig)
    """Photographs, pseudo views, known depths and unseen cameras."""
    model: IPSMModelConfig = field(default_factory=IPSMModelConfig)
    """The splats and their losses."""


class IPSMPipeline(VanillaPipeline):
    """See the module's docstring."""

    config: IPSMPipelineConfig

    def __init__(
        self,
        config: IPSMPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        if test_mode == "val":
            # Before photographs are matched for minutes.
            check_score_weights(config.model.diffusion, config.model.score)
        config.datamanager.depth = config.model.depth
        config.datamanager.depth_network = config.model.depth_network
        super().__init__(config, device, test_mode, **kwargs)

# SPDX-License-Identifier: Apache-2.0
"""A pipeline whose datamanager knows the model's depth network.

Initial points are made before the model is, and where correspondences give none they stand at the
depth that the network sees (initialisation chain of IPSM, arXiv 2412.02225).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanagerConfig
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

    def __init__(self, config: IPSMPipelineConfig, *args: Any, **kwargs: Any) -> None:
        config.datamanager.depth = config.model.depth
        config.datamanager.depth_network = config.model.depth_network
        super().__init__(config, *args, **kwargs)

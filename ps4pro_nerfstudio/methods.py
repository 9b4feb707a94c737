# SPDX-License-Identifier: Apache-2.0
"""Every method that `ns-train` lists.

Each ns-* command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanagerConfig
from ps4pro_nerfstudio.engine.checkpoints import allow_numpy_scalars
from ps4pro_nerfstudio.engine.optimizers import FusedAdamOptimizerConfig
from ps4pro_nerfstudio.engine.programs import provide_ffmpeg
from ps4pro_nerfstudio.engine.schedulers import FloatExponentialDecaySchedulerConfig
from ps4pro_nerfstudio.engine.trainer import PS4PROTrainerConfig
from ps4pro_nerfstudio.models.splatfacto import PS4PROSplatfactoModelConfig

# Every ns-* command imports its plugins: from here on older checkpoints load, and ns-render finds
# ffmpeg, whatever the method.
allow_numpy_scalars()
provide_ffmpeg()


def _adam(lr: float, lr_final: float | None = None, warmup_steps: int = 0) -> dict:
    scheduler = None
    if lr_final is not None:
        scheduler = FloatExponentialDecaySchedulerConfig(
            lr_final=lr_final, warmup_steps=warmup_steps, lr_pre_warmup=0.0
        )
    return {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": scheduler}


def _splat_optimizers() -> dict:
    """Splatfacto's rates; the decays span the run."""
    return {
        "means": _adam(1.6e-4, lr_final=1.6e-6),
        "features_dc": _adam(0.0025),
        "features_rest": _adam(0.0025 / 20),
        "opacities": _adam(0.05),
        "scales": _adam(0.005),
        "quats": _adam(0.001),
        "camera_opt": _adam(1e-4, lr_final=5e-7, warmup_steps=1000),
        "bilateral_grid": _adam(2e-3, lr_final=1e-4, warmup_steps=1000),
    }


ps4pro_splatfacto = MethodSpecification(
    config=PS4PROTrainerConfig(
        method_name="ps4pro-splatfacto",
        max_num_iterations=7000,
        steps_per_save=1000,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=3500,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=PseudoViewDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
            ),
            model=PS4PROSplatfactoModelConfig(),
        ),
        optimizers=_splat_optimizers(),
        # Loopback: who wants the viewer on the network says so (--viewer.websocket-host 0.0.0.0).
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        # The viewer alone would switch evaluation off.
        vis="viewer+tensorboard",
    ),
    description="Splatfacto with pseudo views for sparse captures; trains on GPU and CPU.",
)

# SPDX-License-Identifier: Apache-2.0
"""Every method that `ns-train` lists.

Each ns-* command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from ps4pro_nerfstudio.datamanagers.pseudo_ray_datamanager import PseudoRayDatamanagerConfig
from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanagerConfig
from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanagerConfig
from ps4pro_nerfstudio.engine.checkpoints import allow_numpy_scalars
from ps4pro_nerfstudio.engine.ipsm_pipeline import IPSMPipelineConfig
from ps4pro_nerfstudio.engine.optimizers import FusedAdamOptimizerConfig
from ps4pro_nerfstudio.engine.programs import provide_ffmpeg
from ps4pro_nerfstudio.engine.schedulers import FloatExponentialDecaySchedulerConfig
from ps4pro_nerfstudio.engine.trainer import PS4PROTrainerConfig
from ps4pro_nerfstudio.models.ipsm import IPSMModelConfig
from ps4pro_nerfstudio.models.ipsm_schedule import IPSMScheduleConfig
from ps4pro_nerfstudio.models.nerfacto import PS4PRONerfactoModelConfig
from ps4pro_nerfstudio.models.splatfacto import PS4PROSplatfactoModelConfig
from ps4pro_nerfstudio.pseudo_views.perturbed import PerturbedCamerasConfig

# Every ns-* command imports its plugins: from here on older checkpoints load, and ns-render finds
# ffmpeg, whatever the method.
allow_numpy_scalars()
provide_ffmpeg()


def _adam(
    lr: float, lr_final: float | None = None, warmup_steps: int = 0, max_steps: int = 0
) -> dict:
    scheduler = None
    if lr_final is not None:
        scheduler = FloatExponentialDecaySchedulerConfig(
            lr_final=lr_final, warmup_steps=warmup_steps, lr_pre_warmup=0.0, max_steps=max_steps
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


def _splatfacto(
    name: str,
    num_steps: int,
    steps_per_save: int,
    steps_per_eval_all_images: int,
    model: PS4PROSplatfactoModelConfig | None = None,
    pipeline: VanillaPipelineConfig | None = None,
) -> PS4PROTrainerConfig:
    return PS4PROTrainerConfig(
        method_name=name,
        max_num_iterations=num_steps,
        steps_per_save=steps_per_save,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=steps_per_eval_all_images,
        mixed_precision=False,
        pipeline=pipeline
        or VanillaPipelineConfig(
            datamanager=PseudoViewDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
            ),
            model=model or PS4PROSplatfactoModelConfig(),
        ),
        optimizers=_splat_optimizers(),
        # Loopback: who wants the viewer on the network says so (--viewer.websocket-host 0.0.0.0).
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        # The viewer alone would switch evaluation off.
        vis="viewer+tensorboard",
    )


ps4pro_splatfacto = MethodSpecification(
    config=_splatfacto(
        "ps4pro-splatfacto",
        num_steps=7000,
        steps_per_save=1000,
        steps_per_eval_all_images=3500,
    ),
    description="Splatfacto with pseudo views for sparse captures; trains on GPU and CPU.",
)

ps4pro_splatfacto_big = MethodSpecification(
    config=_splatfacto(
        "ps4pro-splatfacto-big",
        num_steps=30_000,
        steps_per_save=2000,
        steps_per_eval_all_images=10_000,
        # Splatfacto-big's thresholds: faint Gaussians stay and more of them are split.
        model=PS4PROSplatfactoModelConfig(cull_alpha_thresh=0.005, densify_grad_thresh=0.0005),
    ),
    description="ps4pro-splatfacto with more Gaussians and a longer training.",
)

ps4pro_nerfacto = MethodSpecification(
    config=PS4PROTrainerConfig(
        method_name="ps4pro-nerfacto",
        max_num_iterations=30_000,
        steps_per_save=2000,
        steps_per_eval_batch=500,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=PseudoRayDatamanagerConfig(
                # The points help to align pseudo views; the field starts without them.
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
            ),
            model=PS4PRONerfactoModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
            ),
        ),
        # Nerfacto's rates.
        optimizers={
            "proposal_networks": _adam(1e-2, lr_final=1e-4, max_steps=200_000),
            "fields": _adam(1e-2, lr_final=1e-4, max_steps=200_000),
            "camera_opt": _adam(1e-3, lr_final=1e-4, max_steps=5000),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        vis="viewer+tensorboard",
    ),
    description="Nerfacto with pseudo views for sparse captures; for a GPU.",
)

ps4pro_nerfacto_small = MethodSpecification(
    config=PS4PROTrainerConfig(
        method_name="ps4pro-nerfacto-small",
        max_num_iterations=3000,
        steps_per_save=1000,
        steps_per_eval_batch=500,
        # Rendering one picture of 270x480 costs as much as some 100 steps.
        steps_per_eval_image=1000,
        steps_per_eval_all_images=30_000,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=PseudoRayDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
            ),
            model=PS4PRONerfactoModelConfig(
                implementation="torch",
                eval_num_rays_per_chunk=1 << 12,
                average_init_density=0.01,
                hidden_dim=32,
                hidden_dim_color=32,
                # Few levels of wide features: hashing costs the same whatever the width.
                num_levels=8,
                features_per_level=4,
                max_res=1024,
                log2_hashmap_size=15,
                num_proposal_iterations=1,
                num_proposal_samples_per_ray=(48,),
                num_nerf_samples_per_ray=24,
                proposal_net_args_list=[
                    {
                        "hidden_dim": 16,
                        "log2_hashmap_size": 14,
                        "num_levels": 4,
                        "max_res": 128,
                        "use_linear": False,
                    }
                ],
                # Nerfacto's are 1,000 and 5,000 of 30,000 steps.
                proposal_weights_anneal_max_num_iters=300,
                proposal_warmup=500,
                appearance_embed_dim=8,
                # Too short a run to find poses better than those it is given.
                camera_optimizer=CameraOptimizerConfig(mode="off"),
            ),
        ),
        # Nerfacto's first rate; the decays span the run.
        optimizers={
            "proposal_networks": _adam(1e-2, lr_final=1e-3),
            "fields": _adam(1e-2, lr_final=1e-3),
            "camera_opt": _adam(1e-3, lr_final=1e-4),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12, websocket_host="127.0.0.1"),
        vis="viewer+tensorboard",
    ),
    description="ps4pro-nerfacto with a field small enough for a CPU.",
)


def _ipsm(name: str, model: IPSMModelConfig, unseen: PerturbedCamerasConfig) -> PS4PROTrainerConfig:
    return _splatfacto(
        name,
        num_steps=10_000,
        steps_per_save=1000,
        steps_per_eval_all_images=5000,
        pipeline=IPSMPipelineConfig(
            datamanager=UnseenViewDatamanagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True), unseen=unseen
            ),
            model=model,
        ),
    )


ipsm_gaussian = MethodSpecification(
    config=_ipsm(
        "ipsm-gaussian", IPSMModelConfig(), PerturbedCamerasConfig(frame="llff", gap_share=0.3)
    ),
    description="Splats from 3 to 9 photographs with depth, geometry and a diffusion prior (IPSM).",
)

ipsm_gaussian_dtu = MethodSpecification(
    config=_ipsm(
        "ipsm-gaussian-dtu",
        IPSMModelConfig(
            ssim_lambda=0.6,
            seen_depth_weight=0.005,
            # As much more than a network's as for LLFF; the paper has no triangulated depth.
            triangulated_depth_weight=0.025,
            unseen_depth_weight=0.05,
            geo_weight=0.2,
            background_prior=True,
            metrics_on_white=True,
            background_color="black",
            drop_rate=0.0,
            # What `densification released` takes; as for LLFF, splatfacto's has no resets.
            reset_opacity=0.05,
            schedule=IPSMScheduleConfig(reset_at=tuple(range(2001, 10_000, 1000))),
        ),
        PerturbedCamerasConfig(frame="dtu"),
    ),
    description="ipsm-gaussian for cameras around an object before black or white cloth (DTU).",
)

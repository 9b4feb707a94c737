# SPDX-License-Identifier: Apache-2.0
"""Demo scene, diagnosis, summaries and benchmarks beside nerfstudio's own commands."""

# Each subcommand is a dataclass with a `run` method, defined beside the code that it starts; those
# modules import what is heavy when they run.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import subcommand

from ps4pro_nerfstudio.benchmark.interpolators import InterpolatorsBenchmark
from ps4pro_nerfstudio.benchmark.ipsm import IPSMBenchmark
from ps4pro_nerfstudio.benchmark.ipsm_step import IPSMStepBenchmark
from ps4pro_nerfstudio.benchmark.pseudo_views import PseudoViewsBenchmark
from ps4pro_nerfstudio.benchmark.rasterizer import RasterizerBenchmark
from ps4pro_nerfstudio.benchmark.scenes.command import ScenesBenchmark
from ps4pro_nerfstudio.benchmark.startup import StartupBenchmark
from ps4pro_nerfstudio.benchmark.summary import Summary
from ps4pro_nerfstudio.commands.augment import Augment
from ps4pro_nerfstudio.commands.fetch_weights import FetchWeights
from ps4pro_nerfstudio.commands.points import Points
from ps4pro_nerfstudio.demo import DemoScene
from ps4pro_nerfstudio.interpolation.video import Interpolate
from ps4pro_nerfstudio.messages import InputError, MissingPartError, fail, say
from ps4pro_nerfstudio.training.evaluation import EvalInterpolator
from ps4pro_nerfstudio.training.trainer import TrainInterpolator


@dataclass
class Doctor:
    """Say what this machine has, what is missing, and how to get it."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print the report."""
        from ps4pro_nerfstudio.doctor import print_report

        print_report(as_json=self.json)


@dataclass(kw_only=True)
class MakeDemoScene(DemoScene):
    """Generate a photo-textured room as a nerfstudio capture, with exact depth kept apart."""

    output: tyro.conf.Positional[Path]
    """Folder to write."""

    def run(self) -> None:
        """Write the scene and say how to train on it."""
        self.write(self.output)
        say(f"wrote {self.output}; train with: ns-train ps4pro-splatfacto --data {self.output}")


@dataclass
class Bench:
    """Measure speed and memory; each benchmark prints a table and writes JSON."""

    benchmark: (
        Annotated[RasterizerBenchmark, subcommand("rasterizer", prefix_name=False)]
        | Annotated[StartupBenchmark, subcommand("startup", prefix_name=False)]
        | Annotated[InterpolatorsBenchmark, subcommand("interpolators", prefix_name=False)]
        | Annotated[PseudoViewsBenchmark, subcommand("pseudo-views", prefix_name=False)]
        | Annotated[ScenesBenchmark, subcommand("scenes", prefix_name=False)]
        | Annotated[IPSMBenchmark, subcommand("ipsm", prefix_name=False)]
        | Annotated[IPSMStepBenchmark, subcommand("ipsm-step", prefix_name=False)]
    )
    """What to measure."""

    def run(self) -> None:
        """Run the chosen benchmark."""
        self.benchmark.run()


Command = (
    Annotated[Doctor, subcommand("doctor")]
    | Annotated[MakeDemoScene, subcommand("demo-scene")]
    | Annotated[Summary, subcommand("summary")]
    | Annotated[Interpolate, subcommand("interpolate")]
    | Annotated[Augment, subcommand("augment")]
    | Annotated[Points, subcommand("points")]
    | Annotated[FetchWeights, subcommand("fetch-weights")]
    | Annotated[TrainInterpolator, subcommand("train-interpolator")]
    | Annotated[EvalInterpolator, subcommand("eval-interpolator")]
    | Annotated[Bench, subcommand("bench"), tyro.conf.OmitArgPrefixes]
)


def entrypoint() -> None:
    """Run the subcommand; what the user must change is one line and exit code 1."""
    command = tyro.cli(Command, prog="ps4pro", description=__doc__)
    try:
        command.run()
    except (InputError, MissingPartError) as error:
        fail(str(error))

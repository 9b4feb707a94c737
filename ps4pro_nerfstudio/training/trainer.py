# SPDX-License-Identifier: Apache-2.0
"""`ps4pro train-interpolator`: trains the network on the stream of `stream`.

One loop for one CPU, one GPU, or several through accelerate where it is installed. The state that a
resumed run needs (weights, optimiser, average, step) is one file of tensors; the data of a step and
the learning rate are functions of the step, so a run that was killed goes on exactly as it would
have. Averaged weights (EMA) are what is validated and saved for use.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.losses import LossWeights, total_loss
from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.network_config import PRESETS
from ps4pro_nerfstudio.messages import InputError, say
from ps4pro_nerfstudio.metrics.lpips import perceptual_distance
from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Batch
from ps4pro_nerfstudio.training.stream import KINDS, SampleStream, StreamConfig

_VALIDATION_SEED_OFFSET = 1000


@dataclass
class TrainInterpolator:
    """Train the interpolation network; kill it at any time and start the same command again."""

    output: Path = Path("interpolator-training")
    """Folder for checkpoints (last, best) and TensorBoard records."""
    preset: Literal["tiny", "small", "base"] = "small"
    """Size of the network."""
    data: StreamConfig = field(default_factory=StreamConfig)
    """What it is trained on."""
    steps: int = 12_000
    """Optimisation steps of the whole run."""
    batch_size: int = 4
    """Crops per step and process."""
    crop: int = 160
    """Side of the crops in pixels; a multiple of 16. Things that move far need large ones."""
    learning_rate: float = 5e-4
    """Peak of the learning rate (AdamW), after the warm-up; it then falls along a cosine."""
    final_rate: float = 0.02
    """Last learning rate as a share of the peak."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights, which are what is saved for use."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses."""
    perceptual_steps: int = 0
    """Steps at the end with the perceptual loss; they need the weights of AlexNet on disk."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the convolutions; flows and warps are always in fp32."""
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves the default."""
    validate_every: int = 500
    """Steps between validations, which also write the checkpoints."""
    validation_pairs: int = 8
    """Pairs of each kind in the validation set (other seed than training)."""
    completion: float = 0.4
    """Weight that all stages but the finest give, before training, to the flow completed from where
    it is trusted; with 0 training starts from the classical result itself, and much lower."""
    init_from: str = ""
    """Start from these weights: a name or a .safetensors file."""
    seed: int = 0
    """Chooses the starting weights."""

    def run(self) -> None:
        """Train until `steps`, from the last checkpoint in `output` if there is one."""
        run = TrainingRun(self)
        run.train()
        say(f"best averaged weights: {run.best_path}")


@dataclass
class _Plain:
    """One process without accelerate: the few members of it that the loop uses."""

    device: torch.device
    is_main_process: bool = True
    process_index: int = 0
    num_processes: int = 1

    def prepare(self, *parts: Any) -> Any:
        return parts

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unwrap_model(self, model: Any) -> Any:
        return model


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
    except ImportError:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _Plain(device)
    return Accelerator()


class _Step(torch.nn.Module):
    """Forward pass and losses in one module, so that distributed wrappers see one call."""

    def __init__(
        self,
        network: PS4PRO,
        weights: LossWeights,
        bf16: bool,
        distance: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.bf16 = bf16
        self.distance = distance

    def forward(self, batch: Batch, perceptual: bool = False) -> dict[str, Tensor]:
        device = batch.frame0.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            estimate = self.network.estimate(batch.frame0, batch.frame1, batch.t, batch.start)
        seen0, seen1, usable = ((batch.flags & bit) > 0 for bit in (SEEN_IN_0, SEEN_IN_1, USABLE))
        return total_loss(
            estimate,
            batch.middle,
            batch.t,
            batch.truth,
            seen0,
            seen1,
            usable,
            self.weights,
            self.distance if perceptual else None,
        )


class TrainingRun:
    """State and loop of one training run."""

    def __init__(self, config: TrainInterpolator) -> None:
        if config.crop % 2 ** len(PRESETS[config.preset].encoder):
            raise InputError(f"--crop must be a multiple of 16, got {config.crop}")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.accelerator = _accelerator()
        torch.manual_seed(config.seed)
        network = (
            PS4PRO.from_pretrained(config.init_from).requires_grad_(True)
            if config.init_from
            else _favour_completion(PS4PRO(config.preset), config.completion)
        )
        network = network.train().to(self.accelerator.device)
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        # Missing weights are noticed now and not after hours.
        distance = (
            perceptual_distance(device=self.accelerator.device) if config.perceptual_steps else None
        )
        step = _Step(network, config.loss, config.precision == "bf16", distance)
        optimizer = torch.optim.AdamW(
            step.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._step, self._optimizer = self.accelerator.prepare(step, optimizer)
        self._stream = SampleStream(config.data)
        self.step = 0
        self.best_psnr = -math.inf
        self.last_path = config.output / "last.pt"
        self.best_path = config.output / f"ps4pro-{config.preset}.safetensors"
        if self.last_path.is_file():
            self._load()

    @property
    def network(self) -> PS4PRO:
        """The network in training."""
        return self.accelerator.unwrap_model(self._step).network

    def averaged(self) -> PS4PRO:
        """A copy with the averaged weights, for use."""
        network = PS4PRO(self.network.config, name=f"ps4pro-{self.config.preset}")
        network.load_state_dict(self.average)
        return network.to(self.accelerator.device).eval()

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        share = config.final_rate + (1.0 - config.final_rate) * 0.5 * (
            1.0 + math.cos(math.pi * min(done, 1.0))
        )
        return config.learning_rate * share

    def train(self, until: int | None = None) -> list[float]:
        """Go on until a step (by default the last one); returns the losses of the steps made."""
        from torch.utils.tensorboard.writer import SummaryWriter

        until = min(until or self.config.steps, self.config.steps)
        main = self.accelerator.is_main_process
        if main:
            self.config.output.mkdir(parents=True, exist_ok=True)
            described = json.dumps(asdict(self.config), default=str, indent=2)
            (self.config.output / "config.json").write_text(described)
        losses = []
        writer = SummaryWriter(str(self.config.output)) if main else None
        with _progress(enabled=main) as progress:
            task = progress.add_task("training", total=self.config.steps, completed=self.step)
            for batch in self._batches(until):
                terms = self._advance(batch)
                losses.append(terms["total"])
                progress.update(task, completed=self.step, description=_describe(terms))
                if writer is not None and self.step % 20 == 0:
                    for name, value in terms.items():
                        writer.add_scalar(f"train/{name}", value, self.step)
                    writer.add_scalar("train/rate", self.learning_rate(self.step), self.step)
                at_end = self.step == until
                if main and (self.step % self.config.validate_every == 0 or at_end):
                    self._validate_and_save(writer)
        if writer is not None:
            writer.close()
        return losses

    def _advance(self, batch: Batch) -> dict[str, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        device = self.accelerator.device
        batch = Batch(**{name: value.to(device) for name, value in vars(batch).items()})
        terms = self._step(batch, self._is_late(self.step))
        self._optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(terms["total"])
        norm = torch.nn.utils.clip_grad_norm_(self._step.parameters(), self.config.gradient_clip)
        # A batch that gives no finite gradient is left out rather than let it end the run.
        if bool(torch.isfinite(norm)):
            self._optimizer.step()
        self.step += 1
        # Early averages forget the start quickly.
        decay = min(self.config.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            current = self.network.state_dict()
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self.average.values()), [current[k] for k in self.average], 1.0 - decay
            )
        return {name: float(value.detach()) for name, value in terms.items()}

    def _is_late(self, step: int) -> bool:
        """Whether a step is one of those with the perceptual loss."""
        return step >= self.config.steps - self.config.perceptual_steps

    def _batches(self, until: int) -> Iterator[Batch]:
        """Batches of the steps to make; the next one is read while this one is worked on."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        config = self.config

        def make(step: int) -> Batch:
            number = step * processes + index
            return self._stream.batch(number, config.batch_size, config.crop)

        with ThreadPoolExecutor(1) as pool:
            waiting: Future[Batch] | None = None
            for step in range(self.step, until):
                batch = waiting.result() if waiting is not None else make(step)
                waiting = pool.submit(make, step + 1) if step + 1 < until else None
                yield batch

    def _validate_and_save(self, writer: Any) -> None:
        figures = self.validate()
        if writer is not None:
            for name, value in figures.items():
                writer.add_scalar(f"validation/{name}", value, self.step)
        gain = figures["gain"]
        line = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        say(f"step {self.step}: {line}")
        with open(self.config.output / "validation.jsonl", "a") as stream:
            stream.write(json.dumps({"step": self.step, "time": time.time(), **figures}) + "\n")
        # With the perceptual loss PSNR no longer tells which weights are best: the last ones are.
        if gain > self.best_psnr or self._is_late(self.step - 1):
            self.best_psnr = gain
            self.averaged().save(self.best_path, step=str(self.step))
        self._save()

    def validate(self) -> dict[str, float]:
        """PSNR by kind of data, dB, and the mean gain over the classical result."""
        stream = self._validation_stream()
        network = self.averaged()
        device = self.accelerator.device
        figures: dict[str, float] = {}
        gains = []
        for kind in KINDS:
            if not stream.has(kind):
                continue
            values, starts = [], []
            for index in range(self.config.validation_pairs):
                sample = stream.sample(kind, index)
                batch = Batch.stack([sample])
                batch = Batch(**{name: value.to(device) for name, value in vars(batch).items()})
                network.train()  # for `classical`; the network has no layers that depend on it
                with torch.no_grad():
                    estimate = network.estimate(batch.frame0, batch.frame1, batch.t, batch.start)
                usable = (batch.flags & USABLE) > 0
                values.append(_psnr(estimate.image, batch.middle, usable))
                starts.append(_psnr(estimate.classical, batch.middle, usable))
            figures[f"{kind} PSNR"] = sum(values) / len(values)
            figures[f"{kind} gain"] = (sum(values) - sum(starts)) / len(values)
            gains.append(figures[f"{kind} gain"])
        figures["gain"] = sum(gains) / len(gains)
        return figures

    def _validation_stream(self) -> SampleStream:
        from dataclasses import replace

        data = self.config.data
        count = self.config.validation_pairs
        return SampleStream(
            replace(
                data,
                seed=data.seed + _VALIDATION_SEED_OFFSET,
                num_rooms=min(data.num_rooms, count),
                num_layered=min(data.num_layered, count),
                num_video=min(data.num_video, count),
            )
        )

    def _save(self) -> None:
        """Write the state atomically."""
        draft = self.last_path.with_suffix(f".{os.getpid()}.part")
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "best_psnr": self.best_psnr,
            "preset": self.config.preset,
        }
        torch.save(state, draft)
        draft.replace(self.last_path)

    def _load(self) -> None:
        try:
            state = torch.load(
                self.last_path, map_location=self.accelerator.device, weights_only=True
            )
        except Exception as error:
            raise InputError(
                f"{self.last_path} cannot be read ({error}): delete it to start anew"
            ) from error
        if state["preset"] != self.config.preset:
            raise InputError(
                f"{self.last_path} belongs to the preset {state['preset']!r}, not "
                f"{self.config.preset!r}: choose another --output"
            )
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step = state["step"]
        self.best_psnr = state["best_psnr"]
        say(f"resuming {self.last_path} at step {self.step}")


def _favour_completion(network: PS4PRO, weight: float) -> PS4PRO:
    with torch.no_grad():
        for stage in list(network.stages)[1:]:
            stage.completion_bias().fill_(weight)  # type: ignore[operator]
    return network


def _psnr(image: Tensor, target: Tensor, usable: Tensor) -> float:
    """PSNR over usable pixels of one image, 8-bit rounded."""
    rounded = (image.clamp(0.0, 1.0) * 255.0).round() / 255.0
    error = ((rounded - target).square() * usable).sum() / (usable.sum() * 3).clamp_min(1)
    return float(-10.0 * torch.log10(error.clamp_min(1e-10)))


def _describe(terms: dict[str, float]) -> str:
    return f"image {terms['image']:.4f} flow {terms['flow']:.2f} mask {terms['mask']:.2f}"


def _progress(enabled: bool) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not enabled,
        refresh_per_second=1,
    )

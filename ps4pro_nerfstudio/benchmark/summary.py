# SPDX-License-Identifier: Apache-2.0
"""What one run reached, as a table and a picture: `ps4pro summary`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from ps4pro_nerfstudio.messages import InputError, say

_CAPTION_PX = 18


@dataclass
class Summary:
    """Show the result of ns-eval: a table, and truth beside render."""

    load_config: Path
    """config.yml of the run."""
    eval_json: Path
    """What ns-eval wrote (--output-path)."""
    eval_images: Path | None = None
    """Folder that ns-eval wrote images to (--render-output-path)."""
    picture: Path | None = None
    """PNG to write, truth beside render."""
    num_pictures: int = 3
    """Views in the picture, spread over the evaluation views."""
    train_seconds: float | None = None
    """Time of training, to be shown in the table."""

    def run(self) -> dict[str, Any]:
        """Print the table, write the picture and return the figures.

        Raises:
            InputError: a file that ns-train or ns-eval should have written is absent.
        """
        figures = self.figures()
        table = Table(title="Views that training never saw", min_width=48)
        table.add_column("")
        table.add_column("", justify="right")
        for name, value in figures.items():
            table.add_row(name, value)
        Console().print(table)
        if self.picture is not None and self.eval_images is not None:
            side_by_side(self.eval_images, self.num_pictures).save(self.picture)
            say(f"truth (left) and render (right): {self.picture}")
        return figures

    def figures(self) -> dict[str, str]:
        """Names and printed values of the table."""
        for path in (self.load_config, self.eval_json):
            if not path.is_file():
                raise InputError(f"{path} does not exist; run ns-train and ns-eval first")
        results = json.loads(self.eval_json.read_text())["results"]
        lpips = results.get("lpips")
        rows = {
            "PSNR": f"{results['psnr']:.2f} dB",
            "SSIM": f"{results['ssim']:.3f}",
            "LPIPS": "absent: no weights, see ps4pro doctor" if lpips is None else f"{lpips:.3f}",
            "Gaussians": f"{_num_gaussians(self.load_config.parent):,}",
        }
        if self.train_seconds is not None:
            rows["training"] = f"{self.train_seconds:.0f} s"
        return rows


def _num_gaussians(run: Path) -> int:
    checkpoints = sorted((run / "nerfstudio_models").glob("step-*.ckpt"))
    if not checkpoints:
        raise InputError(f"{run} holds no checkpoint; run ns-train first")
    state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
    return len(state["pipeline"]["_model.gauss_params.means"])


def side_by_side(folder: Path, num_pictures: int) -> Image.Image:
    """Stack of the images that ns-eval wrote, each truth | render, with a caption.

    Raises:
        InputError: the folder has none.
    """
    paths = sorted(folder.glob("eval_img_*.png"))
    if not paths:
        raise InputError(f"{folder} holds no eval_img_*.png; give ns-eval --render-output-path")
    count = min(num_pictures, len(paths))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    rows = [np.asarray(Image.open(path).convert("RGB")) for path in chosen]
    width = max(row.shape[1] for row in rows)
    height = sum(row.shape[0] for row in rows) + _CAPTION_PX
    sheet: NDArray[np.uint8] = np.full((height, width, 3), 255, np.uint8)
    top = _CAPTION_PX
    for row in rows:
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0]
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    draw.text((4, 3), "photograph that training never saw", fill=(0, 0, 0))
    draw.text((width // 2 + 4, 3), "render", fill=(0, 0, 0))
    return image

# SPDX-License-Identifier: Apache-2.0
"""Sizes of the network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network; lists run from 1/2 to 1/16 of the image size."""

    encoder: tuple[int, ...] = (16, 24, 40, 64)
    """Channels of the features."""
    width: tuple[int, ...] = (32, 56, 96, 128)
    """Channels inside each stage."""
    carried: tuple[int, ...] = (12, 16, 24, 32)
    """Channels that each stage hands on to the next finer one, the finest to the head."""
    num_blocks: tuple[int, ...] = (1, 1, 2, 2)
    """Residual blocks of each stage."""
    reach: tuple[int, ...] = (0, 2, 2, 3)
    """How far each stage looks for a better match, in its pixels; 0: not at all."""
    head: int = 40
    """Channels inside the head."""
    initial_flow: str = "dis"
    """What the network was trained to start from, a name of `make_initializer`."""


PRESETS: dict[str, NetworkConfig] = {
    "tiny": NetworkConfig(
        (12, 16, 24, 32), (24, 32, 48, 64), (8, 12, 16, 24), (1, 1, 1, 1), (0, 2, 2, 3), 32
    ),
    "small": NetworkConfig(),
    "base": NetworkConfig(
        (24, 40, 64, 96), (80, 112, 144, 192), (16, 24, 32, 48), (2, 2, 2, 2), (0, 2, 2, 3), 56
    ),
}

# SPDX-License-Identifier: Apache-2.0
"""Where a hand-held camera goes in a room: the training path, and test views beside it.

Notation: `camera_to_world` is [4, 4] with OpenCV camera axes (x right, y down, z forward); the
world is z up, in metres. A path is a smooth curve of the parameter in [0, 1]; slow sways of the
hand are part of it, and every picture adds a small tremor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.room import Room
from ps4pro_nerfstudio.messages import InputError

CLEARANCE_M = 0.25
"""A camera keeps this distance from everything."""

_ARC_RAD = np.deg2rad(45.0)  # half of the arc that the path follows around the room's focus
_TEST_TURN_RAD = np.deg2rad(1.2)  # more would show much that no training view has seen
_TREMOR_M = 0.012
_TREMOR_RAD = np.deg2rad(0.6)


@dataclass(frozen=True)
class Capture:
    """Poses of all pictures, [N, 4, 4] camera_to_world each."""

    train: NDArray[np.float64]
    test: NDArray[np.float64]


def look_at(
    position: NDArray[np.float64], target: NDArray[np.float64], roll_rad: float = 0.0
) -> NDArray[np.float64]:
    """The camera_to_world [4, 4] of a camera at `position` [3] that looks at `target` [3].

    The picture's upper side is up in the world, then the camera turns by `roll_rad` about its axis.
    """
    forward = target - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll_rad) * right + np.sin(roll_rad) * down
    pose[:3, 1] = np.cos(roll_rad) * down - np.sin(roll_rad) * right
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


@dataclass(frozen=True)
class _Sway:
    """A smooth random function of the path parameter: three slow sines per component."""

    amplitude: NDArray[np.float64]  # [3, components]
    phase: NDArray[np.float64]  # [3, components]

    @classmethod
    def draw(cls, generator: np.random.Generator, size: list[float]) -> _Sway:
        amplitude = generator.uniform(0.3, 1.0, (3, len(size))) * np.array(size)
        amplitude /= np.array([[1.0], [1.5], [2.5]])
        return cls(amplitude, generator.uniform(0.0, 2.0 * np.pi, (3, len(size))))

    def __call__(self, parameter: float) -> NDArray[np.float64]:
        frequency = np.array([[1.0], [2.0], [4.0]])
        angle = 2.0 * np.pi * frequency * parameter + self.phase
        return (self.amplitude * np.sin(angle)).sum(axis=0)


@dataclass(frozen=True)
class _Path:
    focus: NDArray[np.float64]
    radius: float
    height: float
    direction: float  # 1: left to right
    sway: _Sway  # position x, y, z; target x, y, z; roll

    def pose(self, parameter: float) -> NDArray[np.float64]:
        angle = self.direction * _ARC_RAD * (2.0 * parameter - 1.0)
        sway = self.sway(parameter)
        place = np.array(
            [
                self.focus[0] + self.radius * np.sin(angle),
                self.focus[1] - self.radius * np.cos(angle),
                self.height,
            ]
        )
        return look_at(place + sway[:3], self.focus + sway[3:6], float(sway[6]))


def _turned(
    pose: NDArray[np.float64], generator: np.random.Generator, angle_rad: float
) -> NDArray[np.float64]:
    """The camera turned on the spot, by a normal draw about each of its axes."""
    from scipy.spatial.transform import Rotation

    result = pose.copy()
    turn = Rotation.from_rotvec(generator.normal(0.0, angle_rad, 3)).as_matrix()
    result[:3, :3] = pose[:3, :3] @ turn
    return result


def hand_held_capture(
    room: Room, num_train: int, num_test: int, generator: np.random.Generator
) -> Capture:
    """Draw a path through the free front of a room, and test views beside it.

    Test views stand between two neighbouring training views, off the path by 0.5 to 1 times the
    spacing of training views (sideways across the path, up or down; 3 to 25 cm), and are turned by
    a degree or two. No test view stands on the training path.

    Raises:
        InputError: if no free path is found.
    """
    for _ in range(20):
        path = _Path(
            focus=room.focus + generator.uniform(-0.1, 0.1, 3),
            radius=float(generator.uniform(2.25, 2.45)),
            height=float(generator.uniform(1.35, 1.55)),
            direction=float(generator.choice([-1.0, 1.0])),
            sway=_Sway.draw(generator, [0.05, 0.05, 0.10, 0.18, 0.08, 0.10, np.deg2rad(1.5)]),
        )
        capture = Capture(
            train=_train_poses(path, num_train, generator),
            test=_test_poses(path, num_train, num_test, generator),
        )
        centers = np.concatenate([capture.train, capture.test])[:, :3, 3]
        if room.is_free(centers, CLEARANCE_M).all():
            return capture
    raise InputError("no free path for the camera was found in this room: choose another seed")


def _train_poses(
    path: _Path, num_views: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    poses = []
    for parameter in np.linspace(0.0, 1.0, num_views):
        pose = _turned(path.pose(parameter), generator, _TREMOR_RAD)
        pose[:3, 3] += generator.normal(0.0, _TREMOR_M, 3)
        poses.append(pose)
    return np.stack(poses)


def _test_poses(
    path: _Path, num_train: int, num_views: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    gap = 1.0 / (num_train - 1)
    # Spread over the gaps between training views, without the outermost, whose sides few views see.
    first, last = (1, num_train - 3) if num_train >= 5 else (0, num_train - 2)
    gaps = np.linspace(first, last, num_views) if num_views > 1 else [(first + last) / 2.0]
    poses = []
    for place in gaps:
        parameter = (round(place) + generator.uniform(0.35, 0.65)) * gap
        before, after = path.pose(parameter - gap / 2.0), path.pose(parameter + gap / 2.0)
        along = after[:3, 3] - before[:3, 3]
        spacing = float(np.linalg.norm(along))
        along /= spacing
        across = np.cross(along, [0.0, 0.0, 1.0])
        across /= np.linalg.norm(across)
        upward = np.cross(across, along)
        angle = generator.uniform(0.0, 2.0 * np.pi)
        offset = float(np.clip(generator.uniform(0.5, 1.0) * spacing, 0.03, 0.25))
        pose = _turned(path.pose(parameter), generator, _TEST_TURN_RAD)
        pose[:3, 3] += offset * (np.cos(angle) * across + np.sin(angle) * upward)
        poses.append(pose)
    return np.stack(poses)

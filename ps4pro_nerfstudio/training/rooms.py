# SPDX-License-Identifier: Apache-2.0
"""Pairs of views of ray-cast rooms, aligned as the suite aligns its pairs, with exact truth.

A pair is two cameras a known angle apart that move in one of `MOTIONS`, and the camera between them
(slerp and lerp). Both pictures are warped into that camera through a fronto-parallel plane with
`pseudo_views.alignment`; the picture of that camera is the truth. The velocities follow from the
exact depth: pixel x of the middle camera shows the world point X, which camera k sees at p_k, and
the aligned picture at H_k^-1 p_k.

Angles. Yaw: the camera turns in place, and moves as a hand does when it turns (0.35 m arm).
Orbit: around the point that it looks at. Lateral and forward: the angle under which that point
sees the two centres, or would if the motion were sideways.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.capture import CLEARANCE_M, look_at
from ps4pro_nerfstudio.demo.raycasting import Camera, RayCaster, Rendering, render
from ps4pro_nerfstudio.demo.room import Room, build_room
from ps4pro_nerfstudio.demo.textures import TEXTURE_SIZE, TexturePyramids
from ps4pro_nerfstudio.geometry.cameras import interpolate_pose
from ps4pro_nerfstudio.geometry.planes import apply_homography
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.pseudo_views.alignment import Photograph, TargetCamera, align
from ps4pro_nerfstudio.training.photographs import Photographs
from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Sample

MOTIONS = ("yaw", "orbit", "lateral", "forward")
_ARM_M = 0.35
_PLANE_POINTS = 200


@dataclass(frozen=True)
class ViewPair:
    """An aligned pair with the picture between, and what is exact about it."""

    sample: Sample
    depth: NDArray[np.float64]
    """[H, W] depth of the middle camera, metres."""
    motion: str
    angle_deg: float


def repaint(room: Room, photographs: Photographs, generator: np.random.Generator) -> Room:
    """The same room with other textures: parts of photographs, half of them as tinted structure."""
    scene = room.caster.scene
    size = scene.pyramids.size
    count = len(scene.pyramids.texels[: scene.pyramids.level_start[1]]) // size**2
    textures = []
    for _ in range(count):
        part = photographs.crop(generator, TEXTURE_SIZE, TEXTURE_SIZE).astype(np.float32) / 255.0
        if generator.random() < 0.5:
            grey = part.mean(axis=-1, keepdims=True)
            grey = (grey - grey.mean()) / max(float(grey.std()), 0.05)
            color = generator.uniform(0.25, 0.8, 3)
            part = color * (1.0 + generator.uniform(0.15, 0.4) * grey)
        # Textures repeat mirrored; brightness without detail is lifted a little by noise.
        part = part + generator.normal(0.0, 0.015, part.shape)
        textures.append(np.clip(part, 0.02, 1.0).astype(np.float32))
    painted = replace(scene, pyramids=TexturePyramids.build(textures))
    return replace(room, caster=RayCaster(painted))


def draw_room(generator: np.random.Generator, photographs: Photographs | None, baked: bool) -> Room:
    """A room with textures from the photographs, or the demo's own where there are none."""
    room = build_room(generator, float(generator.uniform(0.004, 0.015)), baked)
    return room if photographs is None else repaint(room, photographs, generator)


def draw_cameras(
    room: Room, motion: str, angle_deg: float, t: float, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Poses [4, 4] of the two cameras and of the one at t, in the free part of a room.

    Raises:
        InputError: when no free place is found.
    """
    for _ in range(60):
        angle = np.deg2rad(angle_deg)
        focus = room.focus + generator.uniform((-0.9, -0.2, -0.4), (0.9, 0.9, 0.5))
        azimuth = generator.uniform(-0.9, 0.9)
        radius = generator.uniform(1.4, 2.8)
        height = generator.uniform(0.7, 1.8)
        poses = []
        heading = float(generator.choice([-1.0, 1.0]))
        tremor = generator.normal(0.0, 0.006, (2, 3))
        roll = generator.normal(0.0, np.deg2rad(1.5), 2)
        if motion == "lateral" and generator.random() < 0.3:
            climb = generator.normal(0.0, 1.0)
        else:
            climb = generator.normal(0.0, 0.2)
        for k, s in enumerate((-0.5, 0.5)):
            place = np.array(
                [focus[0] + radius * np.sin(azimuth), focus[1] - radius * np.cos(azimuth), height]
            )
            target = focus.copy()
            away = place - focus
            distance = float(np.linalg.norm(away))
            right = np.cross(focus - place, [0.0, 0.0, 1.0])
            right /= np.linalg.norm(right)
            step = 2.0 * distance * np.tan(angle / 2.0) * s * heading
            if motion == "orbit":
                turn = azimuth + angle * s * heading
                place[0] = focus[0] + radius * np.sin(turn)
                place[1] = focus[1] - radius * np.cos(turn)
            elif motion == "lateral":
                shift = step * (right + np.array([0.0, 0.0, climb]) / 2.0)
                place, target = place + shift, target + shift
            elif motion == "forward":
                shift = -step * away / distance
                place, target = place + shift, target + shift
            else:
                cosine, sine = np.cos(angle * s * heading), np.sin(angle * s * heading)
                ahead = focus - place
                turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
                turned = turn @ ahead
                pivot = place - _ARM_M * ahead / distance
                place = pivot + _ARM_M * turned / distance
                target = place + turned
            poses.append(look_at(place + tremor[k], target, float(roll[k])))
        middle = interpolate_pose(poses[0], poses[1], t)
        centers = np.stack([pose[:3, 3] for pose in (*poses, middle)])
        if room.is_free(centers, CLEARANCE_M).all():
            return poses[0], poses[1], middle
    raise InputError("no free place for a pair of cameras was found in this room")


def view_pair(
    room: Room,
    motion: str,
    angle_deg: float,
    t: float,
    generator: np.random.Generator,
    width: int = 320,
    height: int = 192,
    supersampling: int = 2,
) -> ViewPair:
    """Take the three pictures of a random pair and align the outer two.

    Raises:
        InputError: when no free place is found.
    """
    pose0, pose1, middle = draw_cameras(room, motion, angle_deg, t, generator)
    focal = width / 2.0 / np.tan(np.deg2rad(generator.uniform(50.0, 78.0)) / 2.0)
    cameras = [Camera(width, height, float(focal), pose) for pose in (pose0, middle, pose1)]
    renderings = [render(room.caster, camera, supersampling) for camera in cameras]
    target_rendering = renderings[1]
    plane = _plane_depth(target_rendering, generator)
    intrinsics = np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])
    target = TargetCamera(middle, intrinsics, (width, height))
    views = [
        Photograph(_to_uint8(rendering.image), np.ones((height, width), bool), pose, intrinsics)
        for rendering, pose in ((renderings[0], pose0), (renderings[2], pose1))
    ]
    aligned = [align(view, target, plane) for view in views]

    centres = cameras[1].pixel_centers()
    points = (
        cameras[1].center
        + cameras[1].directions(centres)
        * np.where(np.isfinite(target_rendering.depth), target_rendering.depth, 1.0)[..., None]
    )
    flags = np.zeros((height, width), np.uint8)
    truth = np.full((height, width, 4), np.nan)
    for k, (camera, view) in enumerate(zip((cameras[0], cameras[2]), aligned, strict=True)):
        pixels, depth = camera.project(points)
        position = apply_homography(np.linalg.inv(view.to_source), pixels)
        scale = -1.0 / t if k == 0 else 1.0 / (1.0 - t)
        flow = np.where((depth > 0.05)[..., None], position - centres, np.nan)
        truth[..., 2 * k : 2 * k + 2] = scale * flow
        seen = room.caster.sees(camera, points.reshape(-1, 3)).reshape(height, width)
        seen &= (position >= 0.0).all(axis=-1) & (position <= (width, height)).all(axis=-1)
        seen &= _sample_nearest(view.valid, position)
        flags[seen] |= SEEN_IN_0 if k == 0 else SEEN_IN_1
    flags[flags > 0] |= USABLE
    truth = np.where(np.abs(truth) < 2000.0, truth, np.nan)
    sample = Sample(
        _to_uint8(aligned[0].image),
        _to_uint8(target_rendering.image),
        _to_uint8(aligned[1].image),
        t,
        flags,
        truth.astype(np.float16),
    )
    return ViewPair(sample, target_rendering.depth, motion, angle_deg)


def room_sample(room: Room, generator: np.random.Generator, **options: Any) -> Sample:
    """A random aligned pair of a room: motion, 2 to 20 degrees, mostly at t = 1/2."""
    t = 0.5 if generator.random() < 0.75 else float(generator.uniform(0.2, 0.8))
    motion = MOTIONS[int(generator.choice(4, p=[0.1, 0.4, 0.35, 0.15]))]
    angle = float(np.exp(generator.uniform(np.log(2.0), np.log(20.0))))
    return view_pair(room, motion, angle, t, generator, **options).sample


def _plane_depth(rendering: Rendering, generator: np.random.Generator) -> float:
    """Harmonic median of a few depths: what the suite gets from sparse points."""
    depth = rendering.depth[np.isfinite(rendering.depth)]
    chosen = generator.choice(depth, min(_PLANE_POINTS, len(depth)), replace=False)
    return float(1.0 / np.median(1.0 / chosen))


def _sample_nearest(valid: NDArray[np.bool_], position: NDArray[np.float64]) -> NDArray[np.bool_]:
    height, width = valid.shape
    known = np.nan_to_num(position, nan=-1.0)
    column = np.floor(known[..., 0]).clip(0, width - 1).astype(int)
    row = np.floor(known[..., 1]).clip(0, height - 1).astype(int)
    return valid[row, column]


def _to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(image * 255.0).clip(0, 255).astype(np.uint8)

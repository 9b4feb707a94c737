# SPDX-License-Identifier: Apache-2.0
"""Generated scenes: a photo-textured room, ray-cast along a hand-held path, with exact depth.

`DemoScene().write(folder)` makes a nerfstudio dataset. Its parts can be used alone:
`room.build_room` draws a scene, `scene.SceneBuilder` puts one together by hand, `raycasting.render`
takes pictures with exact depth and surface, `capture.hand_held_capture` moves a camera,
`sparse_points.reconstruct` imitates structure from motion. Only this module and `dataset` are cheap
to import.
"""

from ps4pro_nerfstudio.demo.dataset import DemoScene

__all__ = ["DemoScene"]

# SPDX-License-Identifier: Apache-2.0
"""The methods that `ps4pro bench scenes` knows by a short name, controls included.

The controls take the place of the pseudo views and leave the dense points out, so that `views`,
`plain` and a control differ in the pseudo images alone.
"""

from __future__ import annotations

from dataclasses import dataclass

_NO_PSEUDO_VIEWS = ("--pipeline.datamanager.pseudo-views.enabled", "False")
_SEEN_DEPTH = "--pipeline.model.triangulated-depth-weight"
_UNSEEN_DEPTH = "--pipeline.model.unseen-depth-weight"
_GEOMETRY = "--pipeline.model.geo-weight"
_NO_DEPTH = (_SEEN_DEPTH, "0", _UNSEEN_DEPTH, "0")
_NO_GEOMETRY = (_GEOMETRY, "0")
# Whatever weights a machine has, an ablation compares the same things.
_OFFLINE = ("--pipeline.model.diffusion", "off", "--pipeline.model.depth", "triangulated")
_NO_DENSE_POINTS = ("--pipeline.datamanager.dense-points.enabled", "False")
_NO_FADING = ("--pipeline.model.fading", "0")
# Densification, scales and what no photograph shows as in splatfacto.
_UNBOUNDED = (
    "--pipeline.model.dense-start.enabled",
    "False",
    "--pipeline.model.max-angular-scale",
    "0",
    "--pipeline.model.unseen-color",
    "background",
)
_AS_SPLATFACTO = (*_NO_FADING, *_UNBOUNDED)
_NO_FREE_SPACE = (
    "--pipeline.datamanager.free-space.share",
    "0",
    "--pipeline.datamanager.free-space.before-surfaces",
    "0",
)
# What the released code of IPSM does, as far as options of the suite say it. Dense points stay:
# they stand in the place of its MVS cloud.
_PUBLISHED = (
    *_NO_PSEUDO_VIEWS,
    *_AS_SPLATFACTO,
    "--pipeline.model.drop-rate",
    "0",
    "--pipeline.model.densification",
    "released",
    "--pipeline.model.background-color",
    "black",
    "--pipeline.model.sh-degree-interval",
    "500",
    "--pipeline.model.mask-mode",
    "minmax",
    "--pipeline.model.warp-depth",
    "blended",
    "--pipeline.datamanager.filled-points.enabled",
    "False",
    *_NO_FREE_SPACE,
    "--pipeline.datamanager.unseen.gap-share",
    "0",
    "--pipeline.datamanager.unseen.order",
    "shuffled",
)
_PUBLISHED_DEPTH = ("--pipeline.model.depth-form", "pearson", _SEEN_DEPTH, "0.05")


@dataclass(frozen=True)
class Arm:
    """What ns-train is given for one column of the comparison."""

    method: str
    """Name that `ns-train` lists."""
    arguments: tuple[str, ...] = ()
    """Options of the method, before the parser's."""
    description: str = ""


def _control(name: str, description: str) -> Arm:
    control = ("--pipeline.datamanager.pseudo-views.control", name)
    return Arm("ps4pro-splatfacto", (*control, *_NO_DENSE_POINTS, *_AS_SPLATFACTO), description)


ARMS: dict[str, Arm] = {
    "plain": Arm(
        "ps4pro-splatfacto",
        (*_NO_PSEUDO_VIEWS, *_NO_DENSE_POINTS, *_AS_SPLATFACTO),
        "splatfacto on the photographs alone",
    ),
    "ps4pro": Arm("ps4pro-splatfacto", (), "pseudo views, dense points and the rest, as shipped"),
    "plain-fading": Arm(
        "ps4pro-splatfacto",
        (*_NO_PSEUDO_VIEWS, *_NO_DENSE_POINTS, *_UNBOUNDED),
        "plain, but with fading",
    ),
    "plain-bounded": Arm(
        "ps4pro-splatfacto",
        (*_NO_PSEUDO_VIEWS, *_NO_DENSE_POINTS),
        "plain, but with fading, bounded scales and colours of the unseen",
    ),
    "unbounded": Arm(
        "ps4pro-splatfacto",
        _UNBOUNDED,
        "as shipped, but densification, scales and unseen regions as in plain",
    ),
    "no-fading": Arm("ps4pro-splatfacto", _NO_FADING, "as shipped, but without fading"),
    "equal-points": Arm(
        "ps4pro-splatfacto",
        ("--pipeline.datamanager.dense-points.as-many-as-sparse", "True"),
        "as shipped, but with no more initial points than plain has",
    ),
    "same-points": Arm(
        "ps4pro-splatfacto",
        (*_NO_PSEUDO_VIEWS, *_AS_SPLATFACTO, *_NO_FREE_SPACE),
        "plain, but from the initial points of ps4pro and ipsm-gaussian",
    ),
    "points": Arm("ps4pro-splatfacto", (*_NO_PSEUDO_VIEWS, *_AS_SPLATFACTO), "dense points only"),
    "views": Arm("ps4pro-splatfacto", (*_NO_DENSE_POINTS, *_AS_SPLATFACTO), "pseudo views only"),
    "linear-blend": _control(
        "linear-blend", "control: aligned photographs, blended, every pixel trusted"
    ),
    "naive": _control("naive", "control: unaligned frames, every pixel trusted"),
    "unweighted": _control("unweighted", "control: aligned frames, every pixel trusted"),
    "repeat-real": _control(
        "repeat-real", "control: photographs once more in the place of pseudo views"
    ),
    "oracle": _control("oracle", "control: true photographs between the training views"),
    "nerfacto-small": Arm(
        "ps4pro-nerfacto-small", _NO_PSEUDO_VIEWS, "the small nerfacto on the photographs alone"
    ),
    "ps4pro-nerfacto-small": Arm(
        "ps4pro-nerfacto-small", (), "the small nerfacto with pseudo views, as shipped"
    ),
    "ps4pro-nerfacto": Arm("ps4pro-nerfacto", (), "nerfacto with pseudo views, as shipped"),
}


ARMS |= {
    "ipsm-base": Arm(
        "ipsm-gaussian",
        (*_OFFLINE, *_NO_DEPTH, *_NO_GEOMETRY),
        "IPSM's base: pseudo views, dense points, none of its terms",
    ),
    "ipsm-depth": Arm("ipsm-gaussian", (*_OFFLINE, *_NO_GEOMETRY), "base and depth terms"),
    "ipsm-geo": Arm("ipsm-gaussian", (*_OFFLINE, *_NO_DEPTH), "base and geometry term"),
    "ipsm-off": Arm("ipsm-gaussian", _OFFLINE, "base, depth and geometry: no network's weights"),
    "ipsm-published-base": Arm(
        "ipsm-gaussian",
        (*_OFFLINE, *_NO_DEPTH, *_NO_GEOMETRY, *_PUBLISHED),
        "IPSM's base with the released densification, black background and schedule, no additions",
    ),
    "ipsm-published-depth": Arm(
        "ipsm-gaussian",
        (*_OFFLINE, *_NO_GEOMETRY, *_PUBLISHED, *_PUBLISHED_DEPTH),
        "the same and the depth terms as the paper weighs them, of triangulated depth",
    ),
    "ipsm-score": Arm(
        "ipsm-gaussian",
        ("--pipeline.model.diffusion", "stable-diffusion", *_OFFLINE[2:]),
        "all terms, with the diffusion prior",
    ),
}


def find_arm(name: str) -> Arm:
    """Entry of the table, or the method of that name as it is.

    Whether ns-train knows the name is for ns-train to say: its failure is recorded like any other.
    """
    return ARMS.get(name) or Arm(name, (), "as ns-train lists it")

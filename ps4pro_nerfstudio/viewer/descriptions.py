# SPDX-License-Identifier: Apache-2.0
"""What the panel says about views, as Markdown.

viser's page evaluates Markdown as MDX, in which braces and angle brackets of a file name would run
as code: everything that comes from outside goes through `literal`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.viewer.view_losses import ViewKey, ViewLoss


def literal(text: str) -> str:
    """The text with all but letters, digits and spaces as character references."""
    return "".join(
        one if one.isascii() and (one.isalnum() or one == " ") else f"&#{ord(one)};" for one in text
    )


def title(key: ViewKey, names: Sequence[str]) -> str:
    """Plain short name of a view; `names` are the files of the real views."""
    if key.is_pseudo:
        return f"pseudo {key.index}"
    return f"{key.index}: {names[key.index]}"


def real_view(index: int, names: Sequence[str], loss: ViewLoss | None) -> str:
    """Description of a real view."""
    return f"**Real view {index}**: {literal(names[index])}\n\n{_loss(loss)}"


def pseudo_view(index: int, view: PseudoView, loss: ViewLoss | None) -> str:
    """Description of a pseudo view: its sources, its place between them, its confidence."""
    origin = view.provenance
    sources = " and ".join(literal(name) for name in origin.source_names)
    return (
        f"**Pseudo view {index}**: {sources}, t = {origin.t:.2f}\n\n"
        f"mean confidence {origin.mean_confidence:.2f}; {_loss(loss)}"
    )


def pictures(uris: Sequence[tuple[str, str]]) -> str:
    """Pictures below each other, from pairs of caption and data URI."""
    return "\n\n".join(f"![{caption}]({uri})\n\n*{caption}*" for caption, uri in uris)


def worst_views(losses: Sequence[ViewLoss], names: Sequence[str]) -> str:
    """Table of views, in the order given."""
    if not losses:
        return "*no view has been used yet*"
    rows = [f"| {literal(title(one.key, names))} | {one.loss:.4f} | {one.step} |" for one in losses]
    return "\n".join(["| view | loss | step |", "| --- | --- | --- |", *rows])


def weight(value: float, step: int) -> str:
    """The weight of pseudo views at a step."""
    return f"λ = {value:.3f} at step {step}"


def _loss(loss: ViewLoss | None) -> str:
    return "not used yet" if loss is None else f"last loss {loss.loss:.4f}, step {loss.step}"

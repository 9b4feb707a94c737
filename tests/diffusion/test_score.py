# SPDX-License-Identifier: Apache-2.0
"""Laws of the score's mathematics."""

from __future__ import annotations

import pytest
import torch

from ps4pro_nerfstudio.diffusion.score import (
    add_noise,
    guide,
    hole_mask,
    latent_holes,
    masked_picture,
    noise_from_velocity,
    score_loss,
    score_terms,
)

SHAPE = (1, 4, 8, 8)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_loss_is_g_over_n(seed: int) -> None:
    latents = normal(*SHAPE, seed=seed).requires_grad_(True)
    gradient = normal(*SHAPE, seed=seed + 10)
    (found,) = torch.autograd.grad(score_loss(latents, gradient), latents)
    torch.testing.assert_close(found, gradient / 256, atol=1e-6, rtol=0)


def test_weights_inside_or_outside_of_the_loss_give_one_gradient() -> None:
    latents = normal(*SHAPE, seed=0).requires_grad_(True)
    first, second = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    inside = score_loss(latents, 0.2 * first + 2.0 * second)
    outside = 0.2 * score_loss(latents, first) + 2.0 * score_loss(latents, second)
    ours, theirs = (torch.autograd.grad(loss, latents)[0] for loss in (inside, outside))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert not torch.isclose(inside, outside)  # Only the logged value differs.


def test_value_of_the_loss_by_hand() -> None:
    """G = (1, 3): half of (1 + 9) / 2 is 2.5."""
    loss = score_loss(torch.tensor([7.0, -2.0]), torch.tensor([1.0, 3.0]))
    assert float(loss) == pytest.approx(2.5)


def test_papers_sign_sums_to_plain_score_distillation() -> None:
    inpainting, text, noise = (normal(*SHAPE, seed=seed) for seed in range(3))
    first, second = score_terms(inpainting, text, noise, 0.3, "paper")
    torch.testing.assert_close(first + second, 0.3 * (text - noise))
    _, code = score_terms(inpainting, text, noise, 0.3, "code")
    assert torch.equal(code, -second)


def test_nan_of_a_denoiser_becomes_no_gradient() -> None:
    inpainting, text, noise = (normal(*SHAPE, seed=seed) for seed in range(3))
    inpainting[0, 0, 0, 0] = float("nan")
    for term in score_terms(inpainting, text, noise, 0.3, "code"):
        assert term[0, 0, 0, 0] == 0.0
        assert torch.isfinite(term).all()


@pytest.mark.parametrize("alpha_bar", [0.05, 0.3, 0.9])
def test_velocity_gives_the_noise_back(alpha_bar: float) -> None:
    latents, noise = normal(*SHAPE, seed=0).double(), normal(*SHAPE, seed=1).double()
    noisy = add_noise(latents, noise, alpha_bar)
    velocity = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * latents
    torch.testing.assert_close(noise_from_velocity(velocity, noisy, alpha_bar), noise)


def test_noising_keeps_the_variance_and_its_ends() -> None:
    latents, noise = normal(*SHAPE, seed=0), normal(*SHAPE, seed=1)
    assert torch.equal(add_noise(latents, noise, 1.0), latents)
    assert torch.equal(add_noise(latents, noise, 0.0), noise)
    ones = torch.ones(1, dtype=torch.float64)
    # cos and sin of one angle.
    one, other = add_noise(ones, 0 * ones, 0.3), add_noise(0 * ones, ones, 0.3)
    assert float(one**2 + other**2) == pytest.approx(1.0)


def test_guidance_extrapolates_from_the_branch_without_text() -> None:
    predictions = torch.tensor([[1.0], [3.0]])
    assert guide(predictions, 0.0).tolist() == [[1.0]]
    assert guide(predictions, 1.0).tolist() == [[3.0]]
    assert guide(predictions, 7.5).tolist() == [[16.0]]


def test_reference_values_of_the_schedule() -> None:
    """The table of the paper's schedule: scaled linear from 0.00085 to 0.012 in 1000 steps."""
    pytest.importorskip("diffusers")
    from ps4pro_nerfstudio.diffusion.tiny import training_schedule

    alpha_bar = training_schedule().alphas_cumprod
    known = {250: 0.674, 300: 0.59, 400: 0.424, 500: 0.276, 600: 0.161, 700: 0.083, 749: 0.057}
    for step, value in known.items():
        assert float(alpha_bar[step]) == pytest.approx(value, abs=0.005)
    assert float(alpha_bar[250:750].mean()) == pytest.approx(0.309, abs=0.002)


def test_holes_are_where_most_of_a_pixel_is_hidden() -> None:
    visible = torch.ones(16, 32, dtype=torch.bool)
    visible[:8] = False
    holes = hole_mask(visible, 64)
    assert holes.shape == (1, 1, 64, 64)
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    assert (holes[0, 0, :32] == 1).all()  # The upper half, whatever the aspect ratio.
    assert (holes[0, 0, 32:] == 0).all()
    latent = latent_holes(holes, (8, 8))
    assert torch.equal(latent[0, 0], holes[0, 0, ::8, ::8])


def test_holes_are_grey_whatever_is_in_them() -> None:
    warped = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    warped[:, :4] = float("nan")
    visible = torch.ones(16, 32, dtype=torch.bool)
    visible[:8] = False
    holes = hole_mask(visible, 16)
    picture = masked_picture(warped, holes)
    assert (picture[..., :8, :] == 0).all()
    # Elsewhere [0, 1] became [-1, 1]; halving the width averages two pixels.
    pairs = warped[:, 9:].unflatten(-1, (16, 2)).mean(-1)
    torch.testing.assert_close(picture[0, :, 9:], 2 * pairs - 1)

# SPDX-License-Identifier: Apache-2.0
"""What the denoisers are given, which way the image is pushed, and that the gradient is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ps4pro_nerfstudio.diffusion import inpainting_score
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig, InpaintingScorePrior
from ps4pro_nerfstudio.diffusion.protocol import ScorePrior
from ps4pro_nerfstudio.messages import InputError
from tests.diffusion.conftest import (
    ALPHA_BAR,
    SIDE,
    fake_config,
    fake_parts,
    pictures,
    seeded,
)

LATENT = SIDE // 8


def latents_of(parts, image: torch.Tensor) -> torch.Tensor:
    square = F.interpolate(image[None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 0.5 * parts.vae.encode(2 * square - 1).latent_dist.mean


def test_inputs_of_both_denoisers() -> None:
    parts = fake_parts()
    image, warped, visible = pictures()
    InpaintingScorePrior(parts, fake_config(), "cpu").score(image, warped, visible, seeded())
    ((inpainting, step, text),) = parts.inpainting_unet.calls
    ((plain, other_step, other_text),) = parts.text_unet.calls
    assert inpainting.shape == (2, 9, LATENT, LATENT)
    assert plain.shape == (2, 4, LATENT, LATENT)
    assert torch.equal(inpainting[0], inpainting[1])
    assert torch.equal(inpainting[:, :4], plain)
    assert torch.equal(step, other_step)
    assert torch.equal(text, other_text)
    assert torch.equal(text, parts.embeddings)
    mask = inpainting[0, 4]
    assert (mask[:, : LATENT // 2] == 0).all()  # 1 is to be filled: the right half.
    assert (mask[:, LATENT // 2 :] == 1).all()
    square = F.interpolate(warped[None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    square = 2 * square - 1
    square[..., SIDE // 2 :] = 0
    expected = 0.5 * parts.vae.encode(square).latent_dist.mean
    torch.testing.assert_close(inpainting[:1, 5:], expected)


def test_time_steps_cover_the_interval_and_nothing_else() -> None:
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(t_min=0.5, t_max=0.54), "cpu")
    generator = seeded()
    for _ in range(40):
        prior.score(*pictures(), generator)
    assert {int(call[1]) for call in parts.text_unet.calls} == {50, 51, 52, 53}


@pytest.mark.parametrize("sign", ["code", "paper"])
def test_steps_go_to_the_photograph_and_away_from_or_towards_the_text(sign) -> None:
    """Denoisers that always see the clean latents a (photograph) and b (text)."""
    clean = [torch.randn(1, 4, LATENT, LATENT, generator=seeded(seed)) for seed in (1, 2)]
    image, warped, visible = pictures()
    latents = latents_of(fake_parts(), image).requires_grad_(True)

    def step(w1: float, w2: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What the descent step -G changes in the latents, from the gradient of the image."""
        prior = InpaintingScorePrior(
            fake_parts(*clean), fake_config(w1=w1, w2=w2, g2_sign=sign), "cpu"
        )
        gradient = prior.score(image, warped, visible, seeded()).gradient
        # The VAE is linear: moving the image along -gradient moves the latents linearly.
        moved = latents_of(prior._parts, image - gradient) - latents_of(prior._parts, image)
        return moved, latents.detach()

    moved, now = step(1.0, 0.0)
    assert float((moved * (clean[0] - now)).sum()) > 0
    moved, now = step(0.0, 1.0)
    towards_inpainting = float((moved * (clean[0] - clean[1])).sum())
    assert towards_inpainting > 0 if sign == "code" else towards_inpainting < 0


def test_image_gradient_equals_autograd_through_the_textbook_loss() -> None:
    """The same random numbers, drawn in the documented order, in one plain graph."""
    parts = fake_parts()
    config = fake_config()
    image, warped, visible = pictures()
    score = InpaintingScorePrior(parts, config, "cpu").score(image, warped, visible, seeded())
    ((_, step, _),) = parts.text_unet.calls
    inpainting, text = (
        unet.outputs[0][:1] + 7.5 * (unet.outputs[0][1:] - unet.outputs[0][:1])
        for unet in (parts.inpainting_unet, parts.text_unet)
    )
    alpha_bar = ALPHA_BAR[int(step)]
    leaf = image.clone().requires_grad_(True)
    latents = latents_of(parts, leaf)
    noise = (parts.text_unet.calls[0][0][:1] - alpha_bar.sqrt() * latents) / (1 - alpha_bar).sqrt()
    pull = alpha_bar * (0.2 * (inpainting - noise) + 2.0 * (inpainting - text))
    loss = 0.5 * (latents - (latents - pull).detach()).square().mean()
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(score.gradient, leaf.grad, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(score.value, loss.detach(), rtol=1e-4, atol=0)


def test_guidance_of_one_is_the_branch_with_text() -> None:
    image, warped, visible = pictures()
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(guidance=1.0), "cpu")
    one = prior.score(image, warped, visible, seeded())
    other = fake_parts()
    for name in ("inpainting_unet", "text_unet"):
        with_text = getattr(parts, name).outputs[0][1:].repeat(2, 1, 1, 1)
        getattr(other, name).register_forward_hook(
            lambda _module, _inputs, output, sample=with_text: _replaced(output, sample)
        )
    guided = InpaintingScorePrior(other, fake_config(guidance=7.5), "cpu")
    two = guided.score(image, warped, visible, seeded())
    torch.testing.assert_close(one.gradient, two.gradient)


def _replaced(output, sample: torch.Tensor):
    output.sample = sample
    return output


def test_without_anything_visible_the_photograph_does_not_matter() -> None:
    image, warped, visible = pictures()
    nothing = torch.zeros_like(visible)
    results, shown = [], []
    for photograph in (warped, 1 - warped, torch.full_like(warped, float("nan"))):
        parts = fake_parts(inpaint=torch.zeros(1, 4, LATENT, LATENT))
        prior = InpaintingScorePrior(parts, fake_config(), "cpu")
        results.append(prior.score(image, photograph, nothing, seeded()).gradient)
        shown.append(parts.inpainting_unet.calls[0][0][:, 4:])
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])
    assert torch.equal(results[0], results[1])
    assert (shown[0][:, 0] == 1).all()


def test_velocity_prediction_is_undone_for_the_denoiser_that_has_it() -> None:
    """A text denoiser that puts out v of the same clean latents judges as one that puts out noise.

    v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z, with the noise that explains z_t.
    """
    clean = [torch.randn(1, 4, LATENT, LATENT, generator=seeded(seed)) for seed in (1, 2)]
    inputs = pictures()
    plain = InpaintingScorePrior(fake_parts(*clean), fake_config(), "cpu")
    expected = plain.score(*inputs, seeded())

    parts = fake_parts(*clean)

    def to_velocity(_module, arguments, output):
        alpha_bar = ALPHA_BAR[int(arguments[1])]
        velocity = alpha_bar.sqrt() * output.sample - (1 - alpha_bar).sqrt() * clean[1]
        return _replaced(output, velocity)

    parts.text_unet.register_forward_hook(to_velocity)
    found = InpaintingScorePrior(
        replace(parts, text_prediction="v_prediction"), fake_config(), "cpu"
    ).score(*inputs, seeded())
    torch.testing.assert_close(found.gradient, expected.gradient, atol=1e-7, rtol=1e-4)


def test_sliders_act_on_the_next_step() -> None:
    config = fake_config(w2=0.0)
    prior: ScorePrior = InpaintingScorePrior(fake_parts(), config, "cpu")
    one = prior.score(*pictures(), seeded()).gradient
    prior.config.w1 = 2 * config.w1
    two = prior.score(*pictures(), seeded()).gradient
    torch.testing.assert_close(two, 2 * one)
    prior.config.guidance = 1.0
    assert not torch.allclose(prior.score(*pictures(), seeded()).gradient, two)


def test_the_same_generator_state_gives_the_same_score() -> None:
    prior = InpaintingScorePrior(fake_parts(), fake_config(), "cpu")
    generator = seeded(3)
    one, other = (prior.score(*pictures(), generator) for _ in range(2))
    again = prior.score(*pictures(), seeded(3))
    assert torch.equal(one.gradient, again.gradient)
    assert torch.equal(one.value, again.value)
    assert not torch.equal(one.gradient, other.gradient)


def test_colours_outside_of_their_range_get_no_gradient() -> None:
    image, warped, visible = pictures()
    image[:, :12] += 2.0
    prior = InpaintingScorePrior(fake_parts(), fake_config(), "cpu")
    gradient = prior.score(image, warped, visible, seeded()).gradient
    assert (gradient[:, :12] == 0).all()
    assert (gradient[:, 13:] != 0).any()


def test_an_overflow_gives_zero_and_a_smaller_scale() -> None:
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(loss_scale=1e38), "cpu")
    parts.vae.mix.mul_(1e3)
    overflowed = prior.score(*pictures(), seeded())
    assert (overflowed.gradient == 0).all()
    assert float(overflowed.value) == 0.0
    assert prior._loss_scale == 0.5e38


def test_a_gradient_whose_value_overflows_is_left_out() -> None:
    """The square of 1e25 is no float32, though the gradient itself is one."""
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(), "cpu")
    parts.text_unet.gain.fill_(1e25)
    score = prior.score(*pictures(), seeded())
    assert (score.gradient == 0).all()
    assert float(score.value) == 0.0


def test_overflows_without_end_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VAE whose own values overflow does so with any loss scale."""
    said: list[str] = []
    monkeypatch.setattr(inpainting_score, "warn", said.append)
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(), "cpu")
    parts.vae.mix.fill_(torch.inf)
    for _ in range(15):
        score = prior.score(*pictures(), seeded())
        assert (score.gradient == 0).all()
        assert float(score.value) == 0.0
    (line,) = said
    assert "10 times" in line
    assert "dtype float32" in line


@pytest.mark.parametrize(
    "dtype, gain, advice",
    [
        ("float32", torch.nan, "fetch them anew"),
        ("float32", torch.inf, "fetch them anew"),
        ("bfloat16", torch.nan, "dtype float32"),
    ],
)
def test_a_denoiser_that_is_not_finite_is_said_once(
    monkeypatch: pytest.MonkeyPatch, dtype: str, gain: float, advice: str
) -> None:
    """Without guidance, in which infinities would cancel to NaN."""
    said: list[str] = []
    monkeypatch.setattr(inpainting_score, "warn", said.append)
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(dtype=dtype, guidance=1.0), "cpu")
    prior.score(*pictures(), seeded())
    assert said == []
    parts.text_unet.gain.fill_(gain)
    for _ in range(3):
        score = prior.score(*pictures(), seeded())
        assert torch.isfinite(score.gradient).all()
        assert torch.isfinite(score.value)
    (line,) = said
    assert "fakes gives values that are not finite" in line
    assert advice in line


def test_surrogate_reaches_the_render_and_autocast_does_not_reach_the_networks() -> None:
    parts = fake_parts()
    prior = InpaintingScorePrior(parts, fake_config(), "cpu")
    image, warped, visible = pictures()
    expected = prior.score(image, warped, visible, seeded()).gradient
    render = image.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        score = prior.score(render, warped, visible, seeded())
    assert render.grad is None
    assert torch.equal(score.gradient, expected)
    (score.gradient * render).sum().backward()
    assert render.grad is not None
    assert torch.equal(render.grad, expected)


class TestTinyModels:
    """The real classes of diffusers, with random weights."""

    @pytest.fixture(autouse=True)
    def _needs_diffusers(self) -> None:
        pytest.importorskip("diffusers")

    @staticmethod
    def prior(**changes) -> InpaintingScorePrior:
        from ps4pro_nerfstudio.diffusion.tiny import tiny_parts

        return InpaintingScorePrior(tiny_parts(), InpaintingScoreConfig(size=64, **changes), "cpu")

    def test_networks_are_frozen_and_get_no_gradient(self) -> None:
        prior = self.prior()
        score = prior.score(*pictures(), seeded())
        assert score.gradient.shape == (3, 24, 40)
        assert score.gradient.dtype == torch.float32
        assert float(score.gradient.abs().max()) > 0
        assert score.value.shape == ()
        assert not isinstance(prior, torch.nn.Module)
        parts = prior._parts
        for network in (parts.vae, parts.inpainting_unet, parts.text_unet):
            assert not network.training
            for weight in network.parameters():
                assert not weight.requires_grad
                assert weight.grad is None

    @pytest.mark.parametrize("encodes", [1, 2])
    @pytest.mark.parametrize(
        "dtype, scale, tolerance",
        [("float32", 1024.0, 1e-5), ("float16", 64.0, 0.03), ("bfloat16", 64.0, 0.2)],
    )
    def test_scaling_and_precision_leave_the_gradient(
        self, encodes, dtype: str, scale: float, tolerance: float
    ) -> None:
        """Scaled, against plain float32; float16 has 11 bits, bfloat16 8."""
        inputs = pictures(64, 64)
        exact = self.prior(vae_encodes=encodes, loss_scale=1.0).score(*inputs, seeded())
        scaled = self.prior(vae_encodes=encodes, loss_scale=scale, dtype=dtype)
        found = scaled.score(*inputs, seeded())
        error = (found.gradient - exact.gradient).norm() / exact.gradient.norm()
        assert float(error) < tolerance

    @pytest.mark.parametrize("encodes", [1, 2])
    def test_gradient_equals_autograd_through_the_vae(
        self, encodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss built as one graph with the public calls of the VAE, in float32."""
        prior = self.prior(vae_encodes=encodes)
        image, warped, visible = pictures(64, 64)  # No resize, so that the graph is the VAE alone.
        seen = []
        monkeypatch.setattr(prior, "_terms", _recording(prior._terms, seen))
        found = prior.score(image, warped, visible, seeded())
        ((first, second),) = seen
        leaf = image.clone().requires_grad_(True)
        generator = seeded()
        posterior = prior._parts.vae.encode(2 * leaf[None] - 1).latent_dist
        pulls = [0.2 * first + 2.0 * second] if encodes == 1 else [0.2 * first, 2.0 * second]
        loss = torch.zeros(())
        for pull in pulls:
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = 0.18215 * (posterior.mean + posterior.std * noise)
            loss = loss + 0.5 * (latents - (latents - pull).detach()).square().mean()
        loss.backward()
        assert leaf.grad is not None
        torch.testing.assert_close(found.gradient, leaf.grad, atol=1e-8, rtol=1e-3)
        torch.testing.assert_close(found.value, loss.detach(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("size, shape", [(64, (30, 50)), (128, (64, 64)), (96, (200, 90))])
    def test_any_resolution(self, size: int, shape: tuple[int, int]) -> None:
        from ps4pro_nerfstudio.diffusion.tiny import tiny_parts

        prior = InpaintingScorePrior(tiny_parts(), InpaintingScoreConfig(size=size), "cpu")
        assert prior.score(*pictures(*shape), seeded()).gradient.shape == (3, *shape)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    @pytest.mark.parametrize("offload", [False, True])
    def test_half_precision_on_a_gpu_agrees_with_float32_on_the_cpu(self, offload: bool) -> None:
        from ps4pro_nerfstudio.diffusion.tiny import tiny_parts

        inputs = pictures(64, 64)
        exact = self.prior().score(*inputs, seeded())
        settings = InpaintingScoreConfig(size=64, cpu_offload=offload)
        prior = InpaintingScorePrior(tiny_parts(), settings, "cuda")
        image, warped, visible = (one.cuda() for one in inputs)
        found = prior.score(image, warped, visible, seeded())
        error = (found.gradient.cpu() - exact.gradient).norm() / exact.gradient.norm()
        assert float(error) < 0.05
        place = next(prior._parts.text_unet.parameters()).device.type
        assert place == ("cpu" if offload else "cuda")


def _recording(function, seen: list):
    def call(*arguments):
        result = function(*arguments)
        seen.append(result)
        return result

    return call


@pytest.mark.parametrize(
    "change, words",
    [
        ({"inpainting_unet": 4}, ("inpainting", "4 channels instead of 9")),
        ({"text_unet": 9}, ("text", "9 channels instead of 4")),
        ({"width": 12}, ("width 8", "12")),
        ({"latent": 16}, ("16 latent channels",)),
        ({"size": 36}, ("multiple of 8",)),
        ({"t_min": 0.8}, ("t_min 0.8",)),
        ({"t_max": 1.2}, ("t_max 1.2",)),
        ({"loss_scale": 0.0}, ("loss_scale",)),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict, words: tuple[str, ...]) -> None:
    parts, config = fake_parts(), fake_config()
    for key, value in change.items():
        if hasattr(config, key):
            setattr(config, key, value)
        elif key == "width":
            parts.embeddings = torch.zeros(2, 5, value)
        elif key == "latent":
            parts.vae.config.latent_channels = value
        else:
            getattr(parts, key).config.in_channels = value
    with pytest.raises(InputError) as raised:
        InpaintingScorePrior(parts, config, "cpu")
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_another_vae_factor_is_used_as_it_is() -> None:
    """Latents are as many as the VAE makes; the mask follows."""
    parts = fake_parts()
    parts.vae.config.block_out_channels = (1, 1, 1, 1, 1)
    original = parts.vae.encode
    parts.vae.encode = lambda picture: original(F.avg_pool2d(picture, 2))
    InpaintingScorePrior(parts, fake_config(), "cpu").score(*pictures(), seeded())
    assert parts.inpainting_unet.calls[0][0].shape == (2, 9, SIDE // 16, SIDE // 16)

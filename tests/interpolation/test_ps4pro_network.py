# SPDX-License-Identifier: Apache-2.0
"""Laws of the learned interpolator that hold whatever its weights are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.initial_flow import make_initializer
from ps4pro_nerfstudio.interpolation.network import PS4PRO, num_halvings
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.velocities import resize_velocity
from ps4pro_nerfstudio.messages import InputError, MissingPartError


def _texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours [height, width, 3] in [0, 1], with structure of about 6 px."""
    noise = np.random.default_rng(seed).random((height, width, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    smooth = (smooth - smooth.mean()) / smooth.std()
    return np.clip(0.5 + 0.2 * smooth, 0.0, 1.0)


def _frames(
    height: int, width: int, shift: tuple[int, int] = (2, 0), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Two frames [1, 3, H, W]; the content moves by `shift` (x, y) from the first to the second."""
    margin = 16
    large = _texture(height + 2 * margin, width + 2 * margin, seed)

    def cut(x: int, y: int) -> Tensor:
        part = large[margin - y : margin - y + height, margin - x : margin - x + width]
        return torch.from_numpy(part.copy()).permute(2, 0, 1)[None]

    return cut(0, 0), cut(*shift)


def _stirred(seed: int = 0) -> PS4PRO:
    """A tiny network whose output layers are not zero."""
    torch.manual_seed(seed)
    network = PS4PRO("tiny").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def test_untrained_network_is_the_classical_flow_inside() -> None:
    """Away from the border; nearly: what little of it is in doubt is seen at half the size."""
    frame0, frame1 = _frames(96, 128, (5, 3))
    flow = OpticalFlowInterpolator(0, patch_stride=4, descent_steps=12, refinement_steps=0)
    inside = (..., slice(16, -16), slice(16, -16))
    for t in (0.5, 0.3):
        with torch.inference_mode():
            learned = PS4PRO("tiny").eval()(frame0, frame1, t)
            classical = flow(frame0, frame1, t)
        for name, most in (("flow_t0", 0.02), ("flow_t1", 0.02), ("mask", 1e-3), ("image", 5e-3)):
            difference = (getattr(learned, name) - getattr(classical, name)).abs()[inside]
            assert float(difference.mean()) < most, name


def test_what_leaves_the_picture_comes_from_the_other_frame() -> None:
    """The content moves right by 12 px: the left 6 px of the middle are not in frame 0."""
    frame0, frame1 = _frames(96, 128, (12, 0))
    middle = _frames(96, 128, (6, 0))[1]
    with torch.inference_mode():
        learned = PS4PRO("tiny").eval()(frame0, frame1, 0.5)
        classical = OpticalFlowInterpolator()(frame0, frame1, 0.5)
    border = (..., slice(10, -10), slice(0, 5))
    assert float(learned.mask[border].mean()) < 0.15
    assert float(learned.mask[..., 10:-10, -5:].mean()) > 0.85
    error = (learned.image - middle)[border].abs().mean()
    assert float(error) < 0.25 * float((classical.image - middle)[border].abs().mean())


def test_t_zero_and_one_give_the_inputs_exactly() -> None:
    frame0, frame1 = _frames(64, 80)
    network = _stirred()
    with torch.inference_mode():
        assert torch.equal(network(frame0, frame1, 0.0).image, frame0)
        assert torch.equal(network(frame0, frame1, 1.0).image, frame1)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (100, 70)])
def test_any_size_gives_fields_of_that_size_in_range(size: tuple[int, int]) -> None:
    frame0, frame1 = _frames(*size)
    with torch.inference_mode():
        result = _stirred()(frame0, frame1, 0.4)
    assert result.image.shape == (1, 3, *size)
    assert result.flow_t0.shape == result.flow_t1.shape == (1, 2, *size)
    assert result.mask.shape == result.confidence.shape == (1, 1, *size)
    for value in vars(result).values():
        assert bool(torch.isfinite(value).all())
    for value in (result.image, result.mask, result.confidence):
        assert float(value.min()) >= 0.0
        assert float(value.max()) <= 1.0


def test_a_batch_is_its_singles() -> None:
    """With PyTorch's own convolutions: oneDNN's are summed in another order for another batch.

    A pixel at the edge of a decision (which frame shows it) has then been another one.
    """
    pairs = [_frames(64, 80, (3, 1), seed) for seed in (1, 2, 3)]
    network = _stirred()
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        together = network(*(torch.cat(frames) for frames in zip(*pairs, strict=True)), 0.5)
        for index, pair in enumerate(pairs):
            single = network(*pair, 0.5)
            for name, value in vars(single).items():
                batched = getattr(together, name)[index : index + 1]
                torch.testing.assert_close(batched, value, atol=1e-5, rtol=1e-5)


def test_each_pair_of_a_batch_may_have_its_own_time() -> None:
    frame0, frame1 = _frames(64, 80)
    network = _stirred()
    with torch.inference_mode():
        both = network(
            frame0.repeat(2, 1, 1, 1), frame1.repeat(2, 1, 1, 1), torch.tensor([0.25, 1.0])
        )
        torch.testing.assert_close(both.image[:1], network(frame0, frame1, 0.25).image)
    assert torch.equal(both.image[1:], frame1)


def test_autocast_changes_little_and_keeps_the_type() -> None:
    frame0, frame1 = _frames(64, 80)
    network = _stirred()
    with torch.inference_mode():
        exact = network(frame0, frame1, 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(frame0, frame1, 0.5)
    assert rough.image.dtype == torch.float32
    assert float((exact.image - rough.image).abs().mean()) < 0.01


def test_without_initial_flow_the_network_starts_from_zero_motion() -> None:
    """An untrained network then is the linear blend, at any number of halvings."""
    frame0, frame1 = _frames(64, 448)
    network = PS4PRO("tiny", make_initializer("none")).eval()
    with torch.inference_mode():
        result = network(frame0, frame1, 0.5)
    assert float(result.flow_t0.abs().max()) == 0.0
    torch.testing.assert_close(result.image, (frame0 + frame1) / 2.0, atol=1e-5, rtol=0)


def test_halvings_bring_a_quarter_of_the_width_within_reach() -> None:
    for long_side in (64, 192, 193, 640, 1920, 4096):
        count = num_halvings(long_side, reach_px=48.0)
        assert long_side / 4.0 / 2**count <= 48.0
        assert count == 0 or long_side / 4.0 / 2 ** (count - 1) > 48.0


def test_resized_velocities_point_to_the_same_places() -> None:
    velocity = torch.tensor([2.0, 1.0, -4.0, 3.0])[None, :, None, None].expand(1, 4, 20, 40)
    resized = resize_velocity(velocity, 40, 20)
    assert resized.shape == (1, 4, 40, 20)
    assert resized[0, :, 5, 5].tolist() == [1.0, 2.0, -2.0, 6.0]


def test_nan_and_different_sizes_are_refused() -> None:
    frame0, frame1 = _frames(64, 64)
    network = PS4PRO("tiny")
    with pytest.raises(ValueError, match="one size"):
        network(frame0, frame1[..., :-1], 0.5)
    broken = frame1.clone()
    broken[0, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        network(frame0, broken, 0.5)
    with pytest.raises(ValueError, match="must lie in"):
        network(frame0, frame1, 1.5)


def test_saved_weights_come_back(tmp_path: Path) -> None:
    frame0, frame1 = _frames(64, 64)
    network = _stirred()
    path = tmp_path / "mine.safetensors"
    network.save(path)
    loaded = PS4PRO.from_pretrained(path)
    assert loaded.name == "mine"
    with torch.inference_mode():
        for name, value in vars(network(frame0, frame1, 0.5)).items():
            assert torch.equal(getattr(loaded(frame0, frame1, 0.5), name), value)
    network.save(path, half=True)
    assert path.stat().st_size < 2.2 * sum(p.numel() for p in network.parameters())


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    network = _stirred(0)
    network.save(tmp_path / "a.safetensors")
    again = PS4PRO.from_pretrained(tmp_path / "a.safetensors")
    assert again.identity.split("/")[1] == network.identity.split("/")[1]
    assert _stirred(1).identity != network.identity


def test_unusable_weights_give_one_clear_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no weights named 'nonsense'"):
        PS4PRO.from_pretrained("nonsense")
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no weights file"):
        PS4PRO.from_pretrained(path)
    _stirred().save(path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        PS4PRO.from_pretrained(damaged)
    save_file({"x": torch.zeros(3)}, str(path))
    with pytest.raises(InputError, match="no PS4PRO network"):
        PS4PRO.from_pretrained(path)
    _resave(path, drop="head.out.bias")
    with pytest.raises(InputError, match="does not fit"):
        PS4PRO.from_pretrained(path)
    _resave(path, poison="head.out.bias")
    with pytest.raises(InputError, match="not finite"):
        PS4PRO.from_pretrained(path)


def _resave(path: Path, drop: str = "", poison: str = "") -> None:
    """Write the weights of a tiny network without, or with NaN in, one tensor."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    _stirred().save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != drop}  # noqa: SIM118
        metadata = file.metadata()
    if poison:
        tensors[poison] = torch.full_like(tensors[poison], float("nan"))
    save_file(tensors, str(path), metadata=metadata)


def test_raft_starts_the_network_where_its_weights_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Random weights: the mechanics, and a size that RAFT itself does not take."""
    from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = Raft_Small_Weights.DEFAULT.url.rsplit("/", maxsplit=1)[-1]
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), tmp_path / "checkpoints" / name)
    network = PS4PRO("tiny", make_initializer("raft")).eval()
    assert "raft-small" in network.identity
    frame0, frame1 = _frames(70, 90)
    with torch.inference_mode():
        result = network(frame0, frame1, 0.5)
    assert result.image.shape == (1, 3, 70, 90)
    assert bool(torch.isfinite(result.flow_t0).all())


def test_initial_flow_is_refused_by_name_and_by_missing_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="initial flow must be one of"):
        make_initializer("farneback")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingPartError, match="put them there, or use the initial flow 'dis'"):
        make_initializer("raft")

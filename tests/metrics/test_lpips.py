# SPDX-License-Identifier: Apache-2.0
"""LPIPS is never a reason to wait or to fail: absent weights are one line and None."""

import pytest
import torch

from ps4pro_nerfstudio.metrics import LazyLPIPS
from ps4pro_nerfstudio.metrics import lpips as module

needs_weights = pytest.mark.skipif(
    not module.available("alex"), reason=f"no AlexNet weights at {module.weights_path('alex')}"
)


def images(height=48, width=64):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(height, width, 3, generator=generator)
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.fixture
def fresh_process(monkeypatch):
    """As if nothing had been tried or said yet."""
    monkeypatch.setattr(module, "_process", {"said": False, "failed": set()})
    monkeypatch.delenv(module.DOWNLOAD_VARIABLE, raising=False)


@pytest.fixture
def no_weights(fresh_process, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect or to load by URL is counted and fails at once."""
    attempts = []

    def refuse(url, *args, **kwargs):
        attempts.append(url)
        raise OSError("the test has no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return attempts


@pytest.mark.parametrize("net", module.LPIPS_NETS)
def test_p34_absent_weights_give_none_and_one_line(no_weights, no_network, capsys, net):
    assert not module.available(net)
    metric = LazyLPIPS(net)
    assert [metric(*images()) for _ in range(3)] == [None, None, None]
    assert LazyLPIPS(net)(*images()) is None
    said = capsys.readouterr().out.strip()
    assert said.count("LPIPS") == 1
    assert said.count("\n") == 0
    assert str(module.weights_path(net)) in said
    assert "PS4PRO_DOWNLOAD_WEIGHTS=1" in said
    assert no_network == []
    assert list(no_weights.rglob("*.pth")) == []


def test_p34_building_the_object_touches_nothing(no_weights, no_network, capsys):
    LazyLPIPS("vgg")
    assert capsys.readouterr().out == ""
    assert no_network == []


def test_p34_a_failed_download_is_tried_once(no_weights, no_network, monkeypatch, capsys):
    monkeypatch.setenv(module.DOWNLOAD_VARIABLE, "1")
    metric = LazyLPIPS("alex")
    assert [metric(*images()) for _ in range(3)] == [None, None, None]
    assert len(no_network) == 1
    assert capsys.readouterr().out.count("LPIPS") == 1


def test_a_damaged_weights_file_is_said_not_raised(no_weights, no_network, capsys):
    path = module.weights_path("alex")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    assert LazyLPIPS("alex")(*images()) is None
    assert str(path) in capsys.readouterr().out
    assert no_network == []


def test_it_never_enters_a_checkpoint(fresh_process):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lpips = LazyLPIPS("alex")

    model = Model()
    model.lpips(*images())
    assert list(model.state_dict()) == []
    assert list(model.modules()) == [model]


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="alex, vgg"):
        LazyLPIPS("squeeze")


@needs_weights
def test_identical_images_give_zero():
    _, target = images()
    assert LazyLPIPS("alex")(target, target) == 0


@needs_weights
def test_value_is_that_of_torchmetrics():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    prediction, target = images()
    reference = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    expected = float(reference(prediction.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]))
    metric = LazyLPIPS("alex")
    assert metric(prediction, target) == pytest.approx(expected, rel=1e-6)
    # A second image does not inherit the state of the first.
    assert metric(prediction, target) == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01


@needs_weights
@pytest.mark.parametrize("garbage", [float("nan"), 1e30, 0.3])
def test_invalid_pixels_never_enter(garbage):
    prediction, target = images()
    valid = torch.ones(48, 64, dtype=torch.bool)
    valid[:, 40:] = False
    metric = LazyLPIPS("alex")
    clean = metric(prediction, target, valid)
    prediction[~valid] = garbage
    target[~valid] = -garbage
    assert metric(prediction, target, valid) == clean
    assert clean is not None
    assert clean > 0.01


@needs_weights
def test_nothing_to_compare_is_none():
    prediction, target = images()
    metric = LazyLPIPS("alex")
    assert metric(prediction, target, torch.zeros(48, 64, dtype=torch.bool)) is None
    assert metric(prediction[:31], target[:31]) is None
    assert metric(prediction[:32, :32], target[:32, :32]) is not None

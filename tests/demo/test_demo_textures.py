# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest

from ps4pro_nerfstudio.demo import textures
from ps4pro_nerfstudio.demo.textures import (
    PHOTOGRAPHS,
    TEXTURE_SIZE,
    TexturePyramids,
    photograph,
    tinted,
    with_detail,
)
from ps4pro_nerfstudio.messages import MissingPartError


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_need_no_download(name, monkeypatch):
    # pooch is what scikit-image downloads with; None in sys.modules makes its import fail.
    monkeypatch.setitem(sys.modules, "pooch", None)
    photograph.cache_clear()
    values = photograph(name)
    assert values.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)
    assert 0.0 <= values.min() < values.max() <= 1.0
    assert values.std() > 0.05


def test_a_missing_photograph_says_what_to_reinstall(monkeypatch):
    monkeypatch.setitem(textures._PHOTOGRAPHS, "lost", ("no_such_file.png", (0, 0, 1, 1)))
    with pytest.raises(MissingPartError, match=r"no_such_file\.png.*pip install"):
        photograph("lost")


def test_an_unknown_photograph_lists_the_known_ones():
    with pytest.raises(ValueError, match="astronaut"):
        photograph("mona lisa")


def test_tint_sets_the_mean_colour():
    color = np.array([0.5, 0.45, 0.4])
    np.testing.assert_allclose(tinted("gravel", color, 0.2).mean(axis=(0, 1)), color, atol=0.01)


def test_detail_leaves_no_block_flat():
    black = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE, 3), dtype=np.float32)
    blocks = with_detail(black, "gravel", 0.1)[..., 0].reshape(16, 32, 16, 32)
    assert blocks.std(axis=(1, 3)).min() > 0.002


def test_each_level_is_the_mean_of_the_finer_one():
    generator = np.random.default_rng(0)
    images = [generator.random((8, 8, 3), dtype=np.float32) for _ in range(3)]
    pyramids = TexturePyramids.build(images)
    assert pyramids.level_start.tolist() == [0, 192, 240, 252]
    for k, image in enumerate(images):
        side, start = 2, pyramids.level_start[2]
        for row in range(side):
            for column in range(side):
                block = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                texel = pyramids.texels[start + (k * side + row) * side + column]
                np.testing.assert_allclose(texel, block.mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 4, 3), (6, 6, 3), (16, 16, 3)])
def test_textures_of_other_shapes_are_refused(shape):
    good, bad = np.zeros((8, 8, 3), dtype=np.float32), np.zeros(shape, dtype=np.float32)
    with pytest.raises(ValueError, match="power of two"):
        TexturePyramids.build([good, bad])

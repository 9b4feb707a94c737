# SPDX-License-Identifier: Apache-2.0
"""The presets of IPSM, what their help names, and an arm that leaves out what the paper has not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tyro

from ps4pro_nerfstudio.methods import ipsm_gaussian, ipsm_gaussian_dtu
from ps4pro_nerfstudio.models.ipsm import IPSMModelConfig
from ps4pro_nerfstudio.models.ipsm_schedule import IPSMSchedule

MODEL, DATA = "--pipeline.model.", "--pipeline.datamanager."
AS_PUBLISHED = (
    f"{MODEL}densification released "
    f"{MODEL}background-color black "
    f"{MODEL}sh-degree-interval 500 "
    f"{MODEL}depth-form pearson "
    f"{MODEL}triangulated-depth-weight 0.05 "
    f"{MODEL}drop-rate 0 "
    f"{MODEL}fading 0 "
    f"{MODEL}max-angular-scale 0 "
    f"{MODEL}unseen-color background "
    f"{MODEL}dense-start.enabled False "
    f"{MODEL}mask-mode minmax "
    f"{MODEL}warp-depth blended "
    f"{MODEL}score.vae-encodes 2 "
    f"{MODEL}lpips-net vgg "
    f"{DATA}pseudo-views.enabled False "
    f"{DATA}filled-points.enabled False "
    f"{DATA}free-space.share 0 "
    f"{DATA}free-space.before-surfaces 0 "
    f"{DATA}unseen.gap-share 0 "
    f"{DATA}unseen.order shuffled"
).split()


def parse(*arguments: str) -> Any:
    """The config that `ns-train ipsm-gaussian` makes of arguments."""
    default: Any = copy.deepcopy(ipsm_gaussian.config)
    markers = (tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed)  # as nerfstudio's
    return tyro.cli(type(default), default=default, args=list(arguments), config=markers)


def test_an_arm_as_published_can_be_asked_for() -> None:
    model = parse(*AS_PUBLISHED).pipeline.model
    assert (model.densification, model.background_color, model.depth_form) == (
        "released",
        "black",
        "pearson",
    )
    assert model.triangulated_depth_weight == model.seen_depth_weight == 0.05


@pytest.mark.parametrize("value", ["auto", "unit_free", 200.0])
def test_the_offset_of_inverse_depth_is_a_word_or_a_number(value: Any) -> None:
    model = parse("--pipeline.model.inverse-offset", str(value)).pipeline.model
    assert model.inverse_offset == value


def test_help_names_the_symbols_of_the_paper(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    depth = ("lambda_ssim", "lambda_d,seen", "lambda_d,pseudo", "lambda_geo")
    score = ("w_1", "w_2", "omega(t)", "r(it)", "tau_soft", "tau_strict", "eta_r")
    assert [symbol for symbol in (*depth, *score) if symbol not in text] == []


def test_weights_for_objects_before_cloth_are_a_tenth_of_those_for_llff() -> None:
    """Spec, section 4; triangulated depth, which the paper has not, follows in proportion."""
    llff, dtu = IPSMModelConfig(), ipsm_gaussian_dtu.config.pipeline.model
    assert isinstance(dtu, IPSMModelConfig)
    names = ("seen_depth", "triangulated_depth", "unseen_depth", "geo")
    for name in names:
        tenth = 0.1 * getattr(llff, f"{name}_weight")
        assert getattr(dtu, f"{name}_weight") == pytest.approx(tenth), name
    assert dtu.ssim_lambda == 0.6
    assert dtu.background_prior


def test_the_released_densification_of_dtu_resets_opacities_each_thousand_steps() -> None:
    config: Any = copy.deepcopy(ipsm_gaussian_dtu.config.pipeline.model)
    assert config.reset_opacity == 0.05
    schedule = IPSMSchedule(config.schedule)
    found = [step for step in range(10_000) if schedule.resets_opacity(step)]
    assert found == list(range(2001, 9002, 1000))

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.image import imread

from srpo_jax.reporting import figure
from srpo_jax.reporting.data import Interval
from tests.reports import documents, evidence, hostile, report, texts, verdicts

NAMES = ("Wikipedia", "ACLSum", "Debian")
VIEW = ("clerk", "gold")


def pixels_of(png):
    return imread(io.BytesIO(png))[..., :3]


def holds_colours(pixels, looks):
    for look in looks.values():
        colour = np.array([int(look.colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - colour).max(-1) < 0.01).sum() > 100


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_the_picture_is_wide_and_white_and_shows_each_model_in_its_colour(sets):
    made = report(
        sets=tuple(documents(name) for name in NAMES[:sets]),
        texts=tuple(texts(model, name) for name in NAMES[:sets] for model in ("srpo", "ipo")),
        tables=tuple(verdicts(model, name) for name in NAMES[:sets] for model in ("srpo", "ipo")),
    )
    pixels = pixels_of(figure.draw(made, VIEW))
    assert pixels.shape[1] == (1170 if sets == 1 else 1800)
    assert (pixels[[0, -1]] == 1).all()
    assert (pixels[:, [0, -1]] == 1).all()
    holds_colours(pixels, figure.looks(made.evidence.models))


def test_panels_apart_are_as_wide_as_a_phone_likes_and_show_each_model():
    made = report()
    pictures = figure.draw_apart(made, VIEW)
    assert list(pictures) == ["Wikipedia", "ACLSum"]
    for picture in pictures.values():
        assert pixels_of(picture).shape[1] == 900
    holds_colours(pixels_of(pictures["Wikipedia"]), figure.looks(made.evidence.models))


@pytest.mark.parametrize("rates", [(0.5,), (0.0, 1.0), (0.05,) * 30])
def test_curves_of_any_length_and_height_can_be_drawn(rates):
    made = report()
    cell = made.curves[0].cells[0]
    cells = tuple(dataclasses.replace(cell, rate=Interval(rate, rate, rate)) for rate in rates)
    one = dataclasses.replace(made.curves[0], cells=cells)
    drawn = figure.draw(dataclasses.replace(made, curves=(one,)), VIEW)
    assert pixels_of(drawn).shape[1] == 1170


def test_a_revision_without_verdicts_leaves_a_gap_and_hostile_names_are_letters():
    made = hostile()
    assert pixels_of(figure.draw(made, made.views[0])).shape[1] == 1170
    none = report(tables=(verdicts("srpo", rows=[[np.nan] * 3] * 4),))
    assert pixels_of(figure.draw(none, VIEW)).shape[1] == 1170


def test_a_known_model_looks_the_same_in_every_report():
    crowd = figure.looks(("mine", "IPO", "DPO"))
    assert figure.looks(("DPO",))["DPO"] == crowd["DPO"]
    assert len({look.colour for look in crowd.values()}) == len(crowd)


def test_no_two_models_have_one_label():
    for names in (("srpo", "SRPO", "dpo"), ("start", "start policy", "dpo")):
        found = figure.looks(names)
        assert [found[name].label for name in names] == [*names[:2], "DPO"]
        assert len({look.colour for look in found.values()}) == 3


def test_labels_are_spread_by_the_least_that_parts_them():
    assert figure.spread([10.0, 20.0], 5.0) == [10.0, 20.0]
    assert figure.spread([10.0, 11.0, 30.0], 5.0) == pytest.approx([8.0, 13.0, 30.0])
    assert figure.spread([1.0, 1.0, 1.0], 2.0) == pytest.approx([-1.0, 1.0, 3.0])


def test_evidence_models_decide_the_looks():
    assert [look.label for look in figure.looks(evidence().models).values()] == [
        "start policy",
        "SRPO",
        "mine",
    ]


def test_sixteen_models_that_nobody_knows_look_different():
    found = figure.looks([f"run_{i}" for i in range(16)]).values()
    assert len({(look.colour, look.marker) for look in found}) == 16

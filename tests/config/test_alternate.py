"""The phases of train_online --alternate as stages: who begins with what, and is compared with whom."""

import pytest

from srpo_jax.config import Settings
from srpo_jax.config.alternate import as_recipe, seed_of
from srpo_jax.config.recipe import resolve
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build

PHASES = (
    {"objective": "srpo", "set": {"train.steps": 3, "pairs.count": 5}},
    {"objective": "copg", "set": {"train.steps": 4}},
)


def alternating(kind="moved", phases=PHASES, **changes):
    own = {"phases": phases, "cycles": 2, "reference": kind}
    return build(
        Settings, {"seed": 7, "model": {"source": "base"}, "alternate": own, **changes}, "config"
    )


@pytest.fixture
def stages(tmp_path):
    return lambda *given, **more: resolve(as_recipe(alternating(*given, **more)), tmp_path)


def test_each_phase_begins_with_the_policy_of_the_one_before(stages, tmp_path):
    found = stages()
    names = ["1-pairs", "1-srpo", "2-copg", "3-pairs", "3-srpo", "4-copg"]
    assert [stage.name for stage in found] == names
    assert [stage.program for stage in found] == ["pairs", "train", "train_online"] * 2
    sources = [stage.settings.model.source for stage in found]
    folders = [str(tmp_path / name) for name in ("1-srpo", "2-copg", "2-copg", "3-srpo")]
    assert sources == ["base", "base", *folders]
    assert found[1].settings.data.pairs == str(tmp_path / "1-pairs" / "pairs.jsonl")
    assert found[4].settings.data.pairs == str(tmp_path / "3-pairs" / "pairs.jsonl")
    seeds = [stage.settings.seed for stage in found]
    assert seeds == [seed_of(7, phase) for phase in (1, 1, 2, 3, 3, 4)]
    assert [stage.settings.train.steps for stage in found[1:3]] == [3, 4]
    assert found[0].settings.pairs.count == 5
    assert found[1].settings.objective.name == "srpo"
    assert found[2].settings.online.objective == "copg"
    assert found[2].reads == {"1-srpo"}


def test_no_two_phases_have_one_seed_whatever_the_seeds_of_their_runs():
    """Phase 2 of seed 0 had the seed of phase 1 of seed 1."""
    seeds = {seed_of(seed, phase) for seed in range(200) for phase in range(1, 11)}
    assert len(seeds) == 200 * 10
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(7, 1) == 7  # it is a run like any other


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("moved", "", ["", "", "", ""]),
        ("first", "", ["", "base", "base", "base"]),
        ("moved", "sft", ["sft", "", "", ""]),
        ("first", "sft", ["sft", "sft", "sft", "sft"]),
    ],
)
def test_the_reference_moves_or_stays(stages, kind, given, expected):
    found = stages(kind, reference={"source": given})
    phases = [stage for stage in found if stage.program != "pairs"]
    assert [stage.settings.reference.source for stage in phases] == expected


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        (({"objective": "reward"},), r"phases\.objective='reward' must be 'srpo', 'dpo'"),
        (({"objective": "srpo", "set": {"train.stepps": 1}},), r"'1-pairs': set: train\.stepps=1"),
    ],
)
def test_mistakes_are_found_before_anything_runs(stages, phases, said):
    with pytest.raises(UserError, match=said):
        stages(phases=phases)


def test_a_recipe_has_stages_of_its_own(stages):
    with pytest.raises(UserError, match=r"recipe\.stages has stages: --alternate makes its own"):
        stages(recipe={"stages": ({"name": "a"},)})

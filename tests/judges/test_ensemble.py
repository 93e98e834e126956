"""An ensemble of judges that say what they are told to."""

import dataclasses

import numpy as np
import pytest

from srpo_jax.data.documents import Document
from srpo_jax.judges import Estimate, Verdicts, validation
from srpo_jax.judges.ensemble import Ensemble
from srpo_jax.judges.validation import DAMAGES

NAN = float("nan")


@dataclasses.dataclass
class Says:
    name: str
    said: list[float]
    missing: dict[int, str] = dataclasses.field(default_factory=dict)
    is_proxy: bool = False
    description: str = ""

    def judge(self, prompts, a, b):
        return Verdicts(np.array(self.said), None, self.missing)

    def cost(self):
        return {"requests": 2, "price": 0.5} if self.is_proxy else {"requests": 1}

    def estimate(self, prompts, a, b):
        return Estimate(requests=3)


MEMBERS = (
    Says("one", [0.75, 1.0, 0.5, NAN, 0.75], {3: "refused"}),
    Says("two", [0.25, 1.0, 0.5, 1.0, NAN], is_proxy=True),
    Says("three", [1.0, 0.0, 0.25, NAN, 1.0], {3: "cut off"}),
)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean", [2 / 3, 2 / 3, 1.25 / 3]), ("majority", [1.0, 1.0, 0.0])],
)
def test_members_are_combined_where_all_have_a_verdict(combine, expected):
    said = Ensemble("several", MEMBERS, combine).judge(["x"] * 5, ["a"] * 5, ["b"] * 5)
    np.testing.assert_allclose(said.probabilities, [*expected, NAN, NAN], atol=1e-12)
    assert said.missing == {3: "one: refused", 4: "two: no verdict"}
    assert said.orders is None


def test_as_many_for_as_against_is_a_tie():
    halves = [Says("a", [1.0, 0.5]), Says("b", [0.25, 0.5])]
    said = Ensemble("several", halves, "majority").judge(["x"] * 2, ["a"] * 2, ["b"] * 2)
    assert said.probabilities.tolist() == [0.5, 0.5]


def test_its_check_is_that_of_its_members():
    """What one was fitted to is not held out, and only what is paid for is checked with less."""

    class Free:
        name, description, is_proxy = "free", "", True
        fitted_to = frozenset(["gold cut in half"])

        def judge(self, prompts, a, b):
            return Verdicts(np.ones(len(a)))

    golds = [
        Document(f"s/{i}", f"Words of {i}.", f"gold number {i}", "validation") for i in range(4)
    ]
    free = Ensemble("several", [Free(), Free()], "mean")
    checks = {check.damage: check for check in validation.validate(free, golds)}
    assert checks.keys() > validation.DAMAGES.keys()
    assert {name for name, check in checks.items() if not check.held_out} == {"gold cut in half"}
    assert validation.checked_by(Ensemble("several", [Free(), MEMBERS[0]], "mean")) == DAMAGES


def test_what_it_is_and_costs_is_what_its_members_are_and_cost():
    ensemble = Ensemble("several", MEMBERS, "mean")
    assert ensemble.is_proxy
    assert not Ensemble("several", MEMBERS[:1], "mean").is_proxy
    assert "the mean of one, two, three" in ensemble.description
    other = (*MEMBERS[:2], dataclasses.replace(MEMBERS[2], description="of another version"))
    assert Ensemble("several", other, "mean").description != ensemble.description
    assert Ensemble("several", MEMBERS, "mean").description == ensemble.description
    assert ensemble.cost() == {"requests": 4, "price": 0.5}
    assert ensemble.estimate([], [], []).requests == 9

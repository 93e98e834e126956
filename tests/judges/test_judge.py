"""What every judge of the table promises: swapped sides give exactly 1 - p, equal texts exactly 1/2."""

import numpy as np
import pytest

from srpo_jax import judges
from srpo_jax.data.documents import Document
from srpo_jax.data.records import Message
from srpo_jax.judges import JudgeSettings
from srpo_jax.judges.settings import NAMES
from tests.judges.endpoint import Endpoint, prefers_good

TEXTS = ("", "good", "a good one", "a longer one, that is not", "été " * 20)
TEXT = "What the text says."
CONVERSATION = (Message("user", "hello"), Message("assistant", "yes?"), Message("user", "a story"))
CASES = [
    pytest.param(name, {}, marks=pytest.mark.assets if name == "embedding" else ())
    for name in NAMES
    if name != "ensemble"
]
CASES += [
    pytest.param("ensemble", {"members": members, "combine": combine}, id=f"ensemble, {combine}")
    for combine, members in (
        ("mean", ("longer", "reward", "shorter")),
        ("majority", ("longer", "shannon", "llm")),
    )
]


@pytest.fixture
def endpoint():
    endpoint = Endpoint(prefers_good)
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.usefixtures("one_device")
def test_swapped_sides_give_one_minus_p(name, more, endpoint, request):
    used = (name, *more.get("members", ()))
    if "llm" in used:
        pytest.importorskip("openai")
        more |= {"base_url": endpoint.url, "model": "m", "api_key_env": "", "verdict": "text"}
    source = request.getfixturevalue("reward_model") if "reward" in used else "tiny"
    more |= {"source": str(source), "dtype": "float32", "batch_size": 10, "cache": ""}
    golds = [Document(str(i), x, "a good one") for i, x in enumerate((TEXT, CONVERSATION))]
    judge = judges.load(JudgeSettings(name, **more), documents=golds)
    a, b = [x for x in TEXTS for _ in TEXTS] * 2, list(TEXTS) * len(TEXTS) * 2
    xs = [TEXT] * 25 + [CONVERSATION] * 25
    forth, back = judge.judge(xs, a, b), judge.judge(xs, b, a)
    assert (back.probabilities == 1 - forth.probabilities).all()
    assert all(p == 0.5 for p, x, y in zip(forth.probabilities, a, b, strict=True) if x == y)
    assert len(set(forth.probabilities)) > 1
    assert forth.probabilities.dtype == np.float64
    assert not forth.missing
    assert judge.probabilities([], [], []).shape == (0,)

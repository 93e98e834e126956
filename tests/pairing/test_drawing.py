"""How the samples of a document are related, with a writer whose words are known."""

import types

import pytest

from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.pairing import drawing
from srpo_jax.prompts import Renderer
from srpo_jax.revision import Sampling
from srpo_jax.runtime.errors import UserError

DRAFT, NEW = "one two three four five six", "new words to the very end"
K = 6


@pytest.fixture
def drawn(monkeypatch):
    """draw(how) -> (the samples of one document, its cut ones, the prompts' texts by row)."""
    renderer = Renderer("plain", ByteTokenizer())
    asked = {}

    def write(branches):
        texts = []
        for branch in branches:
            row = branch.row
            asked[row] = renderer.tokenizer.decode(branch.ids)
            text = DRAFT if row % K == 0 else (" " if asked[row][-1:].isalpha() else "") + NEW
            texts.append(renderer.tokenizer.encode(text, continued=True))
        return texts

    trunks = types.SimpleNamespace(write=write)
    monkeypatch.setattr(drawing.Trunks, "of", lambda *arguments, **named: trunks)

    def draw(how):
        sampling = Sampling(max_new_tokens=len(NEW) + 1)
        sampler = drawing._Sampler(None, renderer, sampling, 0, K)
        (one,) = sampler.draw(how, [3], [renderer.prompt("the text")], ["a", "b", "c", "d"])
        assert one.id == "d"
        assert sorted(asked) == list(range(3 * K, 4 * K))
        assert one.texts[0] == DRAFT
        return types.SimpleNamespace(others=one.texts[1:], cut=one.cut, asked=asked)

    return draw


def test_endings_keep_a_beginning_and_write_the_rest_anew(drawn):
    words = DRAFT.split()
    found = drawn("endings")
    places = {len(text.split()) - len(NEW.split()) for text in found.others}
    assert len(places) > 2
    for text in found.others:
        kept = len(text.split()) - len(NEW.split())
        assert text == " ".join([*words[:kept], NEW])
        assert kept < len(words)
    # The model was asked for what comes behind the words that are kept.
    assert any(text.endswith("one two") or text.endswith("one") for text in found.asked.values())


def test_spans_are_written_anew_between_what_is_kept(drawn):
    words, new = DRAFT.split(), NEW.split()
    lengths = set()
    for text in drawn("spans").others:
        possible = {
            " ".join([*words[:kept], *new[:span], *words[kept + span :]]): span
            for kept in range(len(words))
            for span in range(1, drawing.SPAN + 1)
        }
        assert text in possible
        lengths.add(possible[text])
    assert len(lengths) > 1


def test_revisions_are_asked_for_with_the_draft_shown(drawn):
    found = drawn("revisions")
    assert set(found.others) == {NEW}
    assert all(DRAFT in found.asked[row] for row in range(3 * K + 1, 4 * K))
    assert DRAFT not in found.asked[3 * K]


def test_a_document_too_long_for_the_models_positions_is_named():
    prompt = Renderer("plain", ByteTokenizer()).prompt("the text")
    direct, shown = len(prompt.direct), len(prompt.improve([0] * 8))
    needs = {"answers": direct + 8, "revisions": shown + 8, "endings": direct + 16}
    for how, need in needs.items():
        drawing._check_lengths(how, ["a"], [prompt], 8, need)
        with pytest.raises(UserError, match=f"document 'b' needs {need} tokens"):
            drawing._check_lengths(how, ["b"], [prompt], 8, need - 1)


def test_samples_of_another_checkpoint_are_not_gone_on_with(tmp_path):
    """Of a run that was trained on while its sampling was interrupted: half would be another policy's."""
    path, header = tmp_path / "samples", {"model": {"source": "run"}, "seed": 0}
    drawing._begin(path, header | {"source": "run@1"}, ["a"])
    assert drawing._begin(path, header | {"source": "run@1"}, ["a"]) == 0
    with pytest.raises(UserError, match=r"other settings \(source: 'run@1'\): delete it"):
        drawing._begin(path, header | {"source": "run@2"}, ["a"])
    # Fewer rows at a time, after a run out of memory, draw the same.
    for rows in (64, 8):
        how = {"sampling": {"batch_size": rows, "refill": 1 / rows}, "source": "run"}
        assert drawing._begin(tmp_path / "rows", header | how, ["a"]) == 0
    older = tmp_path / "older"
    drawing._begin(older, header, ["a"])
    assert drawing._begin(older, header | {"source": "run@2"}, ["a"]) == 0
    with pytest.raises(UserError, match=r"other settings \(seed: 0\)"):
        drawing._begin(older, header | {"seed": 1}, ["a"])

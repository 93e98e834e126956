"""Models in and out: what was imported is exported bit for bit, and what is wrong is named."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from srpo_jax import config as config_module
from srpo_jax import convert, train
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.models import export, loading, tensor_digests
from srpo_jax.models.huggingface import INDEX, SINGLE
from srpo_jax.runtime.errors import UserError
from tests.checkpoints import CASES, save, save_tokenizer, save_with_vision
from tests.prompts.checkpoints import with_flags

NEEDS_DEV = "the yardstick is an extra: install srpo_jax[dev] to run this test"
torch = pytest.importorskip("torch", reason=NEEDS_DEV)
transformers = pytest.importorskip("transformers", reason=NEEDS_DEV)
IDS = [[5, 80, 90, 7, 100, 33, 200, 41]]


def tensors(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


def logits(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def checkpoint(directory, name="llama", **options):
    save(name, directory, **options)
    save_tokenizer(directory)
    return directory


# One of each kind; the others differ from one of them in what is computed, not in what is stored.
VARIANTS = ("3.1", "windows", "seq", "longrope", "yarn", "odd", "granite", "olmo3", "cohere2")
STORED = [name for name in CASES if not any(variant in name for variant in VARIANTS)]
# One tensor a projection, several in one, in one for each head, and one for each expert.
UNLIKE = ("llama", "phi3", "gpt-neox", "qwen3-moe")


@pytest.mark.parametrize(
    "name", [n if n in UNLIKE else pytest.param(n, marks=pytest.mark.slow) for n in STORED]
)
def test_a_round_trip_is_exact_in_the_stored_dtype(name, tmp_path):
    given = checkpoint(tmp_path / "given", name, dtype="bfloat16")
    convert.import_model(str(given), tmp_path / "here", fsdp=4, tensor=2)
    convert.export_model(str(tmp_path / "here"), tmp_path / "back")
    before, after = tensors(given), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype == "bfloat16"
        np.testing.assert_array_equal(value.view(np.uint16), after[key].view(np.uint16), key)
    np.testing.assert_array_equal(logits(tmp_path / "back"), logits(given))
    for file in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (given / file).read_bytes()
    said, had = (
        json.loads((p / "tokenizer_config.json").read_text()) for p in (tmp_path / "back", given)
    )
    assert said | had == said  # and more: which class reads tokenizer.json


@pytest.mark.parametrize("names", ["as transformers saves", "as in memory"])
def test_of_a_model_that_sees_pictures_the_language_model_is_taken(names, tmp_path, capsys):
    given = tmp_path / "given"
    there = save_with_vision(given)
    save_tokenizer(given)
    if names == "as in memory":
        held = {name: value.numpy() for name, value in there.state_dict().items()}
        del held["lm_head.weight"]
        safetensors.numpy.save_file(held, given / SINGLE)
    with torch.no_grad():
        expected = there(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(ours(given), expected, atol=2e-4)
    convert.export_model(str(given), tmp_path / "alone")
    assert "tensors of its vision part are left out" in capsys.readouterr().out
    assert not [name for name in tensors(tmp_path / "alone") if "vision" in name]
    np.testing.assert_allclose(logits(tmp_path / "alone"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_read_as_transformers_has_them_in_memory_too(name, tmp_path):
    """All experts of a layer one tensor; exported as published, each one of its own."""
    there = save(name, tmp_path / "given")
    save_tokenizer(tmp_path / "given")
    published = tensors(tmp_path / "given")
    held = {key: value.numpy() for key, value in there.state_dict().items()}
    safetensors.numpy.save_file(held, tmp_path / "given" / SINGLE)
    assert len(held) < len(published)
    convert.export_model(str(tmp_path / "given"), tmp_path / "back")
    again = tensors(tmp_path / "back")
    assert published.keys() == again.keys()
    for key, value in published.items():
        np.testing.assert_array_equal(value, again[key], key)
    found = convert.check(str(tmp_path / "back"), None)
    assert f"builds a model of the same {len(held)} tensors" in found[-1]


def test_several_files_with_an_index_hold_the_same(tmp_path):
    given = checkpoint(tmp_path / "given")
    convert.export_model(str(given), tmp_path / "parts", file_bytes=60_000)
    assert (tmp_path / "parts" / INDEX).is_file()
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    convert.export_model(str(tmp_path / "parts"), tmp_path / "again")
    np.testing.assert_array_equal(logits(tmp_path / "again"), logits(given))


def test_a_bit_that_flips_in_an_export_is_found_when_it_is_read(tmp_path):
    convert.export_model(str(checkpoint(tmp_path / "given")), tmp_path / "out")
    path, rng = tmp_path / "out" / SINGLE, np.random.default_rng(0)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in rng.integers(header, len(content), 20):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"safetensors: '.*' has other bits than were exp"):
            convert.import_model(str(tmp_path / "out"), tmp_path / "again")
    path.write_bytes(content)
    convert.import_model(str(tmp_path / "out"), tmp_path / "again")
    # Who changes the weights takes the digests away.
    rewrite(path, lambda held: held.update({"model.norm.weight": held["model.norm.weight"] + 1}))
    (tmp_path / "out" / tensor_digests.FILE).unlink()
    convert.import_model(str(tmp_path / "out"), tmp_path / "changed")


@pytest.fixture(scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        make = convert.mesh_module.make
        patch.setattr(
            convert.mesh_module,
            "make",
            lambda *a, **k: make(*a, **{**k, "devices": jax.devices()[:1]}),
        )
        yield


def trained(tmp_path, name, one_device, **changes):
    """A run of two steps on the family, and its workdir."""
    source = checkpoint(tmp_path / "source", name)
    pairs = [Pair(f"{i} and {i}?", f"{2 * i}", "no way") for i in range(4)]
    records.write_pairs(tmp_path / "pairs.jsonl", pairs)
    config = config_module.default()
    config.model.update({"source": str(source), "dtype": "float32", "remat": "none"})
    config.data.update({"pairs": str(tmp_path / "pairs.jsonl"), "template": "dialogue"})
    config.train.update({"steps": 2, "batch_size": 2, "checkpoint_every": 2})
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0})
    config_module.update(config, changes, "test")
    assert train.train(config_module.checked(config), tmp_path / "run")
    return source, tmp_path / "run"


def ours(path):
    model = loading.load(str(path), "float32")
    size = len(IDS[0])
    mask = jnp.tril(jnp.ones((1, size, size), bool))
    return np.asarray(model.logits(model(np.array(IDS, np.int32), np.arange(size)[None], mask)))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        pytest.param("phi3", marks=pytest.mark.slow),
        pytest.param("gpt-neox", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_what_was_trained_is_what_transformers_and_peft_load(name, rank, tmp_path, one_device):
    """phi3 and gpt-neox store several projections as one tensor, and so does their adapter."""
    changes = {"lora": {"rank": rank, "targets": ("query", "value", "gate|up", "down")}}
    source, run = trained(tmp_path, name, one_device, **changes)
    convert.export_model(str(run), tmp_path / "whole")
    expected = ours(run)
    assert np.abs(expected - logits(source)).max() > 0.01
    np.testing.assert_allclose(logits(tmp_path / "whole"), expected, atol=2e-4)
    if name == "llama":
        needs_its_source(run, source, tmp_path, rank)
    if not rank:
        with pytest.raises(UserError, match="there is no adapter to export"):
            convert.export_model(str(run), tmp_path / "adapter", adapter=True)
        return
    peft = pytest.importorskip("peft", reason="peft is an extra: install srpo_jax[bench]")
    convert.export_model(str(run), tmp_path / "adapter", adapter=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        adapted = model(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(adapted, expected, atol=2e-4)


@pytest.mark.slow
def test_experts_are_trained_and_their_adapters_merged_for_transformers(tmp_path, one_device):
    lora = {"rank": 3, "targets": ("query", "gate|up", "down")}
    changes = {"lora": lora, "train": {"router_loss": 0.01}}
    source, run = trained(tmp_path, "mixtral", one_device, **changes)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines if "router_loss" in line]
    assert said
    assert all(1.0 < line["router_loss"] < 4.0 for line in said)
    convert.export_model(str(run), tmp_path / "whole")
    expected = ours(run)
    assert np.abs(expected - logits(source)).max() > 0.01
    np.testing.assert_allclose(logits(tmp_path / "whole"), expected, atol=2e-4)
    with pytest.raises(UserError, match=r"of routed experts too, .*export the whole model"):
        convert.export_model(str(run), tmp_path / "adapter", adapter=True)


def needs_its_source(run, source, tmp_path, rank):
    """A run is exported without what it was begun from, unless its weights are partly there."""
    source.rename(tmp_path / "away")
    if rank:
        message = "holds only what was trained, and the rest is not where it was"
        with pytest.raises(UserError, match=message):
            convert.export_model(str(run), tmp_path / "alone")
    else:
        convert.export_model(str(run), tmp_path / "alone")
        whole, alone = (
            {p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("whole", "alone")
        )
        assert whole == alone
    (tmp_path / "away").rename(source)


def test_an_adapter_on_another_run_is_refused(tmp_path, one_device):
    lora = {"rank": 2, "targets": ("query",)}
    _, run = trained(tmp_path, "llama", one_device, lora=lora)
    first = config_module.read(run / "config.json")
    second = dataclasses.replace(first, model=dataclasses.replace(first.model, source=str(run)))
    assert train.train(second, tmp_path / "second")
    with pytest.raises(UserError, match=r"its adapter belongs to the run .*export the whole model"):
        convert.export_model(str(tmp_path / "second"), tmp_path / "adapter", adapter=True)
    convert.export_model(str(tmp_path / "second"), tmp_path / "whole")
    expected = ours(tmp_path / "second")
    np.testing.assert_allclose(logits(tmp_path / "whole"), expected, atol=2e-4)
    assert not (tmp_path / "adapter").exists()


def test_check_proves_the_export_before_the_training(tmp_path):
    given = checkpoint(tmp_path / "given", "gemma2")
    found = convert.check(str(given), tmp_path / "out")
    assert any("builds a model of the same" in sentence for sentence in found)
    assert not (tmp_path / "out").exists()
    content = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"layer_types has 4 entries for 5 layers"):
        convert.check(str(given), None)


def rewrite(path, change):
    held = safetensors.numpy.load_file(path)
    change(held)
    safetensors.numpy.save_file(held, path)


def no_config(directory):
    (directory / "config.json").unlink()


def cut_off(directory):
    path = directory / SINGLE
    path.write_bytes(path.read_bytes()[:-100])


def missing_tensor(directory):
    rewrite(directory / SINGLE, lambda held: held.pop("model.layers.1.mlp.up_proj.weight"))


def extra_tensor(directory):
    extra = {"model.layers.0.mlp.router.weight": np.zeros((2, 2), np.float32)}
    rewrite(directory / SINGLE, lambda held: held.update(extra))


def wrong_shape(directory):
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(directory / SINGLE, lambda held: held.update({name: held[name][:-1].copy()}))


def other_architecture(directory):
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | {"model_type": "mamba"}))


def no_weights(directory):
    (directory / SINGLE).unlink()


def no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


def larger_tokenizer(directory):
    definition = json.loads((directory / "tokenizer.json").read_text())
    definition["model"]["vocab"] |= {f"<{i}>": i for i in range(263, 303)}
    (directory / "tokenizer.json").write_text(json.dumps(definition))


def unknown_eos(directory):
    save_tokenizer(directory, eos_token="<nowhere>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"config\.json is missing: not the workdir of a run, nor a model"),
        (cut_off, r"model\.safetensors is cut off or no safetensors"),
        (missing_tensor, r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (extra_tensor, r"has no model\.layers\.0\.mlp\.router\.weight"),
        (wrong_shape, r"k_proj\.weight has the shape \(23, 48\), not \(24, 48\)"),
        (other_architecture, r"holds a model of the kind 'mamba'; known are llama"),
        (no_weights, r"model\.safetensors is missing"),
        (no_tokenizer, r"has neither tokenizer\.json nor tokenizer\.model"),
        (larger_tokenizer, r"the tokenizer has 303 tokens, more than the 300 of"),
        (unknown_eos, r"its tokenizer has no token '<nowhere>', the eos_token"),
    ],
)
def test_one_sentence_and_nothing_half_written(damage, message, tmp_path):
    given = checkpoint(tmp_path / "given")
    damage(given)
    for action in (convert.import_model, convert.export_model):
        with pytest.raises(UserError, match=message):
            action(str(given), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_an_output_that_is_there_is_left_alone(tmp_path):
    given = checkpoint(tmp_path / "given")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for action in (convert.import_model, convert.export_model):
        with pytest.raises(UserError, match="is there already"):
            action(str(given), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(tmp_path / "out")


def test_an_output_below_a_file_is_refused_before_anything_is_read(tmp_path):
    """--check called it good: it had looked at the disk space of the folder above."""
    (tmp_path / "file").write_text("")
    for action in (convert.import_model, convert.export_model, convert.check):
        with pytest.raises(UserError, match=r"--output=.*file is no folder"):
            action("no model", tmp_path / "file" / "x")


def test_code_that_came_with_a_model_is_not_named_by_its_export(tmp_path):
    """Its tensors are those of transformers' own class, which then loads it."""
    given = checkpoint(tmp_path / "given")
    for name, kind in (
        ("config.json", "AutoModelForCausalLM"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ):
        content = json.loads((given / name).read_text())
        content["auto_map"] = {kind: "modeling_theirs.Theirs"}
        (given / name).write_text(json.dumps(content))
    convert.export_model(str(given), tmp_path / "out")
    for load in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        load.from_pretrained(tmp_path / "out", trust_remote_code=True)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPT2Tokenizer", None])
def test_transformers_reads_the_exported_tokenizer_as_it_stands(kind, tmp_path):
    """Of many classes it takes the vocabulary alone, and cuts words, or adds spaces, in its own way."""
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    out.mkdir()
    (given / "tokenizer.json").write_text(with_flags("prepended"))
    settings = {"eos_token": "</s>", "bos_token": "<s>", "legacy": False}
    (given / "tokenizer_config.json").write_text(
        json.dumps(settings | ({"tokenizer_class": kind} if kind else {}))
    )
    export.tokenizer_files(out, given)
    (out / "config.json").write_text('{"model_type": "gemma2"}')
    ours = read_tokenizer(given)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.model_input_names == ["input_ids", "attention_mask"]
    for text in ("<s>[INST] Hi [/INST]", "Hi</s>Hi", "<think>Hi", "  Hi  Yo"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text, special=True), text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_of_two_exports_to_one_folder_the_second_is_refused(tmp_path):
    given = checkpoint(tmp_path / "given")
    with export.all_or_nothing(tmp_path / "out") as part:
        (part / "first").write_text("hours of work")
        for action in (convert.import_model, convert.export_model):
            with pytest.raises(UserError, match=r"another process is writing .*out: wait for it"):
                action(str(given), tmp_path / "out")
    assert (tmp_path / "out" / "first").read_text() == "hours of work"
    (tmp_path / "next.part").mkdir()
    (tmp_path / "next.part" / "left").write_text("by one that was killed")
    with export.all_or_nothing(tmp_path / "next") as part:
        (part / "second").write_text("")
    assert [path.name for path in (tmp_path / "next").iterdir()] == ["second"]


def test_ids_that_transformers_may_not_give_are_told(tmp_path):
    given = checkpoint(tmp_path / "given")
    opened = loading.open_source(str(given))
    assert convert._other_ids(opened) is None
    (given / "tokenizer.json").rename(given / "tokenizer.model")
    assert "the ids here are SentencePiece's own" in convert._other_ids(opened)

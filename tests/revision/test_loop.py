"""The jitted revision loop against a plain loop without cache, padding or batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax import revision
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models.architecture import LayerKind
from srpo_jax.models.decoder import Cache, Decoder, DecoderConfig
from srpo_jax.planning import hlo_cost
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.revision import Sampling, Spent, loop, plan, pool
from srpo_jax.revision.engine import Engine
from srpo_jax.revision.prompt_arrays import PromptArrays, Shown
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

CONFIG = DecoderConfig(
    vocab_size=14,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    max_length=96,
)
EOS = 2
PROMPTS = [
    Prompt((3, 4, 5, 6), (3, 4, 5, 7, 8), (9, 10)),
    Prompt((3, 11, 12, 4, 5, 6, 6), (3, 11, 12, 4, 7), (9,)),
    Prompt((5, 6), (5, 7, 7, 7), (10, 10, 10)),
    Prompt((3, 4, 4), (3, 4, 4, 4), (9, 10)),  # the direct prompt is a prefix of the improve prompt
    Prompt((8, 3), (4, 4), (9,)),  # nothing is shared
]


@pytest.fixture(scope="module")
def model():
    graphdef, state = nnx.split(Decoder(CONFIG, nnx.Rngs(0)))
    # Larger weights than the initialisation's: completions of different lengths, some without end.
    return nnx.merge(graphdef, jax.tree.map(lambda x: 3 * x, state))


@jax.jit
def next_logits(model, ids, length):
    mask = jnp.tril(jnp.ones((1, len(ids), len(ids)), bool))
    return model.logits(model(ids[None], jnp.arange(len(ids))[None], mask))[0, length - 1]


def plain(model, prompt, revisions, new):
    """What revise is to do, in Python: all of a row again for each token."""

    def write(context):
        y = []
        while len(y) < new:
            ids = np.zeros(96, np.int32)
            ids[: len(context) + len(y)] = [*context, *y]
            token = int(next_logits(model, jnp.array(ids), len(context) + len(y)).argmax())
            if token == EOS:
                break
            y.append(token)
        return y

    ys = [write(prompt.direct)]
    for _ in range(revisions):
        ys.append(write(prompt.improve(ys[-1])))
    return ys


@pytest.mark.parametrize("batch_size", [2, 8])
def test_greedy_equals_the_plain_loop_token_by_token(model, batch_size):
    sampling = Sampling(max_new_tokens=6, batch_size=batch_size)
    got = revision.revise_ids(model, PROMPTS, 3, sampling, eos=EOS)
    want = [plain(model, prompt, 3, 6) for prompt in PROMPTS]
    assert got == want
    lengths = {len(y) for row in want for y in row}
    assert len(lengths) > 2, "the test model should write completions of several lengths"
    assert len({tuple(y) for row in want for y in row}) > 5


# One shape for all of `many`: three programs instead of twelve.
SHAPE = (plan.Shape(40, 16),)


def many(count=24):
    """Of several lengths; every other improve prompt begins with the whole direct one."""
    rng = np.random.default_rng(0)
    given = []
    for n in rng.integers(2, 40, count):
        x = tuple(map(int, rng.integers(3, 14, n)))
        given.append(Prompt(x, x if n % 2 else (*x[:-1], 3), (9, 10)))
    return given


@pytest.fixture(scope="module")
def together(model):
    """What all of `many` write in one batch in which no row is refilled: greedily, and drawn."""
    return {
        temperature: revision.revise_ids(
            *(model, many(), 2, Sampling(7, temperature, batch_size=24, refill=1)),
            **{"eos": EOS, "seed": 3, "foreseen": SHAPE},
        )
        for temperature in (0.0, 1.0)
    }


def test_many_prompts_equal_the_plain_loop(model, together):
    assert together[0.0] == [plain(model, prompt, 2, 7) for prompt in many()]


SLOW = [pytest.param(6, part, marks=pytest.mark.slow) for part in (0.5, 1.0)]


@pytest.mark.parametrize(("rows", "refill"), [(4, 0.25), (3, 0.8), *SLOW])
def test_rows_are_refilled_and_nothing_else_changes(model, together, rows, refill):
    for temperature, want in together.items():
        sampling = Sampling(7, temperature, batch_size=rows, refill=refill)
        args = model, many(), 2, sampling
        assert revision.revise_ids(*args, eos=EOS, seed=3, foreseen=SHAPE) == want


def test_prompts_are_given_back_as_they_are_done(model, together):
    sampling = Sampling(7, batch_size=4)
    order = list(revision.revising(model, many(), 2, sampling, eos=EOS, foreseen=SHAPE))
    assert sorted(i for i, _ in order) == list(range(24))
    assert [i for i, _ in order] != sorted(i for i, _ in order)
    assert all(ys == together[0.0][i] for i, ys in order)


def test_one_set_of_programs_serves_any_number_of_revisions(model):
    sampling = Sampling(max_new_tokens=6, batch_size=8)
    three = (pool.answer, pool.improve, pool.decode)
    revision.revise_ids(model, PROMPTS, 1, sampling, eos=EOS)
    compiled = [program._cache_size() for program in three]
    five = revision.revise_ids(model, PROMPTS, 5, sampling, eos=EOS)
    assert [program._cache_size() for program in three] == compiled
    one = revision.revise_ids(model, PROMPTS, 1, sampling, eos=EOS)
    assert [row[:2] for row in five] == one, "later revisions must not change the earlier ones"


def test_many_lengths_compile_at_most_twelve_programs(model):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 70, 60)
    tails = rng.integers(1, 9, 60)
    given = [
        Prompt((3,) * n, (*(3,) * n, 4), (9,) * k) for n, k in zip(lengths, tails, strict=True)
    ]
    sampling = Sampling(max_new_tokens=3, batch_size=3)
    three = (pool.answer, pool.improve, pool.decode)
    before = sum(program._cache_size() for program in three)
    revision.revise_ids(model, given, 1, sampling, eos=EOS)
    assert sum(program._cache_size() for program in three) - before <= 12


def test_prompts_are_prefilled_with_the_attention_of_the_config(model):
    graphdef, state = nnx.split(model)
    blockwise = nnx.merge(graphdef, state)
    config = dataclasses.replace(CONFIG, attention="blockwise")
    blockwise.config = config
    sampling = Sampling(max_new_tokens=4)
    got = revision.revise_ids(blockwise, PROMPTS, 1, sampling, eos=EOS)
    assert got == revision.revise_ids(model, PROMPTS, 1, sampling, eos=EOS)


def test_the_time_taken_is_told_apart(model):
    spent = revision.Spent()
    revision.revise_ids(model, PROMPTS[:2], 1, Sampling(max_new_tokens=4), eos=EOS, spent=spent)
    assert spent.prefill > 0
    assert spent.decode > 0
    assert str(revision.Spent(1.0, 3.0)) == "25% of 4 s in prefill, 75% in decode"


def test_no_revisions_is_plain_sampling(model):
    got = revision.revise_ids(model, PROMPTS[:2], 0, Sampling(max_new_tokens=4), eos=EOS)
    assert got == [plain(model, prompt, 0, 4) for prompt in PROMPTS[:2]]


def test_what_is_drawn_depends_on_seed_and_row_alone(model):
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=0.9, batch_size=8)
    together = revision.revise_ids(model, PROMPTS, 2, sampling, eos=EOS, seed=1)
    pairs = dataclasses.replace(sampling, batch_size=2)
    assert revision.revise_ids(model, PROMPTS, 2, pairs, eos=EOS, seed=1) == together
    assert revision.revise_ids(model, PROMPTS, 2, sampling, eos=EOS, seed=2) != together


def test_samples_follow_the_model(model):
    """First tokens drawn 2,000 times against the exact distribution, tempered, cut at top_p."""
    prompt, n = PROMPTS[0], 2000
    sampling = Sampling(max_new_tokens=1, temperature=0.7, top_p=0.8, batch_size=n)
    drawn = revision.revise_ids(model, [prompt] * n, 0, sampling, eos=EOS)
    counts = np.bincount([y[0][0] if y[0] else EOS for y in drawn], minlength=CONFIG.vocab_size)
    ids = jnp.zeros(96, jnp.int32).at[: len(prompt.direct)].set(jnp.array(prompt.direct))
    p = np.array(jax.nn.softmax(next_logits(model, ids, len(prompt.direct)) / 0.7), np.float64)
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.8)) + 1]
    exact = np.zeros_like(p)
    exact[kept] = p[kept] / p[kept].sum()
    assert counts[exact == 0].sum() == 0
    # five standard deviations of a binomial
    assert (np.abs(counts / n - exact) <= 5 * np.sqrt(exact * (1 - exact) / n)).all()


def test_a_prompt_too_long_for_the_models_positions_is_refused(model):
    long = Prompt((3,) * 90, (3,) * 91, (9,))
    with pytest.raises(UserError, match="prompt 1 needs"):
        revision.revise_ids(model, [PROMPTS[0], long], 1, Sampling(max_new_tokens=8), eos=EOS)


def test_without_revisions_only_the_answer_must_fit(model):
    long, sampling = Prompt((3,) * 90, (3,) * 91, (9,)), Sampling(max_new_tokens=6)
    assert long.room(6) + 6 > CONFIG.max_length == len(long.direct) + 6
    (ys,) = revision.revise_ids(model, [long], 0, sampling, eos=EOS)
    assert ys == plain(model, long, 0, 6)


@pytest.mark.parametrize(
    "bad", [{"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1.0}, {"max_new_tokens": 0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)


# More devices in a tensor group than there are key heads.
WIDE = pytest.param({"tensor": 4, "rules": ("vocab=None",)}, marks=pytest.mark.slow)


@pytest.mark.parametrize("layout", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, WIDE])
def test_a_mesh_changes_nothing_and_each_program_is_compiled_once(model, together, layout):
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(**layout, devices=jax.devices()[:4])
    sharded = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))
    sampling = Sampling(7, 1.0, batch_size=8, refill=0.5)
    three = (pool.answer, pool.improve, pool.decode)
    before = [program._cache_size() for program in three]
    args = nnx.merge(graphdef, sharded), many(), 2, sampling
    got = revision.revise_ids(*args, eos=EOS, seed=3, foreseen=SHAPE)
    assert got == together[1.0]
    # On `tensor` alone JAX says of what is whole that it lies along `fsdp`, of one device: see `named_as`.
    made = [program._cache_size() - n for program, n in zip(three, before, strict=True)]
    assert made == [1, 1, 1]


def test_on_a_mesh_of_one_device_each_program_is_compiled_once(model, caplog):
    """What a model that was loaded lies on: its arrays are described otherwise than fresh ones."""
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(devices=jax.devices()[:1])
    placed = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))
    sampling = Sampling(5, 1.0, batch_size=4, refill=0.5)
    with jax.log_compiles():
        revision.revise_ids(
            nnx.merge(graphdef, placed), many(), 2, sampling, eos=EOS, foreseen=SHAPE
        )
    done = [text for text in caplog.messages if text.startswith("Finished XLA compilation")]
    for name in ("answer", "improve", "decode"):
        assert sum(f"jit({name})" in text for text in done) == 1, name


def test_a_row_that_is_refilled_stays_on_its_devices(model):
    """What is sent between devices is the layers' own; nothing of it has the slots of a cache."""
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(devices=jax.devices()[:4])
    sharded = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))
    engine = Engine.of(nnx.merge(graphdef, sharded), Sampling(7, batch_size=16), (EOS,), Spent())
    shape = plan.Shape(40, 16)
    prompts, shown = PromptArrays.of(many()), Shown(np.full((4, 7), 5), np.full(4, 2))
    rows = shape.improve(prompts, np.arange(4), shown)
    begun = plan.start(rows, np.zeros((4, 2), np.uint32), [1] * 4)
    given = engine._placed((rows, begun, np.zeros((4, 1), np.int32)))
    whole = pool.empty(engine.model, 16, shape, engine.settings["sampling"])
    text = pool.improve.lower(engine.model, whole, *given, **engine.settings).compile().as_text()
    computations = hlo_cost.parse(text).computations.values()
    sent = [at for one in computations for at in one.values() if at.collective]
    assert sent
    slots = sum(shape)
    assert not [at.name for at in sent if any(slots in dims for _, dims in at.shapes)]


def test_layers_with_a_window_know_the_positions_of_refilled_rows():
    kinds = (LayerKind(window=6), LayerKind())
    config = dataclasses.replace(CONFIG, layer_kinds=kinds)
    graphdef, state = nnx.split(Decoder(config, nnx.Rngs(0)))
    windowed = nnx.merge(graphdef, jax.tree.map(lambda x: 3 * x, state))
    whole = Sampling(7, 1.0, batch_size=24, refill=1)
    given = {"eos": EOS, "seed": 3, "foreseen": SHAPE}
    want = revision.revise_ids(windowed, many(), 2, whole, **given)
    few = Sampling(7, 1.0, batch_size=4, refill=0.5)
    assert revision.revise_ids(windowed, many(), 2, few, **given) == want
    assert revision.revise_ids(windowed, many()[:1], 2, few, **given) == want[:1]


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_cache_is_split_over_rows_and_heads(unrolled):
    mesh = mesh_module.make(fsdp=2, tensor=2, devices=jax.devices()[:4])

    def make():
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return Cache.zeros(CONFIG, 4, 16, unrolled)

    with jax.set_mesh(mesh):
        cache = jax.jit(make)()
    shapes = {part.addressable_shards[0].data.shape[-4:] for part in jax.tree.leaves(cache)}
    assert shapes == {(2, 1, 8, 16), (2, 1, 16, 8)}


def test_texts_end_where_the_chat_template_ends_an_answer(monkeypatch):
    """As a base model's does that has learned to chat: its tokenizer ends a text with another token."""

    class OfBase(ByteTokenizer):
        eos_id, stop_ids = 0, (0,)

    prompt = Renderer("chat", OfBase()).prompt("x")
    assert prompt.stops == (2, 0)
    ends = []
    monkeypatch.setattr(loop, "revise_ids", lambda *_, eos, **__: ends.append(eos) or [[[68, 69]]])
    assert revision.revise(None, OfBase(), [prompt], 0, Sampling()) == [["AB"]]
    plain = Renderer("plain", OfBase()).prompt("x")
    revision.revise(None, OfBase(), [plain], 0, Sampling())
    revision.revise(None, OfBase(), [PROMPTS[0]], 0, Sampling())
    assert ends == [(2, 0), (0,), (0,)]


def test_a_process_puts_together_the_prompts_of_its_own_devices_alone(model, monkeypatch):
    """The second of four parts, as a process of four would have it."""
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(devices=jax.devices()[:4])
    sharded = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))
    engine = Engine.of(nnx.merge(graphdef, sharded), Sampling(7, batch_size=8), (EOS,), Spent())
    monkeypatch.setattr(mesh_module, "own_parts", lambda mesh: np.array([1]))
    own = engine.pool(plan.Shape(40, 16), PromptArrays.of(many()), np.zeros((24, 2), np.uint32), 8)
    given = []
    monkeypatch.setattr(own, "_put", lambda program, rows, *_: given.append(rows))
    own.answer(np.arange(10, 14), np.array([1, 2, 4, 7]))
    (rows,) = given
    (prompt,) = rows.tokens
    assert tuple(prompt[: rows.counts[0]]) == many()[11].direct

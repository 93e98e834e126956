"""The online baselines of the revision task: reward, equal compute, and that they are part of the plan."""

import jax
import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory.revision_task import compute, network, online
from srpo_jax.theory.revision_task.cells import METHODS, Store
from srpo_jax.theory.revision_task.desk import EOS, FIRST_SYMBOL, LETTERS, WRITERS, Desk
from srpo_jax.theory.revision_task.exact import Table
from srpo_jax.theory.revision_task.network import Recipe
from srpo_jax.theory.revision_task.plan import Plan, selected, shown, tried_at_equal_kl
from srpo_jax.trees.completions import Completions

SMALL = Recipe(
    width=16, sft_examples=60, sft_steps=4, sft_batch=8, pairs=12, steps=4, batch=4, layers=1
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    pass


# --- the reward -----------------------------------------------------------------------------------


def completions_of(answers, room):
    """Of one prompt; an answer shorter than the room has its end."""
    ended = [[*answer, EOS][:room] for answer in answers]
    tokens = np.array([[*ids, *[EOS] * (room - len(ids))] for ids in ended], np.int32)
    lengths = np.array([[len(ids) for ids in ended]], np.int32)
    zeros = np.zeros((1, *tokens.shape), np.float32)
    return Completions(tokens[None], lengths, zeros, lengths < room)


def test_the_reward_rises_with_right_letters_and_falls_with_a_wrong_length():
    desk = Desk(places=3)
    symbols = np.full((1, 3), FIRST_SYMBOL)
    right = int(desk.letters(symbols)[0, 0])
    wrong = (right + 1) % LETTERS
    answers = [[right] * 3, [right, right, wrong], [wrong] * 3, [right] * 2, [right] * 5]
    found = online.rewards(desk, symbols, completions_of(answers, 5))[0]
    # Right places less excess, from what the reference writer has on average; in units of temperature.
    usual = 3 * WRITERS["reference"][0]
    np.testing.assert_allclose(found, (np.array([3, 2, 0, 1, 1]) - usual) / desk.temperature)


def test_the_score_gives_the_preference_and_the_circle_has_none():
    desk, rng = Desk(places=3), np.random.default_rng(0)
    symbols = desk.draw(20, "in", rng)
    a, b = (desk.write(symbols, "A", rng).tolist() for _ in range(2))
    a[0] = a[0][:2]  # too short
    tallies, excess = desk.tallies(symbols, a)
    others, _ = desk.tallies(symbols, b)
    chance = np.diag(desk.preferred(tallies, others, excess))
    odds = desk.scores(symbols, a) - desk.scores(symbols, b)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), chance)
    with pytest.raises(UserError, match="no score gives the preference 'cycle'"):
        Desk(places=3, preference="cycle").scores(symbols, a)


@pytest.mark.parametrize("method", ["rloo", "ppo"])
def test_the_rewards_optimum_is_the_closed_form_beside_it(method):
    table = Table.of(Desk(places=3))
    score = table.tallies[:, 0] / table.desk.temperature
    for beta in METHODS[method].betas:
        weights = table.reference * np.exp(score / beta)
        closed = table.solve(METHODS[method].closed_form, beta).direct
        np.testing.assert_allclose(weights / weights.sum(), closed, atol=1e-6)


# --- equal compute --------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["rloo", "ppo"])
def test_rounds_cost_what_srpos_training_costs(objective):
    whole, each = compute.of_srpo(Desk(), SMALL), compute.of_round(objective, Desk(), SMALL)
    rounds = compute.rounds(objective, Desk(), SMALL)
    assert rounds * sum(each) <= whole < (rounds + 1) * sum(each)

    # By hand: 2 for each number of each matrix, and as much for attention as its tokens say.
    config, desk = SMALL.architecture(), Desk()
    block = 4 * config.width**2 + 3 * config.width * config.mlp_width
    prompt, answers = desk.places + 1, 4 * (desk.places + 2)
    prefill = SMALL.batch * 2 * block * prompt
    decode = SMALL.batch * 2 * (block + config.width * config.vocab_size) * answers
    assert prefill < each.writing < 2 * (prefill + decode)
    scores = SMALL.batch * 2 * block * (prompt + answers)
    assert 2 * scores < each.scoring < 4 * scores
    # A gradient is two more passes; its parts that nobody needs are not counted.
    epochs = online.SETTINGS[objective].epochs
    assert 2.5 < each.learning / (each.scoring / 2) / epochs < 3.5


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["rloo", "ppo"])
def test_training_changes_the_policy_alone(objective):
    start = network.drawn(SMALL, 0)
    before = jax.device_get(start.trained)
    model, metrics = online.train(start, objective, Desk(), SMALL, 0.5, seed=1, rounds=2)
    assert metrics["reward"].shape == (2,)
    assert metrics["kl"][0] == pytest.approx(0.0, abs=1e-5)
    assert metrics["rollout_gap"].max() < 1e-4
    kept = jax.device_get(start.trained)
    jax.tree.map(np.testing.assert_array_equal, before, kept)  # what is donated is a copy
    assert jax.tree.structure(model.trained) == jax.tree.structure(start.trained)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), model.trained, start.trained)
    assert max(jax.tree.leaves(moved)) > 0


def test_prompts_are_those_of_the_pairs():
    pairs = network.labelled_pairs(Desk(), SMALL, "B", 3).symbols
    drawn = online._prompts(Desk(), SMALL, 3, rounds=6)  # two epochs
    assert drawn.shape == (6, SMALL.batch, Desk().places)
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(map(tuple, epoch.reshape(-1, 6))) == sorted(map(tuple, pairs))


# --- the plan -------------------------------------------------------------------------------------


def test_they_are_selected_by_the_same_rule_and_shown(tmp_path):
    plan = Plan(seeds=(1,), validation_seeds=(8,), methods=("rloo", "ppo"), recipe=SMALL)
    store = Store(tmp_path)
    for method in plan.methods:
        for beta, last in zip(plan.betas(method), (10.0, 30.0, 20.0, 5.0), strict=True):
            (cell,) = plan.validation(method, beta)
            rates = [50.0 - beta, 0, 0, 0, 0, last]
            store.add({"digest": cell.digest, "in": {"1 free": {"win_rate": rates}}})
    assert selected(store, plan, "ppo") == 1.0
    told = [(method, beta) for method, beta, _ in shown(store, plan)]
    assert told == [("rloo", 1.0), ("rloo", 0.25), ("ppo", 1.0), ("ppo", 0.25)]
    assert not any(map(tried_at_equal_kl, plan.methods))

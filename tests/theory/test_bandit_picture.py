import numpy as np
import pytest

from srpo_jax.theory import bandit, bandit_picture

CYCLE = bandit_picture.EXAMPLES["cycle"]


def test_behaviours_are_distributions_of_full_support():
    for table in bandit_picture.behaviours(4).values():
        assert np.all(table > 0)
        np.testing.assert_allclose(table.sum(), 1)


def test_report_shows_every_answer_and_how_far_it_moves():
    text = bandit_picture.report("cycle", CYCLE, beta=0.3, alpha=0.5)
    rows = [line.split() for line in text.splitlines()]
    moves = {row[0]: float(row[3]) for row in rows if row[1:3] == ["moves", "by"]}
    assert moves["srpo"] == 0
    assert moves["ipo"] > 0.05
    assert moves["dpo"] > 0.05
    pi, _ = bandit.solve(CYCLE, np.full(3, 1 / 3), np.full((3, 3), 1 / 3), beta=0.3)
    answers = [row[-4:-1] for row in rows if row[0] == "srpo" and "moves" not in row]
    assert answers == [[f"{p:.4f}" for p in pi]] * 4


def test_descent_learns_both_policies_only_between_the_ends_of_alpha():
    untrained, _ = bandit_picture.descend(CYCLE, 0.3, np.array([1.0]), steps=0)
    pi, pi_improve = bandit_picture.descend(CYCLE, 0.3, np.array([0.0, 0.5, 1.0]), steps=300)
    assert pi[1] < 1e-4
    assert pi_improve[1] < 1e-4
    assert pi[0] > 0.01
    assert pi_improve[0] > 0.01
    np.testing.assert_allclose(pi[2], untrained[0], atol=1e-6)
    assert pi_improve[2] < 1e-4


def test_a_bad_option_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        bandit_picture.main([f"--output={tmp_path}", "--beta=-1"])
    assert stopped.value.code == 2
    assert "must be a number > 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_writes_its_pictures(tmp_path):
    bandit_picture.main([f"--output={tmp_path}"])
    for name in ("cycle", "four", "hyperparameters"):
        data = (tmp_path / f"bandit_{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000

import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training.best import Compared, is_highest
from srpo_jax.training.hooks import check_best
from srpo_jax.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("metric", "highest"),
    [
        ("held_out/loss", False),
        ("loss_improve", False),
        ("held_out/nll_chosen", False),
        ("held_out/accuracy", True),
        ("margin", True),
        ("revision/win_rate_5", True),
        ("revision/win_rate_own_1", True),
        ("reward", True),
    ],
)
def test_the_best_is_the_lowest_loss_and_the_highest_accuracy(metric, highest):
    assert is_highest(metric) is highest


@pytest.mark.parametrize("metric", ["held_out/length_chosen", "reward_spread", "beta", ""])
def test_a_metric_that_tells_of_no_best_is_refused_where_checkpoints_are_kept_by_it(metric):
    with pytest.raises(UserError, match="whether its lowest or its highest value is the best"):
        check_best(TrainSettings(keep_best=1, keep_best_by=metric), evaluated=True)
    check_best(TrainSettings(keep_best_by=metric), evaluated=True)


def test_a_checkpoint_that_is_compared_by_nothing_is_told_once(capsys):
    """keep_best kept none, without a word, where steps that are saved are not those that are evaluated."""
    compared = Compared(TrainSettings(keep_best=1))
    assert compared(37, None) is None  # asked to stop there
    assert not capsys.readouterr().out
    given = {50: None, 100: 0.3, 150: None}
    assert {n: compared(n, measured) for n, measured in given.items()} == given
    said = capsys.readouterr().out
    assert said.count("warning: the checkpoint of step 50 is not compared") == 1
    assert "config.train.keep_best_by=held_out/loss was not measured" in said
    assert "step 150" not in said

    assert Compared(TrainSettings())(50, None) is None
    assert not capsys.readouterr().out

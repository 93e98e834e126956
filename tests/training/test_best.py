import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training.best import is_highest
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

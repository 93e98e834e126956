"""Student's interval, against the tables of his distribution."""

from srpo_jax.reporting.student import mean_of


def test_an_interval_over_seeds_is_students():
    # 4.303 by tables of Student's distribution, two degrees of freedom; standard error 1 / sqrt(3).
    assert str(mean_of([1.0, 2.0, 3.0])) == "2.0 ± 2.5"


def test_one_seed_has_no_interval():
    assert str(mean_of([1.0])) == "1.0"

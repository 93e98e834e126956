"""What the compiler says of memory that is not there."""

import pytest

from srpo_jax.planning import compiling


@pytest.mark.parametrize(
    ("said", "needed", "available"),
    [
        ("RESOURCE_EXHAUSTED: … Used 20.50G of 15.75G hbm. Exceeded", 20.5, 15.75),
        ("temporaries (48.09G) exceeds available HBM (15.75G).", 48.09, 15.75),
        ("Used 2.00T of 512.00M hbm", 2048, 0.5),
        ("Used 2048.00M of 1G hbm", 2, 1),
    ],
)
def test_what_is_missing_is_read(said, needed, available):
    found = compiling._refusal(RuntimeError(said))
    assert found is not None
    assert (found.needed, found.available) == (needed * 2**30, available * 2**30)


def test_other_failures_are_no_refusals():
    assert compiling._refusal(RuntimeError("INTERNAL: something else")) is None

"""Profiles of a few steps."""

import os
import signal
import types

import jax.numpy as jnp
import pytest

from srpo_jax.training.profiling import Profiler


@pytest.fixture
def traced(monkeypatch):
    """What the profiler was told to do."""
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    return calls


def steps(profiler, numbers, last=99):
    for number in numbers:
        profiler(types.SimpleNamespace(number=number, last=number == last))


def test_a_step_that_was_chosen(tmp_path, traced):
    with Profiler(tmp_path, at=2, steps=3) as profiler:
        steps(profiler, range(1, 5))
        assert traced == ["start"]
        steps(profiler, range(5, 9))
        assert traced == ["start", "stop"]


def test_a_signal_asks_for_one_now(tmp_path, traced):
    before = signal.getsignal(signal.SIGUSR1)
    with Profiler(tmp_path, at=0, steps=1) as profiler:
        for _ in range(2):
            steps(profiler, [1])
            os.kill(os.getpid(), signal.SIGUSR1)
            steps(profiler, [2, 3, 4])
    assert traced == ["start", "stop"] * 2
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_run_that_ends_ends_its_profile(tmp_path, traced):
    with Profiler(tmp_path, at=8, steps=3) as profiler:
        steps(profiler, [8, 9], last=9)
    assert traced == ["start", "stop"]
    with Profiler(tmp_path, at=9, steps=3) as profiler:
        steps(profiler, [9], last=9)
    assert traced == ["start", "stop"]


def test_a_profile_is_written(tmp_path):
    with Profiler(tmp_path, at=1, steps=1) as profiler:
        steps(profiler, [1])
        jnp.ones(3).sum().block_until_ready()
        steps(profiler, [2])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))

"""SRPO (Self-Improving Robust Preference Optimization, arXiv:2406.01660) in JAX and Flax."""

from srpo_jax.version import __version__

__all__ = ["__version__"]

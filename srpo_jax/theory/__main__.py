"""The exact tables and their pictures: `python -m srpo_jax.theory --output=DIR`."""

from srpo_jax.theory.bandit_picture import main

main()

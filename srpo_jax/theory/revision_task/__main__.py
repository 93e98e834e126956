"""`python -m srpo_jax.theory.revision_task`."""

from srpo_jax.theory.revision_task.command import main

if __name__ == "__main__":  # processes that are spawned import this module again
    main()

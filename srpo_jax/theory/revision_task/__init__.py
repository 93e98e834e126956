"""A task whose best answer by revision is known exactly, and a small transformer that is trained on it.

    python -m srpo_jax.theory.revision_task --output=DIR

prints the closed form beside the network, draws both, and can be interrupted and run again. `desk` is
the task, `exact` its closed forms, `network` trains, `measure` judges, `cells` keeps what was run,
`plan` says what is run and how beta is selected, `summary` and `picture` tell.
"""

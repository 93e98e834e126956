"""What a policy writes, judged: pairs of it to learn from, or rounds that learn from it at once.

May import: reporting, judges, revision, training, models, prompts, trees, objectives, data, config,
runtime. Imported by: the programs.
"""

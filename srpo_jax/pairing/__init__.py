"""Pairs to learn from: completions of each document are drawn, compared, and chosen.

May import: reporting, judges, revision, models, prompts, data, config, runtime. Imported by: the program
pairs.
"""

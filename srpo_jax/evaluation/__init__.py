"""The stages of an evaluation: who writes what, what is judged, and what is kept between the two.

May import: config, judges, revision, reporting, prompts, models, data, runtime.
Imported by: the programs evaluate, pairs and quickstart.
"""

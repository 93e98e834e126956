"""The stages of an evaluation: who writes what, what is judged, and what is kept between the two; and a
small one while a model is trained (`during.py`).

May import: config, judges, revision, training, reporting, prompts, models, trees, data, runtime. Imported
by: the programs train, evaluate, pairs and recipe.
"""

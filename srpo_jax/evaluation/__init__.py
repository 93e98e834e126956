"""Who writes what, what is judged, what is kept between the two; and a small evaluation in training.

May import: config, judges, revision, training, reporting, prompts, models, trees, data, runtime. Imported
by: the programs train, evaluate, pairs and recipe.
"""

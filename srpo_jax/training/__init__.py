"""From pairs to an updated policy: batches of rows, scores, reference scores, the train step.

May import: models, objectives, prompts, trees, data, runtime. Imported by: theory, the programs.
"""

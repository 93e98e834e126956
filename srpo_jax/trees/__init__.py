"""Prefix trees, and how they are packed into rows. numpy only.

May import: runtime.errors. Imported by: models (the mask's layout), training, config, pairing, theory,
the programs. No model, no mesh, no text.
"""

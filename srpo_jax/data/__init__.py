"""Texts and models brought in, preference records, tokenizers, and the input pipeline."""

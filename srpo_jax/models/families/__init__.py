"""What Hugging Face calls the parts of a decoder: config.json -> DecoderConfig, tensors -> parameters.

Each family is one entry of FAMILIES (table.py): a function that reads its config (readers.py), and the
names of its tensors (tensors.py). What a config asks for and no function reads is refused by name
(keys.py).
"""

from srpo_jax.models.families.table import FAMILIES, Family, architecture, family, text_part

__all__ = ["FAMILIES", "Family", "architecture", "family", "text_part"]

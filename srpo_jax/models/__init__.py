"""One config-driven decoder, its adapters, and where its weights come from."""

from srpo_jax.models.decoder import Cache, Decoder, DecoderConfig
from srpo_jax.models.loading import load, load_tokenizer

__all__ = ["Cache", "Decoder", "DecoderConfig", "load", "load_tokenizer"]

"""One config-driven decoder, its attention and cache, its adapters, and where its weights come from.

May import: data (tokenizers, assets), trees, runtime. Imported by: training, revision, judges, theory, the
programs. Nothing here knows a loss.
"""

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.loading import load, load_tokenizer

__all__ = ["Cache", "Decoder", "DecoderConfig", "load", "load_tokenizer"]

"""What kind of decoder the weights belong to, and how it is computed."""

import dataclasses
import math

import numpy as np

# Last names of the parameters that are vectors (norms, biases): always float32, never decayed.
VECTORS = ("scale", "bias")
SCORE = "score.kernel"  # a reward model's head, which is always float32


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., arXiv:2104.09864): angle = position * frequency.

    scaling: "none"; "linear", all frequencies divided by factor; "llama3" (Llama 3.1), only those whose
    waves are longer than original_length / low_factor positions, with a smooth passage up to
    original_length / high_factor; "yarn" (Peng et al., arXiv:2309.00071), those that turn less than
    high_factor times in the original length, with a passage down to low_factor times; "longrope" (Ding et
    al., arXiv:2402.13753), each divided by its own of `factors`. amplitude: of the rotated entries.
    whole_pairs: yarn's passage begins and ends at a pair of entries, not between two.
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192
    factors: tuple[float, ...] = ()
    amplitude: float = 1.0
    whole_pairs: bool = True

    def frequencies(self, size: int) -> np.ndarray:
        """float32 [size / 2, rounded up], of the pairs among `size` rotated entries of a head.

        Where size is odd, the last pair has one entry more (as GPT-NeoX has it).
        """
        frequencies = self.theta ** (-np.arange(0, size, 2) / size)
        if self.scaling == "linear":
            frequencies = frequencies / self.factor
        elif self.scaling == "llama3":
            waves = self.original_length * frequencies / (2 * math.pi)  # in the original length
            passage = (waves - self.low_factor) / (self.high_factor - self.low_factor)
            kept = np.clip(passage, 0.0, 1.0)
            frequencies = frequencies * (kept + (1 - kept) / self.factor)
        elif self.scaling == "yarn":
            # The pair of entries that turns so often in the original length, counted from the fastest.
            def pair(turns: float) -> float:
                wave = self.original_length / (turns * 2 * math.pi)
                return size * math.log(wave) / (2 * math.log(self.theta))

            first, last = pair(self.high_factor), pair(self.low_factor)
            if self.whole_pairs:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, size - 1)
            span = 1e-3 if first == last else last - first
            behind = (np.arange(len(frequencies)) - first) / span
            slow = np.clip(behind, 0.0, 1.0)
            frequencies = frequencies * (1 - slow + slow / self.factor)
        elif self.scaling == "longrope":
            frequencies = frequencies / np.array(self.factors)
        return frequencies.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What layers may differ in: how far back they see (None: to the start), and rotation, if any."""

    window: int | None = None
    rope: Rope | None = Rope()


@dataclasses.dataclass(frozen=True)
class Routing:
    """Each MLP is so many `experts`, and a token goes through the `each` of them that its router chooses.

    The router's softmax is over all experts; normed: the weights of those chosen are made to add up to 1.
    """

    experts: int
    each: int
    normed: bool

    def __post_init__(self) -> None:
        if not 0 < self.each <= self.experts:
            raise ValueError(f"a token cannot go through {self.each} of {self.experts} experts")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture (what the weights mean) and how it is computed."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int  # of each expert, where there are some
    max_length: int = 2048
    tied: bool = True  # the vocabulary projection is the embedding
    layer_kinds: tuple[LayerKind, ...] = (LayerKind(),)  # repeated over the layers
    rotary_dim: int | None = None  # only the first so many entries of a head are rotated

    rope_interleaved: bool = (
        False  # entry 2 i is rotated with 2 i + 1, not with that half a head on
    )

    norm: str = "rms"  # or "layer": the mean subtracted
    norm_bias: bool = True  # of "layer"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # added to every stored scale
    norms: str = "before"  # attention and MLP; or "after" them, or "both"
    query_key_norm: str = "none"  # or of each "head", or of the heads "together", or as
    # `norm` says of each of the "heads", which have scales of their own
    parallel: bool = False  # attention and MLP read the same residual
    one_norm: bool = False  # and, where parallel, they read it behind the same norm

    activation: str = "silu"  # of ACTIVATIONS in block.py
    gated: bool = True  # the MLP has a gate
    biases: tuple[str, ...] = ()  # projections with a bias
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None  # c: logits become c tanh(logits / c)
    logit_softcap: float | None = None
    logit_scale: float = 1.0  # before the cap
    # Not in repr, which fingerprints of reference scores are made of: those of models without experts stay
    # what they were before there were any (see reference.fingerprint).
    routing: Routing | None = dataclasses.field(default=None, repr=False)
    # A number for each hidden state, in place of the vocabulary projection. Not in repr either: a reward
    # model has no reference.
    rewards: bool = dataclasses.field(default=False, repr=False)

    dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "auto"
    parameters: str = "float32"  # dtype of what is trained; norms and biases are always float32
    frozen: tuple[str, ...] = ()  # patterns of the names of parameters that are not trained
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: grouped-query "
                "attention needs equally many query heads for each key head"
            )
        if self.rotated + self.rotated % 2 > self.head_dim:
            raise ValueError(
                f"{self.rotated} of {self.head_dim} entries of a head cannot be rotated in pairs"
            )

    @property
    def rotated(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def kind(self, layer: int) -> LayerKind:
        return self.layer_kinds[layer % len(self.layer_kinds)]

    @property
    def windowed(self) -> bool:
        return any(self.kind(layer).window for layer in range(self.layers))

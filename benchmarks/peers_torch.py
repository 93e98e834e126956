"""Train steps of the usual kind, in PyTorch and `transformers`, to compare ours with (extra `bench`).

Every peer starts from the weights it is given, in float32, and computes products in the config's dtype
(bfloat16: under autocast), as ours does; AdamW, the clipping and the learning rate are ours too. What makes
them fast on a CPU is on: all cores, fused attention (SDPA), fused AdamW, padding to the longest row only,
no gradient checkpointing.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from srpo_jax.models.decoder import DecoderConfig

# (prompt ids, completion ids), one for each score name of a pair: what Workload.sequences gives.
Scored = tuple[Sequence[int], Sequence[int]]
Weights = Mapping[str, np.ndarray]

ADAMW = {"lr": 1e-6, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
CLIP_NORM = 1.0
IGNORED = -100  # a label that is not scored
# Our projections and norms by the name that `transformers` gives them in a layer.
LAYER = {
    "input_layernorm": "attention_norm.scale",
    "self_attn.q_proj": "attention.query.kernel",
    "self_attn.k_proj": "attention.key.kernel",
    "self_attn.v_proj": "attention.value.kernel",
    "self_attn.o_proj": "attention.output.kernel",
    "post_attention_layernorm": "mlp_norm.scale",
    "mlp.gate_proj": "mlp.gate.kernel",
    "mlp.up_proj": "mlp.up.kernel",
    "mlp.down_proj": "mlp.down.kernel",
}


class PaddedRows(NamedTuple):
    """R sequences as rows of S tokens, padded on the right, int64 [R, S].

    labels: the completions' tokens, IGNORED elsewhere.
    """

    tokens: Tensor
    attention_mask: Tensor
    labels: Tensor


def torch_six_rows(
    weights: Weights,
    config: DecoderConfig,
    pairs: Sequence[Sequence[Scored]],
    reference: np.ndarray,
    *,
    beta: float,
    alpha: float,
    project_all: bool = True,
    checkpointing: bool = False,
) -> Callable[[], float]:
    """A step (forward, backward, AdamW; returns the loss) of SRPO, a pair's six sequences in padded rows.

    pairs: the sequences in the order of objectives.get("srpo").needs. reference: their stored scores,
    float32 [B, 6]. project_all: every position of every row is projected to the vocabulary, as is usual;
    otherwise those only that predict a token of a completion. config.lora_rank > 0 trains adapters (peft).
    """
    model = torch_model(weights, config)
    if config.lora_rank:
        adapt(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = padded([sequence for pair in pairs for sequence in pair])
    stored = torch.tensor(reference)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAMW, fused=True)

    def step() -> float:
        scores = row_scores(model, rows, config.dtype, project_all).view(stored.shape)
        loss = srpo_loss(scores, stored, beta, alpha)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def srpo_loss(scores: Tensor, reference: Tensor, beta: float, alpha: float) -> Tensor:
    """The mean of L_SRPO for hard labels, from [B, 6] each: w, l, w|l, l|l, w|w, l|w."""
    w, l, w_l, l_l, w_w, l_w = (beta * (scores - reference)).unbind(-1)
    improve = (0.5 - (w_l - l_l)) ** 2 + (0.5 - (w_w - l_w)) ** 2
    generative = (1 - (w_l - l_w + w - l)) ** 2
    return ((1 - alpha) * generative + alpha * improve).mean()


def row_scores(
    model: transformers.LlamaForCausalLM, rows: PaddedRows, dtype: str, project_all: bool = True
) -> Tensor:
    """The summed log-probability of the labels of each row, float32 [R]."""
    labels = rows.labels[:, 1:]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        hidden = model.model(
            rows.tokens, attention_mask=rows.attention_mask, use_cache=False
        ).last_hidden_state[:, :-1]
        places = torch.full_like(labels, True, dtype=torch.bool)
        if not project_all:
            places = labels != IGNORED
        logits = model.lm_head(hidden[places]).float()
    loss = F.cross_entropy(logits, labels[places], ignore_index=IGNORED, reduction="none")
    row = places.nonzero()[:, 0]
    return torch.zeros(len(labels)).index_add(0, row, -loss)


def padded(sequences: Sequence[Scored]) -> PaddedRows:
    """One row for each sequence, as long as the longest."""
    pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )
    return PaddedRows(
        tokens=pad([[*prompt, *completion] for prompt, completion in sequences], 0),
        attention_mask=pad([[1] * (len(p) + len(c)) for p, c in sequences], 0),
        labels=pad([[IGNORED] * len(p) + [*c] for p, c in sequences], IGNORED),
    )


def torch_model(weights: Weights, config: DecoderConfig) -> transformers.LlamaForCausalLM:
    """Our parameters {dotted name: array} as the Llama of `transformers`, with SDPA attention.

    float32; if only adapters are going to be trained, in config.dtype, as ours keeps what is frozen.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_width,
            rope_parameters={"rope_type": "default", "rope_theta": config.kind(0).rope.theta},
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            max_position_embeddings=config.max_length,
            attn_implementation="sdpa",
        )
    )

    def put(name: str, value: np.ndarray) -> None:
        parameter = model.get_parameter(f"{name}.weight")
        # A Linear holds [outputs, inputs], our kernels [*inputs, *outputs].
        matrix = value.reshape(tuple(parameter.shape)[::-1]).T
        parameter.data.copy_(torch.tensor(matrix))

    for theirs, ours in LAYER.items():
        for i, value in enumerate(weights[f"blocks.{ours}"]):
            put(f"model.layers.{i}.{theirs}", value)
    put("model.embed_tokens", weights["embedder.embedding"].T)
    put("model.norm", weights["final_norm.scale"])
    if not config.tied:
        put("lm_head", weights["head.kernel"])
    return model.to(getattr(torch, config.dtype)) if config.lora_rank else model


def adapt(model: transformers.LlamaForCausalLM, config: DecoderConfig) -> None:
    """Puts the config's adapters into the model, in place, and freezes everything else."""
    import peft

    peft.get_peft_model(model, lora_config(config))


def lora_config(config: DecoderConfig) -> Any:
    """peft's description of config.lora_rank, lora_alpha and lora_targets."""
    import peft

    matches = lambda name: any(re.fullmatch(pattern, name) for pattern in config.lora_targets)
    return peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=[
            theirs.split(".")[1]
            for theirs, ours in LAYER.items()
            if ours.endswith("kernel") and matches(ours.split(".")[1])
        ],
        task_type="CAUSAL_LM",
    )

"""What configs say and leave unsaid, against the configuration classes of `transformers`."""

import itertools

import pytest

from srpo_jax.models import families
from srpo_jax.models.families import unsaid
from srpo_jax.runtime.errors import UserError
from tests.checkpoints import CASES, SMALL

transformers = pytest.importorskip(
    "transformers", reason="the yardstick is an extra: install srpo_jax[dev] to run this test"
)

# Without these no model can be built: each is asked for by name.
NEEDED = {
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
}
# What no reader looks at, and transformers neither.
IDLE = unsaid.SILENT | unsaid.GENERATION | {"is_encoder_decoder"}


def read(content):
    return families.architecture("config.json", content)


def taken(content):
    """What is read, or the sentence that refuses it."""
    try:
        return read(content)
    except UserError as refusal:
        return str(refusal)


def large(name):
    """A case with more layers, heads and longer texts than any default speaks of: each would show."""
    kind, changes = CASES[name]
    fields = SMALL | changes
    fields |= {"num_hidden_layers": 30, "max_position_embeddings": 10_000}
    fields |= {"num_attention_heads": 32, "hidden_size": 8 * fields["hidden_size"]}
    return kind, getattr(transformers, kind)(**fields).to_dict()


def complete(kind, content):
    """The same config with everything that it leaves unsaid, as transformers takes it."""
    said = {k: v for k, v in content.items() if k != "model_type"}
    return getattr(transformers, kind)(**said).to_dict()


def old_style(content):
    """As it was written before transformers 5: rope_theta beside rope_scaling."""
    rope = content["rope_parameters"]
    if "full_attention" in rope:
        base = {"rope_theta": rope["full_attention"]["rope_theta"]}
        if content["model_type"] == "gemma3_text":
            base["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    else:
        base = {"rope_theta": rope["rope_theta"]}
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    if content["model_type"] == "gpt_neox":
        base = {"rotary_emb_base": rope["rope_theta"], "rotary_pct": 0.5}
        scaling.pop("partial_rotary_factor")
    old = {k: v for k, v in content.items() if k != "rope_parameters"} | base
    return old | ({"rope_scaling": scaling} if scaling.get("rope_type") != "default" else {})


@pytest.mark.parametrize("name", list(CASES))
def test_whatever_a_config_leaves_unsaid_is_what_transformers_takes_for_it(name):
    """Each entry, and each two, left out in turn, of a config in the new style and in the old."""
    kind, new = large(name)
    tried = 0
    for content in (new, old_style(new)):
        assert read(complete(kind, content)) == read(content)
        open_keys = sorted(set(content) - NEEDED - IDLE)
        for gone in itertools.chain(
            itertools.combinations(open_keys, 1), itertools.combinations(open_keys, 2)
        ):
            less = {k: v for k, v in content.items() if k not in gone}
            try:
                whole = complete(kind, less)
            except (ValueError, KeyError):
                continue  # transformers does not take it
            assert taken(less) == taken(whole), gone
            tried += 1
    assert tried > 50


def test_no_family_is_left_out():
    kinds = {getattr(transformers, kind).model_type for kind, _ in CASES.values()}
    assert kinds == set(families.FAMILIES)


def test_the_text_part_of_a_model_that_sees_pictures_leaves_unsaid_what_transformers_takes():
    _, content = large("gemma3")
    tried = 0
    said = {"hidden_size", "intermediate_size", "num_hidden_layers"}  # by all published ones
    for key in sorted(set(content) - IDLE - said):
        less = {k: v for k, v in content.items() if k not in (key, "model_type")}
        try:
            whole = transformers.Gemma3Config(text_config=less).text_config.to_dict()
        except (ValueError, KeyError):
            continue  # transformers does not take it
        part = families.text_part({"model_type": "gemma3", "text_config": less})
        assert taken(part) == taken(whole), key
        tried += 1
    assert tried > 15


@pytest.mark.parametrize("name", list(CASES))
def test_null_is_what_transformers_takes_it_for(name):
    kind, content = large(name)
    for key in sorted(set(content) - NEEDED - IDLE - {"no_rope_layer_interval"}):
        try:
            whole = complete(kind, content | {key: None})
        except Exception:
            continue  # transformers does not take it
        assert taken(content | {key: None}) == taken(whole), key


@pytest.mark.parametrize("key", sorted(NEEDED))
def test_what_no_model_can_be_built_without_is_asked_for_by_name(key):
    content = transformers.LlamaConfig(**SMALL).to_dict()
    del content[key]
    with pytest.raises(UserError, match=f"lacks '{key}'"):
        read(content)


def test_settings_of_generation_change_nothing():
    content = transformers.LlamaConfig(**SMALL).to_dict()
    params = transformers.GenerationConfig._get_default_generation_params()
    extra = {key: 3 if value is None else value for key, value in params.items()}
    extra |= {"top_k": 40, "temperature": 0.6, "num_beams": 4, "max_length": 4096}
    assert read(content | extra) == read(content)


HARMLESS = [
    {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False},
    {"n_embd": 48, "n_layer": 4, "n_head": 4, "activation_function": "silu"},
    {"rope_theta": 10_000.0},
    {"rope_interleaved": False, "logit_scale": 1.0, "num_experts": 1},
    {"n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "dim": 48, "hidden_dim": 64},
    {"use_flash_attention": True, "bf16": True, "is_causal": True, "rope_ratio": 1.0},
    {"hidden_activation": "silu", "max_seq_length": 256, "rms_norm_epsilon": 1e-6},
    # What older versions of transformers wrote of every model.
    {"add_cross_attention": False, "pruned_heads": {}, "torchscript": False, "prefix": None},
]


@pytest.mark.parametrize("extra", HARMLESS)
def test_entries_that_ask_for_nothing_are_taken(extra):
    content = transformers.LlamaConfig(**SMALL).to_dict()
    assert read(content | extra) == read(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolate_factor": 2}, "asks for interpolate_factor=2, which this decoder does not"),
        ({"rope_interleaved": True}, "asks for rope_interleaved=True"),
        ({"n_embd": 64}, "n_embd=64 and hidden_size=48, which are two names for one thing"),
        ({"n_kv_heads": 4}, "n_kv_heads=4 and num_key_value_heads=2, which are two names for one"),
        ({"rope_ratio": 2.0}, r"asks for rope_ratio=2\.0"),
        ({"is_causal": False}, "asks for is_causal=False"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "asks for quantization="),
        ({"clip_qkv": 8.0}, r"asks for clip_qkv=8\.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, which is no whole number above 0"),
        ({"head_dim": 13.5}, r"head_dim is 13\.5, which is no whole number"),
        ({"partial_rotary_factor": 0.5}, r"part of each head is rotated .*models of this kind"),
        ({"rope_scaling": "linear"}, "its rope_scaling is 'linear', and not an object"),
        ({"routed_scaling_factor": 2.5}, r"asks for routed_scaling_factor=2\.5"),
        ({"use_qk_norm": True}, "asks for use_qk_norm=True"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types says another thing than the"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rotary positions that differ from layer to layer",
        ),
    ],
)
def test_what_matters_is_refused_for_its_own_reason(changes, message):
    content = transformers.LlamaConfig(**SMALL).to_dict()
    with pytest.raises(UserError, match=message):
        read(content | changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Qwen3MoeConfig", {"decoder_sparse_step": 2}, "layers without experts beside those with"),
        ("Qwen3MoeConfig", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0, which is no wh"),
        ("Qwen3MoeConfig", {"mlp_only_layers": [1]}, "layers without experts beside those with"),
        (
            "Qwen3MoeConfig",
            {"num_experts": 64},
            "num_local_experts=128 and num_experts=64, which are two",
        ),
        ("MixtralConfig", {"router_jitter_noise": 0.1}, "router_jitter_noise .0 is the only one"),
        ("MixtralConfig", {"num_experts_per_tok": 9}, "cannot go through 9 of 8 experts"),
    ],
)
def test_experts_that_this_decoder_does_not_have_are_refused(kind, changes, message):
    content = getattr(transformers, kind)(**SMALL).to_dict()
    with pytest.raises(UserError, match=message):
        read(content | changes)


@pytest.mark.parametrize(
    ("kind", "neutral", "asks"),
    [
        ("CohereConfig", {"rope_interleaved": True}, {"rope_interleaved": False}),
        ("CohereConfig", {"norm_type": "layer_norm"}, {"norm_type": "rms_norm"}),
        ("GPTNeoXConfig", {"norm_type": "layernorm"}, {"norm_type": "rms_norm"}),
    ],
)
def test_what_asks_for_nothing_depends_on_the_family(kind, neutral, asks):
    content = getattr(transformers, kind)(**SMALL).to_dict()
    assert read(content | neutral) == read(content)
    with pytest.raises(UserError, match=f"asks for {next(iter(asks))}="):
        read(content | asks)


def test_the_number_of_experts_has_two_names():
    """Published configs of Qwen3-MoE say num_experts, and transformers 5 writes the other."""
    content = transformers.Qwen3MoeConfig(**SMALL).to_dict()
    older = {k: v for k, v in content.items() if k != "num_local_experts"} | {"num_experts": 128}
    assert read(older) == read(content) == read(content | {"num_experts": 128})


def test_layers_without_rotation_must_be_told_for_each_layer():
    content = transformers.SmolLM3Config(**SMALL).to_dict()
    with pytest.raises(UserError, match="no_rope_layers has 1 entries for 4 layers"):
        read(content | {"no_rope_layers": [1]})

"""What distinguishes the families of decoders, as data.

A role that a family's table lacks is absent from its graph: no ``gate`` is a plain MLP, no
``positions`` leaves the order to rotary embedding, no ``before_mlp`` lets it read its input as it
is, and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

__all__ = ["FAMILIES", "Family"]


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Structure and names of one kind of decoder.

    Attributes:
        top: Module path by role outside the layers: ``embedding``, ``positions`` (learned),
            ``norm`` (behind the last layer), ``head``.
        layers: Module path of a layer, with ``{}`` for its index.
        modules: Module path inside a layer by role: ``q``, ``k``, ``v``, ``o``; ``gate``, ``up``,
            ``down``; norms ``before_attention``, ``after_attention`` (on what is added),
            ``before_mlp``, ``after_mlp``, ``q_norm``, ``k_norm``. Roles of one module share its
            weight, in the order of the table, along the outputs.
        parallel: The MLP reads what attention reads, not what attention has added to.
        norm: ``rms`` or ``layer``.
        head_norm: Whether ``q_norm`` and ``k_norm`` are on ``each`` head, or on ``all`` as one row.
        norm_offset: What the stored weight of a norm lacks.
        scaled_embedding: Embeddings are multiplied by the square root of their width.
        stored: Whether weights of linear layers are stored ``[out, in]`` or ``[in, out]``.
        switches: Keys of the configuration that this family's models read. Other families' files
            may hold them, too (a Llama made of a Mistral its ``sliding_window``): there they mean
            nothing.
    """

    top: Mapping[str, str]
    layers: str
    modules: Mapping[str, str]
    parallel: bool = False
    norm: Literal["rms", "layer"] = "rms"
    head_norm: Literal["each", "all"] = "each"
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    stored: Literal["out-in", "in-out"] = "out-in"
    switches: frozenset[str] = frozenset()

    @property
    def base(self) -> str:
        """What names of all weights but the head's begin with."""
        return self.top["embedding"].partition(".")[0]


_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LLAMA = {
    "before_attention": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "before_mlp": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_FUSED = dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj") | dict.fromkeys(
    ("gate", "up"), "mlp.gate_up_proj"
)
_AROUND = {
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
_GPT2 = {
    "before_attention": "ln_1",
    "q": "attn.c_attn",
    "k": "attn.c_attn",
    "v": "attn.c_attn",
    "o": "attn.c_proj",
    "before_mlp": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_PHI = {
    "before_attention": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.dense",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_OLMO2 = {role: path for role, path in _LLAMA.items() if not role.startswith("before_")} | {
    "after_attention": "post_attention_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
_STARCODER2 = {role: path for role, path in _LLAMA.items() if role != "gate"} | {
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_LAYERS = "model.layers.{}"
_PLAIN = Family(_TOP, _LAYERS, _LLAMA)
_WINDOWED = dataclasses.replace(_PLAIN, switches=frozenset({"sliding_window"}))
_GEMMA = Family(
    _TOP,
    _LAYERS,
    _LLAMA,
    norm_offset=1.0,
    scaled_embedding=True,
    switches=frozenset({"hidden_activation"}),
)
_GEMMA3 = dataclasses.replace(
    _GEMMA,
    modules=_LLAMA | _AROUND | _HEAD_NORMS,
    switches=_GEMMA.switches
    | {"sliding_window", "query_pre_attn_scalar", "final_logit_softcapping"},
)

# By ``model_type`` of config.json.
FAMILIES: Mapping[str, Family] = {
    "llama": _PLAIN,
    "mistral": _WINDOWED,
    "qwen2": _WINDOWED,  # its biases on q, k and v are found in the checkpoint
    "qwen3": dataclasses.replace(_WINDOWED, modules=_LLAMA | _HEAD_NORMS),
    "phi3": dataclasses.replace(
        _WINDOWED,
        modules=_LLAMA | _FUSED,
        switches=_WINDOWED.switches | {"partial_rotary_factor"},
    ),
    "gemma": _GEMMA,
    "gemma2": dataclasses.replace(
        _GEMMA3,
        modules=_LLAMA | _AROUND,
        switches=_GEMMA3.switches | {"attn_logit_softcapping"},
    ),
    "gemma3_text": _GEMMA3,
    "gpt2": Family(
        {
            "embedding": "transformer.wte",
            "positions": "transformer.wpe",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        },
        "transformer.h.{}",
        _GPT2,
        norm="layer",
        stored="in-out",
        switches=frozenset({"scale_attn_weights"}),
    ),
    "granite": dataclasses.replace(
        _PLAIN,
        switches=frozenset(
            {
                "embedding_multiplier",
                "attention_multiplier",
                "residual_multiplier",
                "logits_scaling",
            }
        ),
    ),
    "olmo2": dataclasses.replace(_PLAIN, modules=_OLMO2 | _HEAD_NORMS, head_norm="all"),
    "phi": Family(
        _TOP | {"norm": "model.final_layernorm"},
        _LAYERS,
        _PHI,
        parallel=True,
        norm="layer",
        switches=frozenset({"partial_rotary_factor", "qk_layernorm"}),
    ),
    "smollm3": dataclasses.replace(_WINDOWED, switches=_WINDOWED.switches | {"no_rope_layers"}),
    "stablelm": dataclasses.replace(
        _PLAIN,
        norm="layer",
        switches=frozenset({"partial_rotary_factor", "qk_layernorm", "use_parallel_residual"}),
    ),
    "starcoder2": dataclasses.replace(_WINDOWED, modules=_STARCODER2, norm="layer"),
}

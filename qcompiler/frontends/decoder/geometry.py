"""Sizes and switches of one decoder, read from its transformers configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.decoder.families import Family

__all__ = [
    "ACTIVATION_NAMES",
    "PLAIN_EXPORT",
    "Activation",
    "Geometry",
    "Rotary",
    "check_sizes",
]

PLAIN_EXPORT = "in Python, give example_inputs to export it as it is, without a key-value cache"

Activation = Literal["silu", "gelu", "gelu-tanh", "relu"]
ACTIVATION_NAMES: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
}
_HEAD_MULTIPLE = 16  # of GroupQueryAttention with rotary embedding; it checks that when it runs
# Frequencies that do not depend on the length of the text.
_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
_LONGEST = 1 << 24  # positions; tables of rotary embeddings are as long
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
# Switches of a configuration that the builder does not know how to write.
_UNSUPPORTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("quantization_config", bool, "weights that are quantized already"),
    ("add_cross_attention", bool, "cross attention"),
    ("scale_attn_by_inverse_layer_idx", bool, "attention scaled by the layer's index"),
    ("use_bidirectional_attention", bool, "attention in both directions"),
)
# The same, of families that read them.
_UNSUPPORTED_SWITCHES = {
    "qk_layernorm": "norms on queries and keys",
    "use_parallel_residual": "an MLP beside attention",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding.

    Attributes:
        frequencies: Radians per position, ``[rotated width / 2]``.
        factor: Multiplies sine and cosine.
    """

    frequencies: npt.NDArray[np.float32]
    factor: float

    def caches(self, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosine and sine, ``[positions, rotated width / 2]`` each."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.frequencies)
        factor = np.float32(self.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and switches.

    Attributes:
        layers: Number of layers.
        width: Of the residual stream.
        inner: Width inside the MLP.
        heads: Query heads.
        kv_heads: Key and value heads; a divisor of ``heads``.
        head_width: Of one head.
        vocabulary: Number of tokens.
        positions: Longest text the model allows.
        epsilon: Of the norms.
        activation: Of the MLP.
        tied: Whether the head is the embedding, transposed.
        embedding_factor: What embeddings are multiplied by.
        residual_factor: What attention and MLP give is multiplied by it before it is added.
        logit_divisor: What logits are divided by.
        scale: What scores of attention are multiplied by; None is ``head_width ** -0.5``.
        softcap: Scores become ``softcap * tanh(scores / softcap)``; 0 is off.
        logit_softcap: The same for logits.
        windows: For each layer how many positions attention looks back, itself included; None
            is all.
        rotary: For each layer its rotary embedding, None without. Equal ones are one object.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int
    epsilon: float
    activation: Activation
    tied: bool
    embedding_factor: float
    residual_factor: float
    logit_divisor: float
    scale: float | None
    softcap: float
    logit_softcap: float
    windows: tuple[int | None, ...]
    rotary: tuple[Rotary | None, ...]

    @classmethod
    def of(cls, config: Any, source: str, family: Family) -> Geometry:
        """Read a transformers configuration.

        Args:
            config: The configuration.
            source: The user's name for the model.
            family: Of the decoder; positions are learned, or come from rotary embedding.

        Raises:
            QcError: QC707, a switch of the configuration has no form here, or a size is none.
        """
        for name, is_on, what in _UNSUPPORTED:
            if is_on(getattr(config, name, None)):
                raise unsupported(source, f"{what} ({name})")

        check_sizes(config, _SIZES, source)

        def switch(name: str) -> Any:
            return getattr(config, name, None) if name in family.switches else None

        for name, what in _UNSUPPORTED_SWITCHES.items():
            if switch(name):
                raise unsupported(source, f"{what} ({name})")
        rotary = "positions" not in family.top
        heads, width, layers = (
            config.num_attention_heads,
            config.hidden_size,
            config.num_hidden_layers,
        )
        head_width = getattr(config, "head_dim", None) or width // heads
        if rotary and head_width % _HEAD_MULTIPLE:
            raise unsupported(
                source, f"heads of width {head_width}, no multiple of {_HEAD_MULTIPLE}"
            )
        asked = switch("hidden_activation") or _first(config, "hidden_act", "activation_function")
        if asked not in ACTIVATION_NAMES:
            raise unsupported(source, f"the activation {asked!r}")
        kinds = getattr(config, "layer_types", None) or [None] * layers
        known = {None, "full_attention", "sliding_attention"}
        if strange := sorted(set(kinds) - known):
            raise unsupported(source, f"layers of the kind {strange[0]!r}")
        window = switch("sliding_window")
        scalar = 1 if switch("scale_attn_weights") is False else switch("query_pre_attn_scalar")
        scale = switch("attention_multiplier") or (scalar**-0.5 if scalar else None)
        partial = "partial_rotary_factor" in family.switches
        turned = switch("no_rope_layers") or [True] * layers
        if len(turned) != layers:
            raise unsupported(source, f"{len(turned)} no_rope_layers for {layers} layers")
        ropes = {
            kind: _rotary(config, kind, source, partial=partial) if rotary else None
            for kind in set(kinds)
        }
        return cls(
            layers=layers,
            width=width,
            inner=_first(config, "intermediate_size", "n_inner") or 4 * width,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=head_width,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            epsilon=_first(config, *_EPSILONS),
            activation=ACTIVATION_NAMES[asked],
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            embedding_factor=(
                math.sqrt(width)
                if family.scaled_embedding
                else float(switch("embedding_multiplier") or 1.0)
            ),
            residual_factor=float(switch("residual_multiplier") or 1.0),
            logit_divisor=float(switch("logits_scaling") or 1.0),
            scale=scale,
            softcap=switch("attn_logit_softcapping") or 0.0,
            logit_softcap=switch("final_logit_softcapping") or 0.0,
            windows=tuple(None if kind == "full_attention" else window for kind in kinds),
            rotary=tuple(
                ropes[kind] if turns else None for kind, turns in zip(kinds, turned, strict=True)
            ),
        )


def check_sizes(config: Any, names: Sequence[str], source: str) -> None:
    """Refuse (QC707) sizes that no model has.

    Args:
        config: A transformers configuration.
        names: Of the sizes in it; those that speak of positions have a bound.
        source: The user's name for the model.
    """
    for name in names:
        found, bounded = getattr(config, name, None), "position" in name
        if isinstance(found, int) and 1 <= found <= (_LONGEST if bounded else found):
            continue
        wanted = f"1 to {_LONGEST}" if bounded else "a whole number from 1 on"
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"{name} of the configuration is {found!r}, wanted {wanted}",
            "copy config.json again from where the model comes from",
        )


def unsupported(source: str, what: str) -> QcError:
    """The refusal of a part that the builder cannot write."""
    return QcError(
        Code.UNSUPPORTED_INPUT,
        source,
        f"the decoder has {what}, which is not supported with a key-value cache",
        PLAIN_EXPORT,
    )


def _first(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _rotary(config: Any, kind: str | None, source: str, *, partial: bool) -> Rotary:
    """Frequencies of one kind of layers, of a part of each head's width where that is asked."""
    found = _frequencies(config, kind, source, partial=partial)
    width = 2 * len(found.frequencies)
    if width % _HEAD_MULTIPLE:
        raise unsupported(
            source, f"rotary embedding of width {width}, no multiple of {_HEAD_MULTIPLE}"
        )
    return found


def _frequencies(config: Any, kind: str | None, source: str, *, partial: bool) -> Rotary:
    """By transformers' own formulas."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = _rope_parameters(config, kind)
    name = said.get("rope_type") or said.get("type") or "default"
    if name not in _ROTARY:
        raise unsupported(source, f"rotary embedding of the type {name!r}")
    if name != "default":
        nested = kind is not None and kind in (getattr(config, "rope_parameters", None) or {})
        layer = {"layer_type": kind} if nested else {}
        frequencies, factor = ROPE_INIT_FUNCTIONS[name](config, None, **layer)
        return Rotary(frequencies.numpy().astype(np.float32), float(factor))
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    share = said.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    width = int(head_width * share) if partial else head_width
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    theta = said.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    return Rotary((1.0 / np.float32(theta) ** exponents).astype(np.float32), 1.0)


def _rope_parameters(config: Any, kind: str | None) -> Mapping[str, Any]:
    """``rope_parameters`` of transformers 5, which may differ by kind, or ``rope_scaling``."""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = said.get(kind) if kind is not None else None
    return nested if isinstance(nested, Mapping) else said

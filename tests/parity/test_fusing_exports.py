"""The float pipeline on what today's and yesterday's exporters write."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.pipeline.contract import Phase
from qcompiler.pipeline.registry import all_passes
from qcompiler_models import load_model
from rewriting import opened, ops, rewrite, state, worst

pytestmark = pytest.mark.slow

ROUNDING = 1e-5  # of the largest output, through all layers


def _fuse(path: pathlib.Path) -> tuple[ir.Model, ir.Model]:
    model = opened(ir.load(path))
    passes = [cls() for cls in all_passes().values() if cls.phase is Phase.FLOAT]
    return model, rewrite(model, *passes, given=state())


def _counts(model: ir.Model, *names: str) -> list[int]:
    found = ops(model)
    return [found.count(name) for name in names]


def _feeds() -> list[dict[str, np.ndarray]]:
    """Padded batches; in the second a sequence that is nothing but padding."""
    feeds = []
    for batch, length in ((3, 11), (2, 6)):
        ids = np.random.default_rng(length).integers(0, 90, (batch, length))
        mask = np.ones((batch, length), np.int64)
        mask[0, length // 2 :] = 0
        mask[1] = length == 11
        feeds.append({"input_ids": ids, "attention_mask": mask})
    return feeds


@pytest.mark.parametrize(
    ("kind", "dynamo", "opset"),
    [("eager", False, 14), ("sdpa", False, 17), ("sdpa", True, 18), ("sdpa", True, 23)],
)
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_bert_of_any_exporter_is_fused_whole(
    kind: str, dynamo: bool, opset: int, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=32,
        attn_implementation=kind,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]

    names = ["input_ids", "attention_mask"]
    example = (torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.int64))
    axes = {0: "batch", 1: "sequence"}
    path = tmp_path / "bert.onnx"
    how = {"dynamic_axes": dict.fromkeys(names, axes)}
    if dynamo:
        how = {"dynamic_shapes": [axes, axes], "external_data": False}
    torch.onnx.export(
        Hidden().eval(),
        example,
        path,
        dynamo=dynamo,
        opset_version=opset,
        input_names=names,
        verbose=False,
        **how,
    )
    model, fused = _fuse(path)
    assert _counts(fused, "Attention", "LayerNormalization", "Gelu") == [2, 5, 2]
    assert _counts(fused, "Softmax", "IsNaN", "Erf", "ReduceMean", "Transpose") == [0] * 5
    for feed in _feeds():
        assert worst(model, fused, feed) < ROUNDING


def test_minilm_is_fused_whole_and_equal_on_padded_text() -> None:
    minilm = load_model("minilm")
    model, fused = _fuse(minilm.onnx())
    assert _counts(fused, "Attention", "LayerNormalization", "Gelu", "MatMul") == [6, 13, 6, 37]
    assert _counts(fused, "Softmax", "IsNaN", "GatherND", "Transpose", "Reshape") == [0] * 5
    feed = dict(minilm.calibration(8)[0])
    feed["attention_mask"] = feed["attention_mask"].copy()
    feed["attention_mask"][3] = 0  # a sequence that is nothing but padding
    assert worst(model, fused, feed) < ROUNDING

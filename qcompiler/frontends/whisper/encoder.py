"""The graph of Whisper's encoder, keys and values of the decoder's cross attention included.

Input ``audio_features`` float32 ``[batch, mels, frames]``: the log-mel spectrogram, of 30 seconds
in all published models. Outputs ``encoder_hidden_states`` ``[batch, frames / 2, width]`` and, for
each layer of the decoder, ``present_key_cross_{i}`` and ``present_value_cross_{i}`` ``[batch,
heads, frames / 2, head width]``: what the decoder reads at every step is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import IR_VERSION, input_value
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.frontends.whisper.layers import BATCH, Layers
from qcompiler.ir.lazy import Stored, View

__all__ = ["build_encoder"]

_MODULE, _CROSS = "model.encoder", "model.decoder.layers.{}.encoder_attn"
_KERNEL = 3


def build_encoder(
    geometry: Geometry, weights: Mapping[str, Stored], source: str
) -> tuple[ir.Model, set[str]]:
    """The model, its weights lazy tensors, and the names of the weights that it reads.

    Raises:
        QcError: QC707, a weight is missing or has another shape than the configuration says.
    """
    builder = _Encoder(geometry, weights, source, geometry.encoder.positions)
    graph = builder.graph()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="qcompiler"), builder.used


class _Encoder(Layers):
    def graph(self) -> ir.Graph:
        sizes = self.geometry
        shape = (BATCH, sizes.mels, sizes.frames)
        features = input_value("audio_features", ir.DataType.FLOAT, shape)
        x = self._convolution(features, "conv1", (sizes.mels, sizes.frames), stride=1)
        x = self._convolution(x, "conv2", (sizes.width, sizes.encoder.positions), stride=2)
        x = self.emit.op(
            "Transpose",
            [x],
            f"{_MODULE}/Transpose",
            self._shape(sizes.width),
            attributes={"perm": [0, 2, 1]},
            module=_MODULE,
        )
        name = f"{_MODULE}.embed_positions"
        stored = self._stored(f"{name}.weight", (sizes.encoder.positions, sizes.width))
        places = self._constant(View(stored))
        x = self.emit.op("Add", [x, places], f"{name}/Add", self._shape(sizes.width), module=name)
        for index in range(sizes.encoder.layers):
            x = self._layer(x, f"{_MODULE}.layers.{index}")
        hidden = self._norm(x, f"{_MODULE}.layer_norm", "encoder_hidden_states")
        cross = [
            self._cross(hidden, index, word)
            for index in range(sizes.decoder.layers)
            for word in ("key", "value")
        ]
        return self.emit.graph([features], [hidden, *cross], "encoder")

    def _convolution(
        self, x: ir.Value, part: str, sizes: tuple[int, int], *, stride: int
    ) -> ir.Value:
        """Conv over time and Gelu; ``sizes`` are input channels and output frames."""
        width, module = self.geometry.width, f"{_MODULE}.{part}"
        channels, frames = sizes
        inputs = [
            x,
            self._constant(View(self._stored(f"{module}.weight", (width, channels, _KERNEL)))),
            self._constant(View(self._stored(f"{module}.bias", (width,)))),
        ]
        shape = (BATCH, width, frames)
        y = self.emit.op(
            "Conv",
            inputs,
            f"{module}/Conv",
            shape,
            attributes={"kernel_shape": [_KERNEL], "pads": [1, 1], "strides": [stride]},
            module=module,
        )
        return self.emit.op(
            "Gelu", [y], f"{module}/Gelu", shape, attributes={"approximate": "none"}, module=module
        )

    def _layer(self, x: ir.Value, layer: str) -> ir.Value:
        sizes, module = self.geometry, f"{layer}.self_attn"
        square, heads = (sizes.width, sizes.width), sizes.encoder.heads
        y = self._norm(x, f"{layer}.self_attn_layer_norm")
        y = self.emit.op(
            "Attention",
            [self._linear(y, f"{module}.{role}_proj", square) for role in "qkv"],
            f"{module}/Attention",
            self._shape(sizes.width),
            attributes={"q_num_heads": heads, "kv_num_heads": heads},
            module=module,
        )
        y = self._linear(y, f"{module}.out_proj", square)
        return self._mlp(self._residual(x, y, layer, "attention"), layer, sizes.encoder.inner)

    def _cross(self, hidden: ir.Value, index: int, word: str) -> ir.Value:
        """Keys or values of one layer of the decoder."""
        sizes = self.geometry
        module = f"{_CROSS.format(index)}.{word[0]}_proj"
        x = self._linear(hidden, module, (sizes.width, sizes.width))
        output = f"present_{word}_cross_{index}"
        return self._apart(x, module, sizes.decoder.heads, output)

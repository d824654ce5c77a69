"""ONNX: a file with its external data, a protobuf, or an ``onnx_ir.Model``."""

from qcompiler.frontends.onnx.door import open_file, open_ir, open_proto

__all__ = ["open_file", "open_ir", "open_proto"]

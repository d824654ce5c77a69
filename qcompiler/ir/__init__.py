"""Helpers on ``onnx_ir``: the only place that knows its quirks.

``walk`` iterates, ``edit`` changes, ``text`` prints, ``legality`` checks, ``provenance`` remembers
which of the user's nodes a node stands for.
"""

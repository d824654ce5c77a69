"""Everything that runs models: ONNX Runtime sessions, observed shapes, timing, kernels seen.

The only package that imports ``onnxruntime``, and it does so when first used.
"""

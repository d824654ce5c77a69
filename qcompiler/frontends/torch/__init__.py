"""What torch's own exporter writes as ONNX: modules, exported programs, transformers models."""

"""Pure arithmetic of quantization: arrays in, arrays out; no graph, no file, no log."""

"""Models that come quantized: back to the QDQ dialect, then to the kernels of the target."""

"""MEASURE passes: ranges of activations from calibration data; the graph is untouched."""

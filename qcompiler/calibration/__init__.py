"""Measuring: calibration data as feeds, streaming summaries of activations, ranges from them."""

"""Equality of the GPU's paths with the reference paths; run by `pytest tests/gpu` on a machine with CUDA."""

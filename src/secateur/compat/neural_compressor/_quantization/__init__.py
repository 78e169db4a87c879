"""Simulate quantization during training."""

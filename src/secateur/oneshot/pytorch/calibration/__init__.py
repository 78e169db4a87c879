"""Calibration data: the batches, the loss on them, and what layers read while the model is called with them."""

__all__: list[str] = []

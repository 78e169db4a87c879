"""Reorder the channels of a torch model before it is pruned, so that pruning removes less important weights."""

__all__: list[str] = []

"""Run a model part by part: each part sees the outputs of the pruned parts before it."""

__all__: list[str] = []

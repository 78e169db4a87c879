"""Runs of the elements of a `WeightPruningConfig`, in the framework of the model."""

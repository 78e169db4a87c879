"""Prune a layer whose inputs are known."""

"""Prune a single layer with SparseGPT."""

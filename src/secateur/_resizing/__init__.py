"""Sizes and parts of modules that differ from their code or configuration because units were removed."""

"""Sizes and parts of modules that differ from those in their code or configuration, because units were removed."""

"""Call models with example inputs, and compare their outputs."""

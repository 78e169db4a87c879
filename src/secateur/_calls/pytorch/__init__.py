"""Call torch modules with example inputs, and compare their outputs."""

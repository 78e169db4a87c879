"""Attacks on Secateur with random but reproducible cases: ``make fuzz MINUTES=60``, and a short run in CI."""

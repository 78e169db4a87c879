"""``python -m secateur``."""

from __future__ import annotations

from secateur.cli import app

if __name__ == "__main__":
    app(prog_name="secateur")

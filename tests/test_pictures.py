"""The pictures of the documentation that are computed are up to date."""

import importlib.util
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def test_the_picture_of_the_patterns_is_what_its_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw_patterns", IMAGES / "draw_patterns.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (IMAGES / "patterns.svg").read_text("utf-8") == module.draw_patterns()

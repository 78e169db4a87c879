import pytest

from secateur._deprecated import serve_old_names
from secateur.config import PruningConfig


def test_an_old_name_works_with_a_warning() -> None:
    serve = serve_old_names("secateur.example", {"Setup": "secateur.config:PruningConfig"})
    with pytest.warns(DeprecationWarning, match=r"^secateur\.example\.Setup is deprecated\. Use secateur\.config\.Pru"):
        assert serve("Setup") is PruningConfig


def test_other_names_raise_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'secateur\.example' has no attribute 'Other'"):
        serve_old_names("secateur.example", {})("Other")

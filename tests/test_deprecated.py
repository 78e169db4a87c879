import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import secateur
from secateur._deprecated import serve_old_names
from secateur.config import PruningConfig


def test_an_old_name_works_with_a_warning() -> None:
    serve = serve_old_names("secateur.example", {"Setup": "secateur.config:PruningConfig"})
    with pytest.warns(DeprecationWarning, match=r"^secateur\.example\.Setup is deprecated\. Use secateur\.config\.Pru"):
        assert serve("Setup") is PruningConfig


def test_other_names_raise_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'secateur\.example' has no attribute 'Other'"):
        serve_old_names("secateur.example", {})("Other")


@cache
def list_aliases() -> dict[tuple[str, str], str]:
    """List all old names of modules: module and name → where the object is now."""
    root = Path(secateur.__file__).parent
    aliases = {}
    for path in root.rglob("*.py"):
        module = ".".join(["secateur", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__getattr__":
                assert isinstance(node.value, ast.Call)
                if ast.unparse(node.value.func) != "serve_old_names":
                    continue
                aliases |= {(module, old): new for old, new in ast.literal_eval(node.value.args[1]).items()}
    return aliases


@pytest.mark.parametrize(("module", "name"), list_aliases())
def test_every_old_name_leads_to_an_object(module: str, name: str) -> None:
    home, attribute = list_aliases()[module, name].split(":")
    loaded = import_module(module)
    with pytest.deprecated_call(match=rf"{name} is deprecated\. Use {home}\.{attribute}\."):
        assert getattr(loaded, name) is getattr(import_module(home), attribute)


def test_old_names_are_found() -> None:
    assert list_aliases()["secateur.keras", "UpdateMasks"] == "secateur.keras:PruningCallback"

"""What packages of Secateur contain, without building them."""

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the build hook sets, without the build backend, which is not installed here."""

    class Hook:
        root = str(ROOT)

    interface = ModuleType("interface")
    vars(interface)["MetadataHookInterface"] = Hook
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: dict[str, Any] = {}
    module.ReadmeHook().update(result)
    return result


def test_the_source_distribution_leaves_nothing_out() -> None:
    build = PROJECT["tool"]["hatch"]["build"]
    assert not {"include", "exclude", "only-include"} & (build.keys() | build["targets"].get("sdist", {}).keys())


def test_links_of_a_package_lead_somewhere(metadata: dict[str, Any]) -> None:
    text = metadata["readme"]["text"]
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "(`docs/install.md`)" in text


def test_files_that_a_package_names_exist(metadata: dict[str, Any]) -> None:
    names = {part.split("`)")[0].split("#")[0] for part in metadata["readme"]["text"].split("(`")[1:]}
    assert "SECURITY.md" in names
    assert [name for name in names if name.endswith(".md") and not (ROOT / name).is_file()] == []

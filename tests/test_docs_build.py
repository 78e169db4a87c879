"""`make docs` must fail if the documentation has a link that leads nowhere."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

mkdocs_cli = pytest.importorskip("mkdocs.__main__", reason="builds the documentation").cli
griffe = pytest.importorskip("griffe", reason="reads the docstrings for the documentation")

ROOT = Path(__file__).parents[1]
PAGE = "# Home\n\n## Install\n\n[here](#install), [there](index.md#install)\n"
BROKEN = {
    "a missing page": ("[text](missing.md)", "link 'missing.md'"),
    "a missing picture": ("![text](images/missing.svg)", "link 'images/missing.svg'"),
    "a missing heading": ("[text](#instal)", "link '#instal'"),
    "a missing heading of a page": ("[text](index.md#instal)", "contains a link 'index.md#instal'"),
    "an absolute path": ("[text](/install)", "absolute link '/install'"),
    "a missing reference": ("[text][secateur.missing]", "cross-reference target 'secateur.missing'"),
}


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Undo what mkdocs configures for a whole process."""
    logger = logging.getLogger("mkdocs")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def read_arguments() -> list[str]:
    """The arguments of mkdocs in the Makefile."""
    command = re.search(r"mkdocs (build[^;\n]*)", (ROOT / "Makefile").read_text("utf-8"))
    assert command is not None
    return command[1].split()


def build(folder: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Build a page as `make docs` does, with the project's own settings."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    settings = {key: settings[key] for key in ("site_name", "plugins", "markdown_extensions", "validation")}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings | {"theme": "mkdocs"}), "utf-8")
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page, "utf-8")
    monkeypatch.chdir(folder)
    return CliRunner().invoke(mkdocs_cli, read_arguments())


def test_a_page_without_broken_links_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = build(tmp_path, PAGE, monkeypatch)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "site" / "index.html").is_file()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_link_fails_the_build(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    markdown, message = BROKEN[kind]
    result = build(tmp_path, f"{PAGE}\n{markdown}\n", monkeypatch)
    assert result.exit_code == 1
    assert message in result.output


SETTINGS = '''
from dataclasses import dataclass
from typing import Annotated
from pydantic import BaseModel

Share = Annotated[float, "a validator"]

class Settings(BaseModel):
    """Settings.

    Attributes:
        share: A share.
    """

    share: Share | None = 0.5

@dataclass
class Method:
    """A method.

    Attributes:
        steps: The steps.
    """

    steps: int = 3

@dataclass
class Result:
    """A result.

    Attributes:
        value: The value.
    """

    value: int
'''


def test_the_reference_shows_defaults_of_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(SETTINGS, "utf-8")
    extension = griffe.load_extensions(ROOT / "docs" / "extensions" / "settings_classes.py")
    module = griffe.load("settings", search_paths=[tmp_path], extensions=extension)
    parameters = {name: module[name].parameters for name in ("Settings", "Method")}
    assert str(parameters["Settings"]["share"].annotation) == "float | None"
    assert str(parameters["Settings"]["share"].default) == "0.5"
    assert str(parameters["Method"]["steps"].default) == "3"
    assert "Args:" in module["Settings"].docstring.value
    assert "Args:" in module["Method"].docstring.value
    assert "Attributes:" in module["Result"].docstring.value

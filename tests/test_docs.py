"""Every Python block of the README and the documentation runs, and every configuration shown loads."""

import contextlib
import io
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if path.is_file()]

# A language that is not here fails, so that no block escapes its check by another spelling of "python".
LANGUAGES = {"bash", "json", "python", "text", "toml", "yaml"}

# "page.md:line" of each Python block marked `notest`, and why it cannot run.
NOT_RUN: dict[str, str] = {}

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")


class Block(NamedTuple):
    page: Path
    line: int  # of the first line of code, from 1
    language: str
    marks: tuple[str, ...]
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    opening: re.Match[str] | None = None
    first = 0
    lines = page.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opening is None:
            opening, first = fence, number + 1
        elif fence["ticks"].startswith(opening["ticks"]) and not fence["info"].strip():
            language, *marks = opening["info"].split() or [""]
            code = textwrap.dedent("\n".join(lines[first - 1 : number - 1])) + "\n"
            yield Block(page, first, language, tuple(marks), code)
            opening = None
    assert opening is None, f"{page.name}:{first - 1}: this block is never closed"


def run_page(page: Path) -> None:
    """Run the Python blocks of a page, in order, in one namespace.

    Raises:
        AssertionError: A block failed; the message starts with the page and the line in it.
    """
    # A real module, so that classes defined on the page can be pickled.
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    try:
        for block in blocks(page):
            if block.language == "python" and block.where not in NOT_RUN:
                run_block(block, module)
    finally:
        del sys.modules[module.__name__]


def run_block(block: Block, module: ModuleType) -> None:
    padded = "\n" * (block.line - 1) + block.code  # so that tracebacks count the lines of the page
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(padded, str(block.page), "exec"), module.__dict__)  # noqa: S102 - our own pages
    except Exception as error:
        message = f"{block.page.name}:{failing_line(block, error)}: {type(error).__name__}: {error}"
        raise AssertionError(message) from error


def failing_line(block: Block, error: Exception) -> int:
    """The line of the page that raised, else that of the syntax error, else the block's first."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(block.page) and frame.lineno]
    if isinstance(error, SyntaxError) and error.filename == str(block.page) and error.lineno:
        lines.append(error.lineno)
    return lines[-1] if lines else block.line


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_shows_valid_configurations(page: Path) -> None:
    from secateur import PruningConfig

    for block in blocks(page):
        if block.language == "yaml" and "config" in block.marks:
            try:
                PruningConfig.from_yaml(block.code)
            except ValueError as error:
                raise AssertionError(f"{block.where}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_a_known_language(page: Path) -> None:
    assert [block.where for block in blocks(page) if block.language not in LANGUAGES] == []


def test_blocks_that_do_not_run_are_listed_with_a_reason() -> None:
    marked = {block.where for page in PAGES for block in blocks(page) if "notest" in block.marks}
    assert marked == set(NOT_RUN)
    assert all(NOT_RUN.values())


# The runner itself.


def write_page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(textwrap.dedent(text), "utf-8")
    return page


def test_blocks_share_one_namespace_and_hide_their_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "```python\nx = [1]\nprint(x)\n```\n\n- item\n\n    ```python\n    x.append(2)\n    ```\n"
    page = write_page(tmp_path, text)
    run_page(page)
    assert capsys.readouterr().out == ""
    assert [block.line for block in blocks(page)] == [2, 9]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ny = x / 0", r"page\.md:7: ZeroDivisionError"),
        ("def f():\n    raise KeyError('k')\nf()", r"page\.md:7: KeyError: 'k'"),
        ("import json\njson.loads('')", r"page\.md:7: JSONDecodeError"),
        ("x = 1\nx = = 2", r"page\.md:7: SyntaxError"),
    ],
)
def test_a_failing_block_is_reported_with_its_line(tmp_path: Path, code: str, message: str) -> None:
    page = write_page(tmp_path, f"# Title\n\nText.\n\n```python\n{code}\n```\n")
    with pytest.raises(AssertionError, match=message):
        run_page(page)


def test_an_open_block_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1: this block is never closed"):
        run_page(write_page(tmp_path, "```python\nx = 1\n"))


def test_marks_and_longer_fences_are_read(tmp_path: Path) -> None:
    page = write_page(tmp_path, "````text\n```python\n1 / 0\n```\n````\n```yaml config\na: 1\n```\n")
    assert [(block.language, block.marks) for block in blocks(page)] == [("text", ()), ("yaml", ("config",))]

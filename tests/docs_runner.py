"""Runs the Python blocks of the README and of the documentation, and calls of the command line.

Most pages run in the main process. What trains with Keras needs a process per backend: the pages in `PER_BACKEND`, and
on any page the blocks that carry backends as marks, as in ``python jax`` or ``python tensorflow torch``. On a page in
`PER_BACKEND` a block without such a mark runs under the backends listed there. In a block marked ``bash run``, each
line calls secateur, and must end with 0 or with what a comment says: ``# exit code 1``. A backslash continues a line.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from typer.testing import CliRunner

from secateur._packages import KERAS_BACKENDS
from secateur.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if path.is_file()]
PER_BACKEND: dict[str, tuple[str, ...]] = {
    "from-tfmot.md": ("tensorflow",),  # what its readers have
    "keras.md": KERAS_BACKENDS,
}

# A language or mark that is not here fails, so that no block escapes its check by another spelling.
MARKS: dict[str, set[str]] = {
    "bash": {"run"},
    "json": set(),
    "python": {"notest", *KERAS_BACKENDS},
    "text": set(),
    "toml": set(),
    "yaml": {"config"},
}

EXIT_CODE = re.compile(r"# exit code (?P<code>\d+)$")

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

    def runs_under(self, backend: str | None) -> bool:
        """Whether this is to be run in the process of a Keras backend; ``None``: in the main process."""
        if self.language == "bash":
            return backend is None and "run" in self.marks
        if self.language != "python" or "notest" in self.marks:
            return False
        if backends := {*self.marks} & {*KERAS_BACKENDS}:
            return backend in backends
        return backend in PER_BACKEND.get(self.page.name, (None,))


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


def unknown_marks(page: Path) -> list[str]:
    """The blocks of a page that name a language or a mark that nobody knows."""
    found = [
        (block, [*({block.language} - MARKS.keys()), *sorted({*block.marks} - MARKS.get(block.language, set()))])
        for block in blocks(page)
    ]
    return [f"{block.where}: {', '.join(map(repr, unknown))}" for block, unknown in found if unknown]


def run_page(page: Path, backend: str | None = None) -> None:
    """Run the Python blocks of a page that belong into this process, in order, in one namespace.

    Args:
        page: The page.
        backend: The Keras backend of this process; ``None``: it is the main process.

    Raises:
        AssertionError: A block failed; the message starts with the page and the line in it.
    """
    # A real module, so that classes defined on the page can be pickled.
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    try:
        for block in blocks(page):
            if block.runs_under(backend):
                run_commands(block) if block.language == "bash" else run_block(block, module)
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


def run_commands(block: Block) -> None:
    number = 0
    for command in re.split(r"(?<!\\)\n", block.code.removesuffix("\n")):
        line = command.replace("\\\n", "")
        program, *arguments = shlex.split(line, comments=True)
        expected = EXIT_CODE.search(line)
        result = CliRunner().invoke(app, arguments)
        where = f"{block.page.name}:{block.line + number}"
        assert program == "secateur", f"{where}: only secateur can be called, found {program!r}"
        wanted = int(expected["code"]) if expected else 0
        assert result.exit_code == wanted, f"{where}: exit code {result.exit_code}, not {wanted}: {result.output}"
        number += command.count("\n") + 1


def failing_line(block: Block, error: Exception) -> int:
    """The line of the page that raised, else that of the syntax error, else the block's first."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(block.page) and frame.lineno]
    if isinstance(error, SyntaxError) and error.filename == str(block.page) and error.lineno:
        lines.append(error.lineno)
    return lines[-1] if lines else block.line

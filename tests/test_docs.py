"""Run every Python block of the README and the documentation, and load every configuration in them."""

import re
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import pytest

from docs_runner import PAGES, PER_BACKEND, blocks, run_page, unknown_marks

# The number of Python blocks marked `notest` on each page, and why they cannot run.
OLD = "code for another package, shown beside what does the same here"
NOT_RUN: dict[str, tuple[int, str]] = {
    "from-neural-compressor.md": (4, f"{OLD}; a Keras model, which tests/backends has"),
    "from-sparseml.md": (2, OLD),
    "from-tfmot.md": (9, OLD),
    "from-torchao.md": (4, OLD),
    "one-shot.md": (1, "needs several processes; tests/distributed/pytorch/test_oneshot.py runs such calls"),
    "runtime.md": (1, "needs a GPU"),
    "sharded.md": (4, "needs several processes: tests/distributed/test_sharded_page.py runs all of it with torchrun"),
    "sentence-transformers.md": (1, "takes seconds; the page about the runtime runs the same"),
}

# Pages whose blocks need a package that not every environment has.
PACKAGES = {"search.md": "optuna"}

# What the column of a page shows without scrolling; the tables that the program prints may need a wide window.
CODE_COLUMNS = 88
TEXT_COLUMNS = 104


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in PACKAGES:
        pytest.importorskip(PACKAGES[page.name])
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    monkeypatch.setattr("secateur.runtime.pytorch.baselines.MAX_COMPILED_MODULES", 0)  # torch.compile takes seconds
    with warnings.catch_warnings():
        if page.parent.name == "how-to":  # other packages warn about each other
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", module=r"secateur|page_")
        run_page(page)


def reset_accelerate() -> None:
    """Forget the settings of accelerate, which the first `Accelerator` of a process determines."""
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


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
def test_every_block_names_a_known_language_and_known_marks(page: Path) -> None:
    assert unknown_marks(page) == []


def find_wide_lines(page: Path) -> list[str]:
    """The lines of blocks that readers would have to scroll."""
    return [
        f"{page.name}:{number}: {len(line)} columns"
        for block in blocks(page)
        for number, line in enumerate(block.code.splitlines(), start=block.line)
        if len(line) > (TEXT_COLUMNS if block.language == "text" else CODE_COLUMNS)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_fit_into_the_column(page: Path) -> None:
    assert find_wide_lines(page) == []


def test_wide_lines_are_reported(tmp_path: Path) -> None:
    lines = "x = 1\n" + "1" * CODE_COLUMNS + "\n" + "1" * (CODE_COLUMNS + 1)
    page = write_page(tmp_path, f"```python\n{lines}\n```\n```text\n{lines}\n```\n")
    assert find_wide_lines(page) == ["page.md:4: 89 columns"]


def test_pages_that_run_per_backend_exist() -> None:
    assert {page.name for page in PAGES} >= PER_BACKEND.keys()


def test_blocks_that_do_not_run_are_listed_with_a_reason() -> None:
    marked = Counter(block.page.name for page in PAGES for block in blocks(page) if "notest" in block.marks)
    assert marked == {page: count for page, (count, _) in NOT_RUN.items()}


# The runner itself.


def write_page(folder: Path, text: str, name: str = "page.md") -> Path:
    page = folder / name
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


def test_commands_run_with_the_documented_exit_code(tmp_path: Path) -> None:
    run_page(write_page(tmp_path, "```bash run\nsecateur --version\nsecateur plan nowhere  # exit code 1\n```\n"))
    run_page(write_page(tmp_path, "```bash run\nsecateur \\\n  --version\n```\n"))
    run_page(write_page(tmp_path, "```bash\nrm -rf everything\n```\n"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("secateur plan nowhere", "exit code 1, not 0: 'nowhere' is not a folder"),
        ("secateur --version  # exit code 1", "exit code 0, not 1"),
        ("echo secateur", "only secateur can be called, found 'echo'"),
    ],
)
def test_a_failing_command_is_reported_with_its_line(tmp_path: Path, command: str, message: str) -> None:
    page = write_page(tmp_path, f"```bash run\nsecateur \\\n  --version\n{command}\n```\n")
    with pytest.raises(AssertionError, match=rf"page\.md:4: {message}"):
        run_page(page)


def test_marks_and_longer_fences_are_read(tmp_path: Path) -> None:
    page = write_page(tmp_path, "````text\n```python\n1 / 0\n```\n````\n```yaml config\na: 1\n```\n")
    assert [(block.language, block.marks) for block in blocks(page)] == [("text", ()), ("yaml", ("config",))]


BACKENDS = """
```python
ran = []
ran.append("unmarked")
```
```python jax
ran.append("jax")
```
```python tensorflow torch
ran.append("tensorflow torch")
```
```python notest
ran.append("notest")
```
"""


@pytest.mark.parametrize(
    ("name", "backend", "expected"),
    [
        ("page.md", None, ["unmarked"]),
        ("page.md", "jax", ["jax"]),
        ("page.md", "torch", ["tensorflow torch"]),
        ("keras.md", None, []),
        ("keras.md", "jax", ["unmarked", "jax"]),
        ("keras.md", "tensorflow", ["unmarked", "tensorflow torch"]),
        ("from-tfmot.md", None, []),
        ("from-tfmot.md", "tensorflow", ["unmarked", "tensorflow torch"]),
        ("from-tfmot.md", "jax", ["jax"]),
    ],
)
def test_marks_and_pages_select_the_backends_of_a_block(
    tmp_path: Path, name: str, backend: str | None, expected: list[str]
) -> None:
    page = write_page(tmp_path, BACKENDS, name)
    codes = [block.code for block in blocks(page) if block.runs_under(backend)]
    assert re.findall(r'append\("(.*)"\)', "".join(codes)) == expected


def test_a_block_of_another_backend_is_not_run(tmp_path: Path) -> None:
    page = write_page(tmp_path, "```python jax\n1 / 0\n```\n")
    run_page(page)
    run_page(page, "torch")
    with pytest.raises(AssertionError, match=r"page\.md:2: ZeroDivisionError"):
        run_page(page, "jax")


@pytest.mark.parametrize(
    ("info", "unknown"),
    [
        ("python jaxx", "'jaxx'"),
        ("python tensorflow numpy", "'numpy'"),
        ("python config", "'config'"),
        ("yaml jax", "'jax'"),
        ("pyhton", "'pyhton'"),
        ("pyhton jax", "'pyhton', 'jax'"),
    ],
)
def test_unknown_languages_and_marks_are_reported(tmp_path: Path, info: str, unknown: str) -> None:
    page = write_page(tmp_path, f"```python jax\n1\n```\n```{info}\n1\n```\n")
    assert unknown_marks(page) == [f"page.md:5: {unknown}"]

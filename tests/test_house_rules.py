"""Check the house rules for the size and shape of the code in src/secateur."""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"

FILE_LINES = 500
BODY_LINES = 50
PARAMETERS = 6
EXAMPLE_COLUMNS = 88  # what the column of the documentation shows without scrolling
MEDIAN_FILE_LINES = 200
MEDIAN_BODY_LINES = 10

# The sections of docstrings that the reference understands: it shows any other as a quotation, with broken examples.
SECTIONS = {"Args", "Attributes", "Examples", "Raises", "Returns", "Source"}
SECTION = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
EXAMPLE = re.compile(r"^\s*((?:>>>|\.\.\.) .*)$", re.MULTILINE)

OPTIONS = "each parameter is an option of the command, and a test freezes them"

SCAN = "one call says what is scanned, with which data, what is measured and how"

SLIM = "one call says what goes, how (exclude, inexact, mode), and what follows it"

INTERFACE = "the signature of what it takes the place of"

PRUNE = "one call says what, with which data, how (solver, refine, allocation) and where"

SEARCH = "one call says what is searched, with which data and costs, how (sampler, seed, stop) and where it is stored"

DISTILLATION = "compat/neural_compressor/_distillation_config.py"
WANDA = "compat/neural_compressor/compression/pruner/wanda/prune.py::prune_wanda"
ANNEALING = "compat/neural_compressor/compression/hpo/sa_optimizer.py::SimulatedAnnealingOptimizer.__init__"

# `str(violation)` of what may break a rule, and why: {"patterns/base.py::get_pattern: parameters": "reason"}
EXCEPTIONS: dict[str, str] = {
    "oneshot/__init__.py::prune: parameters": PRUNE,
    "oneshot/pytorch/__init__.py::prune: parameters": PRUNE,
    "slimming/__init__.py::slim: parameters": SLIM,
    "slimming/keras/__init__.py::slim: parameters": SLIM,
    "slimming/pytorch/zero_units.py::remove_units: parameters": SLIM,
    "analysis/__init__.py::sensitivity: parameters": SCAN,
    "searching/__init__.py::search: parameters": SEARCH,
    "cli/commands/bench.py::bench: parameters": OPTIONS,
    "cli/commands/prune.py::prune: parameters": OPTIONS,
    "cli/commands/sensitivity.py::sensitivity: parameters": OPTIONS,
    "cli/commands/search.py::search: parameters": OPTIONS,
    "cli/commands/slim.py::slim: parameters": OPTIONS,
    "compat/neural_compressor/compression/pruner/__init__.py::prepare_pruning: parameters": INTERFACE,
    "compat/neural_compressor/config.py::WeightPruningConfig.__init__: positional boolean": INTERFACE,
    "compat/neural_compressor/config.py::WeightPruningConfig.__init__: parameters": INTERFACE,
    "integrations/transformers.py::DistillationMixin.compute_loss: positional boolean": INTERFACE,
    f"{DISTILLATION}::IntermediateLayersKnowledgeDistillationLossConfig.__init__: positional boolean": INTERFACE,
    f"{DISTILLATION}::SelfKnowledgeDistillationLossConfig.__init__: positional boolean": INTERFACE,
    f"{WANDA}: parameters": INTERFACE,
    f"{WANDA}: positional boolean": INTERFACE,
    f"{ANNEALING}: parameters": INTERFACE,
    f"{ANNEALING}: positional boolean": INTERFACE,
}

# Spelled in halves, so that this file does not hold what it forbids.
FORBIDDEN_WORDS = ("file" + "://", "pypi" + ".org", "registry." + "npmjs.org", "files." + "pythonhosted.org")


@lru_cache(maxsize=1)
def parse(text: str) -> ast.Module:
    """Parse a module once for the checks that follow each other on it."""
    return ast.parse(text)


class Violation(NamedTuple):
    where: str
    rule: str
    found: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}"


class Function(NamedTuple):
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    is_method: bool
    is_public: bool

    @property
    def parameters(self) -> list[ast.arg]:
        """All parameters except `self` and `cls`."""
        arguments = self.node.args
        positional = self.positional
        extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
        return positional + arguments.kwonlyargs + extra

    @property
    def positional(self) -> list[ast.arg]:
        """All positional parameters except `self` and `cls`."""
        arguments = self.node.args.posonlyargs + self.node.args.args
        decorators = {ast.unparse(decorator) for decorator in self.node.decorator_list}
        return arguments[1:] if self.is_method and "staticmethod" not in decorators else arguments

    @property
    def body_lines(self) -> int:
        """Number of lines from the first statement after the docstring to the last."""
        body = self.node.body[1:] if ast.get_docstring(self.node, clean=False) is not None else self.node.body
        return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def iter_functions(
    tree: ast.AST, prefix: str = "", *, in_class: bool = False, public: bool = True
) -> Iterator[Function]:
    """Iterate over all functions in `tree`, with dotted names; nested functions are not public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = prefix + node.name
            shown = public and (not node.name.startswith("_") or node.name == "__init__")
            yield Function(name, node, in_class, shown)
            yield from iter_functions(node, f"{name}.", public=False)
        elif isinstance(node, ast.ClassDef):
            shown = public and not node.name.startswith("_")
            yield from iter_functions(node, f"{prefix}{node.name}.", in_class=True, public=shown)
        else:
            yield from iter_functions(node, prefix, in_class=in_class, public=public)


def check_file_length(where: str, text: str) -> Iterator[Violation]:
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield Violation(where, "file length", f"{lines} lines, at most {FILE_LINES}")


def check_body_length(where: str, text: str) -> Iterator[Violation]:
    for function in iter_functions(parse(text)):
        if function.body_lines > BODY_LINES:
            yield Violation(
                f"{where}::{function.name}", "body length", f"{function.body_lines} lines, at most {BODY_LINES}"
            )


def check_parameters(where: str, text: str) -> Iterator[Violation]:
    for function in iter_functions(parse(text)):
        if len(function.parameters) > PARAMETERS:
            yield Violation(
                f"{where}::{function.name}", "parameters", f"{len(function.parameters)}, at most {PARAMETERS}"
            )


def check_booleans(where: str, text: str) -> Iterator[Violation]:
    for function in iter_functions(parse(text)):
        for parameter in function.positional if function.is_public else []:
            if parameter.annotation is not None and is_boolean(parameter.annotation):
                yield Violation(f"{where}::{function.name}", "positional boolean", parameter.arg)


def is_boolean(annotation: ast.expr) -> bool:
    """Whether an annotation is `bool`, `bool | ...`, `Optional[bool]` or `Annotated[bool, ...]`, quoted or not."""
    match annotation:
        case ast.Name(id="bool"):
            return True
        case ast.Constant(value=str(quoted)):
            return is_boolean(ast.parse(quoted, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return is_boolean(left) or is_boolean(right)
        case ast.Subscript(value=ast.Name(id="Optional" | "Annotated"), slice=ast.Tuple(elts=[first, *_]) | first):
            return is_boolean(first)
    return False


def check_all(where: str, text: str) -> Iterator[Violation]:
    path = Path(where)
    if path.name != "__init__.py" or any(part.startswith("_") for part in path.parent.parts):
        return
    targets: list[ast.expr] = []
    for node in parse(text).body:
        targets += node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        yield Violation(where, "no __all__")


def check_print(where: str, text: str) -> Iterator[Violation]:
    if Path(where).parts[0] in {"cli", "demo"}:
        return
    for node in ast.walk(parse(text)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield Violation(where, "print", f"line {node.lineno}")


def check_docstrings(where: str, text: str) -> Iterator[Violation]:
    for node in ast.walk(parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node) or ""
        owner = f"{where}::{getattr(node, 'name', '')}"
        for section in sorted(set(SECTION.findall(docstring)) - SECTIONS):
            yield Violation(owner, "section of a docstring", f"{section!r} is none of {', '.join(sorted(SECTIONS))}")
        for line in EXAMPLE.findall(docstring):
            if len(line) > EXAMPLE_COLUMNS:
                yield Violation(owner, "width of an example", f"{len(line)} columns, at most {EXAMPLE_COLUMNS}: {line}")


CHECKS = [
    check_file_length,
    check_body_length,
    check_parameters,
    check_booleans,
    check_all,
    check_print,
    check_docstrings,
]
Check = Callable[[str, str], Iterator[Violation]]


@cache
def read_sources() -> dict[str, str]:
    """Read all modules: path in the package → text."""
    return {path.relative_to(SOURCE).as_posix(): path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}


@cache
def find_violations() -> dict[Check, list[Violation]]:
    """Return check → its violations; every module is parsed once."""
    found: dict[Check, list[Violation]] = {check: [] for check in CHECKS}
    for where, text in read_sources().items():
        for check in CHECKS:
            found[check] += check(where, text)
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_rule(check: Check) -> None:
    assert [f"{found} ({found.found})" for found in find_violations()[check] if str(found) not in EXCEPTIONS] == []


def test_exceptions_are_necessary_and_explained() -> None:
    found = {str(violation) for violations in find_violations().values() for violation in violations}
    assert set(EXCEPTIONS) <= found
    assert all(EXCEPTIONS.values())


def compute_median_file_lines(texts: list[str]) -> float:
    return median(len(text.splitlines()) for text in texts)


def compute_median_body_lines(texts: list[str]) -> float:
    return median(function.body_lines for text in texts for function in iter_functions(parse(text)))


def test_medians() -> None:
    texts = list(read_sources().values())
    assert compute_median_file_lines(texts) < MEDIAN_FILE_LINES
    assert compute_median_body_lines(texts) < MEDIAN_BODY_LINES


def find_words(content: bytes) -> list[str]:
    """Find the forbidden words in a file."""
    return [word for word in FORBIDDEN_WORDS if word.encode() in content.lower()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the tracked files are unknown")
    paths = [ROOT / name for name in listed.split("\0") if name and name != "LICENSE"]
    found = {str(path.relative_to(ROOT)): find_words(path.read_bytes()) for path in paths if path.is_file()}
    assert {name: words for name, words in found.items() if words} == {}


# Each check fails on a bad sample, and passes the same sample put right.

LONG_BODY = "def f() -> None:\n" + "    pass\n" * (BODY_LINES + 1)
SEVEN, SIX = "a, b, c, d, e, f, g", "a, b, c, d, e, f"
STATIC = "class A:\n @staticmethod\n def f"
WIDE, NARROW = (f'"""A.\n\n>>> {"1" * columns}\n"""' for columns in (EXAMPLE_COLUMNS - 3, EXAMPLE_COLUMNS - 4))
LONG_DOCSTRING = 'def f() -> None:\n    """' + "line\n" * (BODY_LINES + 1) + '    """\n    pass\n'


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (check_file_length, "\n" * (FILE_LINES + 1), "\n" * FILE_LINES),
        (check_body_length, LONG_BODY, LONG_DOCSTRING),
        (check_parameters, "def f(a, b, c, d, *e, f, **g): ...", "def f(a, b, c, d, *e, f): ..."),
        (check_parameters, f"class A:\n def f(self, {SEVEN}): ...", f"class A:\n def f(self, {SIX}): ..."),
        (check_parameters, f"{STATIC}({SEVEN}): ...", f"{STATIC}({SIX}): ..."),
        (check_booleans, "def f(a: bool): ...", "def f(*, a: bool): ..."),
        (check_booleans, "def f(a: 'bool | None' = None): ...", "def f(a: 'int | None' = None): ..."),
        (check_booleans, "def f(a: Annotated[bool, 1]): ...", "def f(a: Annotated[int, bool]): ..."),
        (check_booleans, "class A:\n def __init__(self, a: bool): ...", "class _A:\n def __init__(self, a: bool): ..."),
        (check_print, "if True:\n print(1)", "'print(1)'"),
        (check_docstrings, '"""A.\n\nExample:\n    >>> 1\n"""', '"""A.\n\nExamples:\n    >>> 1\n"""'),
        (check_docstrings, WIDE, NARROW),
    ],
)
def test_check_can_fail(check: Check, bad: str, good: str) -> None:
    assert len(list(check("sample.py", bad))) == 1
    assert list(check("sample.py", good)) == []


def test_check_all_can_fail() -> None:
    assert len(list(check_all("patterns/__init__.py", "import os"))) == 1
    assert list(check_all("patterns/__init__.py", "__all__: list[str] = []")) == []
    assert list(check_all("patterns/_kernels/__init__.py", "")) == []
    assert list(check_all("patterns/base.py", "")) == []


def test_only_the_command_line_prints() -> None:
    assert list(check_print("cli/app.py", "print(1)")) == list(check_print("demo/model.py", "print(1)")) == []
    assert len(list(check_print("report/cli.py", "print(1)"))) == 1


def test_medians_count_lines() -> None:
    assert compute_median_file_lines(["\n", "\n\n", "\n" * 9]) == 2
    assert compute_median_body_lines(["def f():\n    'doc'\n    a\n    b\n", "def g(): ..."]) == 1.5


def test_forbidden_words_are_detected() -> None:
    assert find_words(FORBIDDEN_WORDS[0].upper().encode() + b"/home") == [FORBIDDEN_WORDS[0]]
    assert find_words(b"nothing of the kind") == []

"""Names are plain, and a newcomer finds things at the first guess."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"

QUESTIONS = {
    "Wanda": "wanda",
    "the mask of a conv": "mask",
    "resume": "resume",
    "replacing a layer": "replace",
    "AMX": "amx",
    "verify": "verif",
    "group lasso": "group_lasso",
    "cubic schedule": "cubic",
    "2:4": "nm",
    "tied weights": "tied",
    "Gram matrix": "gram",
    "pruning report": "report",
}
"""What a newcomer looks for → what the path of the file contains. Files spell N:M `nm`; a module cannot be called
`verify` like the function beside it."""

IRREGULAR_PARTICIPLES = frozenset(
    {
        "begun",
        "chosen",
        "drawn",
        "found",
        "given",
        "gone",
        "held",
        "kept",
        "known",
        "lent",
        "made",
        "seen",
        "shown",
        "spelt",
    }
    | {"spread", "taken", "told", "torn", "written"}
)
VERBS_IN_ED = frozenset({"embed", "feed", "need", "seed", "shed", "speed"})
COPIES = {"PruningCallback": 3}
"""Class name → the number of training frameworks that have one each, in a module that is named after it."""

SUPERLATIVES = frozenset({"FEWEST", "GREATEST", "HIGHEST", "LEAST", "LONGEST", "MOST", "SMALLEST"})


def is_participle(name: str) -> bool:
    """Whether a function's name begins with a participle where a verb is expected."""
    first = name.strip("_").split("_")[0]
    return first in IRREGULAR_PARTICIPLES or (first.endswith("ed") and first not in VERBS_IN_ED)


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_deprecated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return "warn_deprecated(" in ast.unparse(node)


def functions_named_by_participles(tree: ast.Module) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    named = [node for node in functions if is_participle(node.name)]
    return [node.name for node in named if not is_property(node) and not is_deprecated(node)]


def constants_named_by_superlatives(tree: ast.Module) -> list[str]:
    names = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if name.strip("_").split("_")[0] in SUPERLATIVES]


def classes(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


class Names(NamedTuple):
    participles: list[str]
    superlatives: list[str]
    classes: list[str]


@cache
def read_names() -> dict[str, Names]:
    """Read the names in each module, which is parsed once."""
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        found = Names(functions_named_by_participles(tree), constants_named_by_superlatives(tree), classes(tree))
        names[path.relative_to(SOURCE).as_posix()] = found
    return names


def answers() -> dict[str, list[str]]:
    """Question → the paths that `docs/architecture.md` gives, in the table with the heading *Looking for*."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]*`[^|]+) \|$", text.split("| looking for |")[1].split("\n\n")[0], re.MULTILINE
    )
    return {question.strip(): re.findall(r"`([\w/.]+)`", paths) for question, paths in rows}


@pytest.mark.parametrize(("question", "word"), QUESTIONS.items())
def test_a_newcomer_finds_it(question: str, word: str) -> None:
    path = answers()[question][0]
    assert word in path
    assert (SOURCE / path).exists()


def test_functions_are_named_by_verbs() -> None:
    assert {where: names.participles for where, names in read_names().items() if names.participles} == {}


def test_limits_are_named_max_and_min() -> None:
    assert {where: names.superlatives for where, names in read_names().items() if names.superlatives} == {}


def test_a_class_name_occurs_once() -> None:
    homes = defaultdict(list)
    for where, names in read_names().items():
        for name in names.classes:
            homes[name].append(where)
    assert {name: places for name, places in homes.items() if len(places) > COPIES.get(name, 1)} == {}


def test_each_check_can_fail() -> None:
    tree = ast.parse(
        "def _settled_way(): ...\ndef kept(): ...\ndef feed(): ...\n@property\ndef pruned(self): ...\nMOST_ROWS = 1\n"
    )
    assert functions_named_by_participles(tree) == ["_settled_way", "kept"]
    assert constants_named_by_superlatives(tree) == ["MOST_ROWS"]
    assert classes(ast.parse("class Part: ...\nclass _Part: ...")) == ["Part", "_Part"]

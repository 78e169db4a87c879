"""Nothing that is read can run code: no module of an artifact unpickles, and nothing in this package loads pickles."""

import ast
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from artifact.forgery import artifact
from secateur.artifact import Artifact, inspect, load, verify
from secateur.errors import ArtifactError

SOURCE = Path(__file__).parents[2] / "src" / "secateur"

PICKLING = frozenset({"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})

RUNNING = frozenset({"eval", "exec", "compile", "__import__"})

OPTIONS = frozenset({"allow_pickle", "weights_only"})


def imported(tree: ast.AST) -> Iterator[str]:
    """The top names of what a module imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]


def loads(tree: ast.AST) -> Iterator[str]:
    """Calls that unpickle, or may: ``torch.load`` without ``weights_only=True``, NumPy's pickles, and others."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        last = getattr(node.func, "attr", getattr(node.func, "id", ""))
        name = ast.unparse(node.func) if last in RUNNING | {"load", "loads"} else ""
        options = {option.arg: ast.unparse(option.value) for option in node.keywords if option.arg in OPTIONS}
        if name.endswith("torch.load") and options.get("weights_only") != "True":
            yield name
        if options.get("allow_pickle") == "True" or name in RUNNING or name.endswith(("pickle.load", "pickle.loads")):
            yield name


def trees(folder: Path) -> dict[str, ast.AST]:
    return {path.name: ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))}


def test_no_module_of_an_artifact_imports_a_pickle() -> None:
    found = {name: PICKLING & set(imported(tree)) for name, tree in trees(SOURCE / "artifact").items()}
    assert len(found) > 10
    assert not any(found.values()), found


def test_nothing_here_loads_a_pickle() -> None:
    found = {name: list(loads(tree)) for name, tree in trees(SOURCE).items()}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "line",
    ["torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
     "pickle.loads(text)", "exec(text)"],
)  # fmt: skip
def test_a_load_can_be_found(line: str) -> None:
    assert len(list(loads(ast.parse(line)))) == 1
    assert list(loads(ast.parse("torch.load(path, weights_only=True), np.load(path)"))) == []


def test_an_import_can_be_found() -> None:
    assert set(imported(ast.parse("import pickle\nfrom dill.x import y"))) == {"pickle", "dill"}


def test_an_artifact_is_read_without_any_pickle_being_loaded(tmp_path: Path) -> None:
    """In a process in which to unpickle is an error."""
    artifact(tmp_path / "saved")
    code = (
        "import pickle, sys\n"
        "def refuse(*_, **__): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "from secateur.artifact import Artifact, verify\n"
        "verify(sys.argv[1]); dict(Artifact(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], check=True)


class Evil:
    """What a hostile pickle does."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit(7)",)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "packed-00001-of-00001.safetensors"])
def test_a_pickle_is_never_loaded(name: str, tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(Evil(), whole)
    folder = artifact(tmp_path / "saved", ("norm.bias",))
    for content in (whole.getvalue(), pickle.dumps(Evil())):
        (folder / name).write_bytes(content)
        if name.startswith("packed"):
            with pytest.raises(ArtifactError, match="packed-00001-of-00001"):
                Artifact(folder)
        else:
            verify(folder)
        for use in (verify, inspect, load):
            path = tmp_path / "alone" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            with pytest.raises(ArtifactError):
                use(path.parent)

"""What a type checker says about the constructor of a configuration."""

import shutil
from pathlib import Path

import pytest
from mypy import api

import secateur

SOURCE = Path(secateur.__file__).parent
MODULES = ("_files.py", "_registry.py", "_wording.py", "_yaml.py", "config.py", "errors.py", "py.typed")
"""The configuration with all that it imports; the rest of the package would take mypy long to read."""

GOOD = """
config = PruningConfig(
    pattern="4x1",
    target_sparsity=0.5,
    pruning_scope="local",
    end_step=100,
    sparsity_decay_type=lambda initial, target, progress: target,
    op_names=["encoder.*"],
    pruning_op_types="Linear",
    layers={"head": None, "fc": {"pattern": "2:4"}},
)
criterion: str = PruningConfig(pruning_type="snip").pruning_type
reveal_type(config.target_sparsity)
"""

BAD = {
    'PruningConfig(patern="4x1")': 'Unexpected keyword argument "patern" for "PruningConfig"; did you mean "pattern"?',
    'PruningConfig("4x1")': 'Too many positional arguments for "PruningConfig"',
    "PruningConfig(pattern=4)": 'Argument "pattern" to "PruningConfig" has incompatible type "int"; expected "str"',
    'PruningConfig(pruning_scope="layer")': 'Argument "pruning_scope" to "PruningConfig" has incompatible type',
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says, with its settings as users have them: strict, and without the plugin of pydantic."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "secateur").mkdir()
    (folder / "secateur" / "__init__.py").touch()
    for name in MODULES:
        shutil.copy(SOURCE / name, folder / "secateur")
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n", "utf-8")
    snippet = folder / "snippet.py"
    snippet.write_text("from secateur.config import PruningConfig\n" + GOOD + "\n".join(BAD) + "\n", "utf-8")
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return api.run([*options, "snippet.py"])[0].splitlines()


def test_good_arguments_pass(report: list[str]) -> None:
    first_bad = GOOD.count("\n") + 2
    lines = [line for line in report[:-1] if int(line.split(":")[1]) < first_bad]
    assert len(lines) == 1
    assert "float | None" in lines[0]


@pytest.mark.parametrize("code", BAD)
def test_bad_arguments_do_not(report: list[str], code: str) -> None:
    line = GOOD.count("\n") + 2 + list(BAD).index(code)
    assert any(found.startswith(f"snippet.py:{line}: error: {BAD[code]}") for found in report), report

"""Tests of the flags, the output and the exit codes of the command line."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

import secateur
from cli.kit import model, run, run_json
from secateur._packages import get_install_command
from secateur.cli import app
from secateur.cli.app import GARBAGE_THRESHOLD
from secateur.cli.options import ALLOCATIONS, PATTERNS, RECIPES, REFINERS, SOLVERS

FLAGS = {
    "": {"--debug", "--help", "--install-completion", "--show-completion", "--version"},
    "bench": {"--batch", "--device", "--help", "--inputs", "--json", "--length", "--model", "--report", "--rounds"},
    "convert": {"--dense", "--help", "--json"},
    "demo": {"--full", "--help", "--json", "--out", "--seeds"},
    "inspect": {"--help", "--json", "--picture", "--weights"},
    "plan": {"--calibration", "--config", "--help", "--json", "--pattern", "--target-sparsity"},
    "prune": {
        "--allocation",
        "--calibration",
        "--config",
        "--device",
        "--help",
        "--json",
        "--length",
        "--low-memory",
        "--minutes",
        "--out",
        "--pattern",
        "--permute",
        "--recipe",
        "--refine",
        "--report",
        "--sequences",
        "--solver",
        "--target-sparsity",
        "--weights",
    },
    "report": {"--help", "--json", "--out"},
    "search": {
        "--calibration",
        "--config",
        "--cost",
        "--device",
        "--help",
        "--json",
        "--length",
        "--max-cost",
        "--max-error",
        "--minimize",
        "--objective",
        "--output",
        "--report",
        "--sampler",
        "--seed",
        "--sequences",
        "--space",
        "--storage",
        "--trials",
        "--weights",
    },
    "sensitivity": {
        "--calibration",
        "--config",
        "--device",
        "--help",
        "--json",
        "--length",
        "--metric",
        "--output",
        "--pattern",
        "--report",
        "--sequences",
        "--solver",
        "--sparsity",
        "--weights",
    },
    "slim": {
        "--budget",
        "--calibration",
        "--config",
        "--device",
        "--granularity",
        "--help",
        "--json",
        "--length",
        "--mode",
        "--out",
        "--pattern",
        "--refine",
        "--report",
        "--sequences",
        "--solver",
        "--target-sparsity",
        "--weights",
    },
    "verify": {"--help", "--json", "--pattern"},
}
"""Flags are frozen: everything that a configuration file can contain stays out of the flags."""


def get_plan(*arguments: str) -> Any:
    return run_json("plan", "cli_nets:build", *arguments)


def get_flags(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts if flag.startswith("-")}


def test_flags_are_frozen() -> None:
    group: Any = get_command(app)
    flags = {"": get_flags(group)} | {name: get_flags(command) for name, command in group.commands.items()}
    assert {name: command_flags | {"--help"} for name, command_flags in flags.items()} == FLAGS


@pytest.mark.parametrize("value", [["--sparsity", "0.25"], ["--sparsity=0.25"]])
def test_old_flags_work_and_warn(value: list[str]) -> None:
    result = run("plan", "cli_nets:build", *value, "--json")
    assert json.loads(result.stdout) == get_plan("--target-sparsity", "0.25")
    assert "Warning: --sparsity is deprecated. Use --target-sparsity." in result.stderr
    assert "--method is deprecated. Use --solver." in run("prune", "x", "--method", "wanda", "--out", "out").stderr


@pytest.mark.parametrize("arguments", [["plan", "m", "--method", "wanda"], ["plan", "--", "m", "--sparsity"]])
def test_old_flags_belong_to_their_commands(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "deprecated" not in result.stderr


@pytest.mark.parametrize("command", sorted(FLAGS))
def test_help_names_every_flag(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert all(flag in result.stdout for flag in FLAGS[command])


@pytest.mark.parametrize("command", sorted(FLAGS.keys() - {""}))
def test_help_has_examples(command: str) -> None:
    assert find_line(run(command, "--help"), f"secateur {command} ")


def find_line(result: Result, start: str) -> str:
    return next(line for line in result.stdout.splitlines() if line.strip().startswith(start))


def test_no_arguments_show_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert all(command in result.output for command in FLAGS)
    text = " ".join(result.output.split())
    assert "Exit codes: 0 success, 1 error that the message explains, 2 wrong usage, 70 bug in Secateur" in text


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("secateur")


def test_garbage_is_collected_rarely_only_while_a_command_runs(folder: Path) -> None:
    (folder / "thresholds.py").write_text("import gc\nraise SystemExit(gc.get_threshold()[0])\n", "utf-8")
    before = gc.get_threshold()
    assert f"SystemExit: {GARBAGE_THRESHOLD} " in run("plan", "thresholds:x").stderr
    assert gc.get_threshold() == before
    assert before[0] < GARBAGE_THRESHOLD


def test_module_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "secateur", "--version"], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert ran.stdout == run("--version").stdout


def test_plan_prints_the_plan() -> None:
    result = run("plan", "cli_nets:build", "--pattern", "4x1", "--target-sparsity", "0.8")
    config = secateur.PruningConfig(pattern="4x1", target_sparsity=0.8, pruning_scope="local")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines == str(secateur.plan(model(), config)).splitlines()


def test_json_output_is_only_the_plan() -> None:
    config = secateur.PruningConfig(pattern="2:4", pruning_scope="local")
    result = run("plan", "cli_nets:build", "--pattern", "2:4", "--json")
    assert json.loads(result.stdout) == secateur.plan(model(), config).to_dict()
    assert result.stderr == "building\n"


def test_plan_of_a_keras_file(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    stack = [keras.layers.Dense(16, name="fc"), keras.layers.Dense(3, name="out")]
    keras.Sequential([keras.Input((8,)), *stack]).save(folder / "net.keras")
    result = run("plan", "net.keras", "--pattern", "4x1", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["layers"]
    assert [(row["name"], row["type"], row["units"]) for row in rows] == [("fc", "Dense", 32), ("out", "Dense", 0)]


def test_plan_of_a_keras_model_needs_no_torch(folder: Path) -> None:
    code = "import keras\nnet = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])\n"
    (folder / "keras_nets.py").write_text(code, "utf-8")
    (folder / "torch.py").write_text("raise ImportError('torch is not here')\n", "utf-8")
    blocked = "from secateur.cli import app; app()"
    command = [sys.executable, "-c", blocked, "plan", "keras_nets:net", "--pattern", "4x1", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["layers"][0]["units"] == 8


def test_config_file(folder: Path) -> None:
    config = secateur.PruningConfig(pattern="1xchannel", target_sparsity=0.25, excluded_op_names=("0",))
    for scope, planned in ((None, "local"), ("global", "global")):  # without a scope, as secateur prune
        config = config.model_copy(update={"pruning_scope": scope})
        (folder / "pruning.yaml").write_text(config.to_yaml(), "utf-8")
        expected = secateur.plan(model(), config.model_copy(update={"pruning_scope": planned})).to_dict()
        assert get_plan("--config", "pruning.yaml") == expected


def test_flags_override_the_file(folder: Path) -> None:
    (folder / "pruning.json").write_text('{"pattern": "2:4", "target_sparsity": 0.25, "seed": 3}', "utf-8")
    pruned = get_plan("--config", "pruning.json", "--pattern", "4x1", "--target-sparsity", "0.0")["layers"][0]
    assert (pruned["pattern"], pruned["target_sparsity"]) == ("4x1", 0.0)
    assert get_plan("--config", "pruning.json", "--target-sparsity", "0.5")["layers"][0]["pattern"] == "2:4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is not a folder"),
        (
            ["net.onnx"],
            "'net.onnx' is an ONNX file, which Secateur does not read. Prune the torch or Keras model first",
        ),
        (["net.safetensors"], "'net.safetensors' is a file of weights, which Secateur does not read."),
        (["cli_nets:biuld"], "Did you mean 'build'?"),
        (["torch.nn:Linear"], "raised TypeError"),
        (["json:dumps"], "raised TypeError"),
        (["json:JSONDecoder"], "The model must be a torch.nn.Module or a keras.Model, found JSONDecoder"),
        (["torch.nn:Identity"], "No layer of the model can be pruned"),
        (["cli_nets:build", "--pattern", "4y1"], "Unknown pattern '4y1'. Did you mean '4x1'?"),
        (["cli_nets:build", "--config", "bad.yaml"], "bad.yaml: Unknown key 'patern'. Did you mean 'pattern'?"),
        (["cli_nets:build", "--config", "list.yaml"], "list.yaml: A configuration must be a mapping"),
        (["cli_nets:build", "--config", "broken.yaml"], "broken.yaml: The configuration is not valid YAML"),
        (["cli_nets:build", "--config", "bytes.yaml"], "bytes.yaml: "),
    ],
)
def test_errors_are_messages_with_code_1(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "bad.yaml").write_text("patern: 4x1\n", "utf-8")
    (folder / "list.yaml").write_text("- 4x1\n", "utf-8")
    (folder / "broken.yaml").write_text("pattern: [\n", "utf-8")
    (folder / "bytes.yaml").write_bytes(b"pattern: \xff\xfe\n")
    result = run("plan", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_are_red_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in run("plan", "nowhere").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "cli_nets:build", "--target-sparsity", "1.5"],
        ["plan", "cli_nets:build", "--config", "missing.yaml"],
        ["plan", "cli_nets:build", "--criterion", "magnitude"],
        ["demo", "--seeds", "0"],
        ["demo", "--out", "cli_nets.py"],
        ["prun"],
    ],
)
def test_wrong_usage_has_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "secateur" in result.stderr


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("plan", "cli_nets:build")
    assert result.exit_code == 1
    assert get_install_command("torch") in result.stderr


@pytest.mark.parametrize("package", ["torch", "sklearn"])
def test_missing_package_of_the_demo_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("demo")
    assert result.exit_code == 1
    assert f"{package!r}" in result.stderr
    assert get_install_command("demo") in result.stderr


def test_a_folder_that_cannot_be_created_is_reported_before_any_work() -> None:
    pytest.importorskip("sklearn")
    result = run("demo", "--out", "cli_nets.py/below")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be created: Not a directory." in " ".join(result.stderr.split())


def test_json_output_of_the_demo_is_only_its_report(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pytest.importorskip("sklearn")

    def run_demo(out: Path, seeds: int, console: Any, scale: Any) -> None:
        print("trained")
        console.print(f"{seeds} seeds, solvers: {' '.join(scale.solvers)}")
        (folder / out / "report.json").write_text('{"rows": []}\n', "utf-8")

    monkeypatch.setattr("secateur.demo.run_demo", run_demo)
    result = run("demo", "--out", ".", "--seeds", "2", "--json")
    assert (result.exit_code, result.stdout) == (0, '{"rows": []}\n')
    assert result.stderr == "trained\n2 seeds, solvers: magnitude sparsegpt\n"
    assert "solvers: magnitude wanda sparsegpt alps" in run("demo", "--out", ".", "--full", "--json").stderr


def complete_words(*words: str) -> list[str]:
    """Return the completions that a shell suggests for the last word."""
    environment = {
        "_SECATEUR_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("secateur", *words)),
        "COMP_CWORD": str(len(words)),
    }
    return run(env=environment, prog_name="secateur").stdout.split()


def test_a_shell_completes_commands_and_names() -> None:
    assert complete_words("p") == ["plan", "prune"]
    assert complete_words("prune", "m", "--solver", "a") == ["alps"]
    assert complete_words("prune", "m", "--refine", "d") == ["dsnot", "distill"]
    assert complete_words("prune", "m", "--allocation", "u") == ["uniform"]
    assert complete_words("plan", "m", "--pattern", "2") == ["2:4"]
    assert complete_words("slim", "m", "--pattern", "c") == ["channels"]
    assert complete_words("slim", "m", "--mode", "u") == ["uniform"]
    assert "--low-memory" in complete_words("prune", "--lo")


def test_completed_names_exist() -> None:
    import secateur.allocations
    import secateur.oneshot.pytorch.named_recipes
    import secateur.refiners
    import secateur.solvers
    from secateur.patterns.base import get_pattern_class

    for names, registry in (
        (SOLVERS, secateur.solvers.SOLVERS),
        (REFINERS, secateur.refiners.REFINERS),
        (ALLOCATIONS, secateur.allocations.ALLOCATIONS),
    ):
        assert set(names) == {name for name, kind in registry.items() if kind.__module__.startswith("secateur.")}
    assert set(RECIPES) == set(secateur.oneshot.pytorch.named_recipes.RECIPES)
    assert all(map(get_pattern_class, PATTERNS))


def test_completion_imports_no_framework(folder: Path) -> None:
    code = (
        "import sys, secateur.cli.options as options; options.complete_names(options.SOLVERS)('a'); "
        "print({'torch', 'keras', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert ran.stdout == "set()\n"

"""Tests of ``secateur slim``, and of the patterns ``channels`` and ``heads`` in ``plan`` and ``prune``."""

import copy
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from cli.kit import TEXT, model, run, run_json, write_llama
from models.test_trained import write_gguf
from secateur.models import load_trained

CHANNELS = ("--pattern", "channels", "--target-sparsity", "0.5")
CODE_MODEL = ("cli_nets:build", "--weights", "net.pt", "--calibration", "inputs.npz")


@pytest.fixture
def llama(folder: Path) -> nn.Module:
    """Create the transformers folder ``llama``."""
    pytest.importorskip("transformers")
    return write_llama(folder / "llama")


@pytest.fixture
def net(folder: Path) -> nn.Sequential:
    """Create weights and inputs for ``cli_nets:build``."""
    torch.manual_seed(0)
    made = model()
    torch.save(made.state_dict(), folder / "net.pt")
    np.savez(folder / "inputs.npz", np.random.default_rng(0).standard_normal((20, 8), dtype=np.float32))
    return made


def count_units(report: Any) -> dict[str, tuple[int, int]]:
    """Return name of a group that lost units → its units before and after."""
    return {row["name"]: (row["units"], row["kept_units"]) for row in report["groups"] if row["removed_units"]}


def prune_expected(made: nn.Module, pattern: str = "channels", **settings: Any) -> nn.Module:
    """Return a copy of a model, pruned as the command does."""
    pruned = copy.deepcopy(made).eval()
    inputs = torch.randn(2, 8) if isinstance(made, nn.Sequential) else {"input_ids": torch.arange(14).reshape(2, 7)}
    secateur.prune(pruned, {"pattern": pattern, "target_sparsity": 0.5, **settings}, example_inputs=inputs)
    return pruned


# transformers models


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [("channels", ["intermediate_size"]), ("heads", ["num_key_value_heads", "num_attention_heads"])],
)
def test_a_transformers_model_of_equal_widths_needs_no_secateur(llama: Any, pattern: str, changed: list[str]) -> None:
    result = run("slim", "llama", "--pattern", pattern, "--target-sparsity", "0.5", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert "Example inputs: random input_ids of shape 2×23." in result.stderr.splitlines()
    report = json.loads(result.stdout)
    config = json.loads(Path("out/config.json").read_text("utf-8"))
    assert {name: config[name] * 2 for name in changed} == {name: getattr(llama.config, name) for name in changed}
    assert report["config"] == {name: config[name] for name in changed}
    assert report["load"] == "transformers.LlamaForCausalLM.from_pretrained('out')"
    import transformers

    loaded = eval(report["load"], {"transformers": transformers})  # noqa: S307 - the line that the command prints
    tokens = torch.arange(20).reshape(2, 10)
    expected = prune_expected(llama, pattern)(tokens).logits
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-5)
    assert report["bytes"] == sum(weight.numel() * 4 for weight in loaded.parameters())
    assert report["bytes_before"] == sum(weight.numel() * 4 for weight in llama.parameters())
    assert Path("out/tokenizer.json").read_bytes() == Path("llama/tokenizer.json").read_bytes()
    assert secateur.verify("out").problems == {}


@pytest.mark.usefixtures("llama")
def test_the_output_says_what_was_removed_and_how_to_load_it() -> None:
    result = run("slim", "llama", *CHANNELS, "--out", "out")
    assert result.exit_code == 0, result.stderr
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "Slimmed"
    assert any(
        line.split()[:6] == ["model.layers.0.mlp.gate_proj", "channels", "32", "16", "16", "16"] for line in lines
    )
    assert lines[-2].startswith("Written to out: ")
    assert lines[-1] == "Load it with: transformers.LlamaForCausalLM.from_pretrained('out')"
    assert "Pruned 50.00% of the weights in 6 layers" in result.stderr


@pytest.mark.usefixtures("llama")
def test_different_widths_are_loaded_by_secateur(folder: Path) -> None:
    rules = {"pattern": "channels", "target_sparsity": 0.5, "layers": {r".*layers\.0.*": {"target_sparsity": 0.25}}}
    (folder / "pruning.yaml").write_text(secateur.PruningConfig(**rules).to_yaml(), "utf-8")
    report = run_json("slim", "llama", "--config", "pruning.yaml", "--out", "out")
    assert count_units(report) == {"model.layers.0.mlp.gate_proj": (32, 24), "model.layers.1.mlp.gate_proj": (32, 16)}
    assert report["load"] == "secateur.load('out')"
    loaded = secateur.load("out")
    assert loaded.model.layers[0].mlp.up_proj.out_features == 24
    tokens = torch.arange(20).reshape(2, 10)
    expected = load_trained("llama").model
    secateur.prune(expected, rules, example_inputs={"input_ids": tokens})
    torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)
    uniform = run_json("slim", "llama", "--config", "pruning.yaml", "--mode", "uniform", "--out", "out")
    assert count_units(uniform) == {"model.layers.0.mlp.gate_proj": (32, 24), "model.layers.1.mlp.gate_proj": (32, 24)}
    assert uniform["config"] == {"intermediate_size": 24}


@pytest.mark.usefixtures("llama")
def test_a_pruned_artifact_is_only_cut(folder: Path) -> None:
    text = folder / "roses.txt"
    text.write_text(TEXT, "utf-8")
    given = ("--calibration", "roses.txt")
    pruned = run("prune", "llama", *CHANNELS, *given, "--out", "pruned")
    assert pruned.exit_code == 0, pruned.stderr
    result = run("slim", "pruned", *given, "--out", "slim")
    assert result.exit_code == 0, result.stderr
    assert "Example inputs: 2 sequences of 23 tokens from roses.txt." in result.stderr.splitlines()
    assert "Pruned" not in result.stderr
    tokens = torch.arange(20).reshape(2, 10)
    torch.testing.assert_close(
        secateur.load("slim")(tokens).logits, secateur.load("pruned")(tokens).logits, rtol=0, atol=1e-5
    )
    again = run("slim", "slim", "--out", "again")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "Nothing can be removed from 'slim', because no unit of its " in again.stderr
    assert not Path("again").exists()


@pytest.mark.usefixtures("llama")
def test_widths_are_multiples_of_the_granularity() -> None:
    given = ("--pattern", "channels", "--target-sparsity", "0.4", "--granularity", "8", "--out", "out")
    assert set(count_units(run_json("slim", "llama", *given)).values()) == {(32, 16)}


@pytest.mark.usefixtures("folder")
def test_an_image_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, **sizes)).save_pretrained("vit")
    result = run("slim", "vit", *CHANNELS, "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert "Example inputs: random pixel_values of shape 2×3×32×32." in result.stderr.splitlines()
    assert json.loads(result.stdout)["config"] == {"intermediate_size": 12}


@pytest.mark.usefixtures("folder")
def test_an_encoder_decoder() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained("t5")
    assert run_json("slim", "t5", *CHANNELS, "--out", "out")["config"] == {"d_ff": 12}


def test_a_gguf_file(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    write_gguf(folder / "tiny.gguf")
    report = run_json("slim", "tiny.gguf", *CHANNELS, "--out", "out")
    assert report["config"] == {"intermediate_size": 32}
    assert transformers.AutoModelForCausalLM.from_pretrained("out").model.layers[1].mlp.up_proj.out_features == 32


def test_a_model_in_float16_stays_so(llama: nn.Module) -> None:
    llama.half().save_pretrained("half")
    report = run_json("slim", "half", *CHANNELS, "--out", "out")
    assert report["config"] == {"intermediate_size": 16}
    loaded = secateur.load("out")
    assert report["bytes"] == sum(weight.numel() * 2 for weight in loaded.parameters())
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float16}
    expected = prune_expected(llama.float())
    torch.testing.assert_close(
        loaded.float()(torch.arange(8)[None]).logits, expected(torch.arange(8)[None]).logits, rtol=0, atol=1e-5
    )


# other models


def test_a_model_from_code(net: nn.Sequential) -> None:
    report = run_json("slim", *CODE_MODEL, *CHANNELS, "--out", "out")
    assert count_units(report) == {"0": (16, 8), "2": (16, 8)}
    assert report["load"] == "secateur.load('out', cli_nets.build())"
    loaded = secateur.load("out", model())
    assert [layer.weight.shape for layer in loaded[::2]] == [(8, 8), (8, 8), (3, 8)]
    inputs = torch.randn(4, 8)
    torch.testing.assert_close(loaded(inputs), prune_expected(net)(inputs), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("net")
def test_a_pruned_state_dict_is_only_cut() -> None:
    pruned = prune_expected(model())
    torch.save(pruned.state_dict(), "net.pt")
    report = run_json("slim", *CODE_MODEL, "--out", "out")
    assert count_units(report) == {"0": (16, 8), "2": (16, 8)}


def test_the_line_names_a_model_that_is_not_a_function(net: nn.Sequential, folder: Path) -> None:
    (folder / "my_net.py").write_text("import cli_nets\n\nnet = cli_nets.build()\n", "utf-8")
    result = run("slim", "my_net:net", "--calibration", "inputs.npz", *CHANNELS, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].rstrip() == "Load it with: secateur.load('out', my_net.net)"
    assert net[0].out_features == 16


@pytest.mark.usefixtures("net")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CHANNELS], "no inputs can be generated for Sequential. Pass a file of inputs, .npz or .safetensors, with"),
        (
            ["--calibration", "inputs.npz"],
            "Nothing can be removed from 'cli_nets:build', because no unit of its 4 groups is zero",
        ),
        (["--pattern", "2:4"], "The pattern must be one whose units can be removed, channels or heads, found '2:4'."),
        (["--config", "pruning.yaml"], "The pattern must be one whose units can be removed"),
        (["--target-sparsity", "0.5"], "--target-sparsity is for pruning, which needs a pattern. Add --pattern"),
        (["--granularity", "8"], "--granularity is for pruning, which needs a pattern. Add --pattern"),
        ([*CHANNELS, "--calibration", "wrong.npz"], "The model must accept the example inputs, but"),
        ([*CHANNELS, "--calibration", "inputs.npz", "--out", "full"], "'full' exists and is not an artifact"),
    ],
)
def test_failed_runs_leave_no_folder(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "pruning.yaml").write_text("pattern: 4x1\n", "utf-8")
    (folder / "full").mkdir()
    (folder / "full/notes.txt").write_text("mine", "utf-8")
    np.savez("wrong.npz", np.ones((5, 9), dtype=np.float32))
    result = run("slim", "cli_nets:build", "--out", "out", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("net")
def test_units_that_must_stay_are_named(folder: Path) -> None:
    made = model()
    with torch.no_grad():
        made[0].weight[:, 2] = 0  # nothing reads the third input
        made[4].weight[1] = 0
    torch.save(made.state_dict(), folder / "net.pt")
    result = run("slim", *CODE_MODEL, "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Zero units were kept for these reasons:" in result.stderr


def test_the_default_sparsity_is_announced() -> None:
    result = run("slim", "cli_nets:build", "--pattern", "channels", "--out", ".")
    assert "Warning: 90% of the units of pattern channels are pruned, the default." in result.stderr


def test_an_unknown_mode_is_wrong_usage() -> None:
    result = run("slim", "cli_nets:build", "--mode", "equal", "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")


# plan and prune


def test_a_plan_shows_groups_with_members_and_reasons(llama: nn.Module) -> None:
    result = run("plan", "llama", *CHANNELS, env={"COLUMNS": "240"})
    assert result.exit_code == 0, result.stderr
    assert "computed by gate_proj, up_proj; read by down_proj" in result.stdout
    assert "group of channels" in result.stdout
    report = run_json("plan", "llama", *CHANNELS)
    groups = {group["name"]: group for group in report["groups"]}
    pruned = {name for name, group in groups.items() if group["reason"] is None}
    assert len(pruned) == llama.config.num_hidden_layers
    assert any("the model returns them" in (group["reason"] or "") for group in groups.values())
    assert report["barriers"] == []


def test_a_plan_names_operations_without_a_rule(folder: Path) -> None:
    code = """
        from torch import nn

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

            def forward(self, x):
                return self.head(self.down(self.up(x).renorm(2, 0, 1.0)).relu())
    """
    (folder / "scaled_nets.py").write_text(textwrap.dedent(code), "utf-8")
    np.savez("inputs.npz", np.ones((5, 8), dtype=np.float32))
    given = ("scaled_nets:Scaled", *CHANNELS, "--calibration", "inputs.npz")
    report = run_json("plan", *given)
    assert [barrier.split()[0] for barrier in report["barriers"]] == ["aten.renorm"]
    result = run("plan", *given)
    assert "Operations without a rule: aten.renorm in the model's own code has no rule" in result.stdout
    assert "Example inputs: the first rows of inputs.npz." in result.stderr
    slimmed = run_json("slim", *given, "--out", "out")
    assert slimmed["barriers"] == report["barriers"]
    assert count_units(slimmed) == {"down": (12, 6)}


def test_a_plan_of_heads_needs_no_inputs_for_usual_attention(folder: Path) -> None:
    pytest.importorskip("transformers")
    code = "import tiny_transformers\n\ndef build():\n    return tiny_transformers.bert().bert.encoder\n"
    (folder / "attention_nets.py").write_text(code, "utf-8")
    given = ("attention_nets:build", "--pattern", "heads", "--target-sparsity", "0.5")
    assert [group["units"] for group in run_json("plan", *given)["groups"]] == [4] * 3
    result = run("plan", *given[:1], *CHANNELS)
    assert result.exit_code == 1
    assert "no inputs can be generated for BertEncoder. Pass a file of inputs" in result.stderr


@pytest.mark.parametrize("arguments", [["--pattern", "2:4"], []])
@pytest.mark.usefixtures("net")
def test_calibration_is_for_patterns_that_need_inputs(arguments: list[str]) -> None:
    result = run("plan", "cli_nets:build", *arguments, "--calibration", "inputs.npz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--calibration is for the patterns channels and heads, which need example inputs, found" in result.stderr


@pytest.mark.parametrize("pattern", ["channels", "heads"])
def test_prune_makes_example_inputs(llama: nn.Module, pattern: str) -> None:
    result = run("prune", "llama", "--pattern", pattern, "--target-sparsity", "0.5", "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert "Example inputs: random input_ids of shape 2×23." in result.stderr.splitlines()
    expected, pruned = prune_expected(llama, pattern).state_dict(), secateur.load("out").state_dict()
    assert all(torch.equal(value, pruned[name]) for name, value in expected.items())


@pytest.mark.usefixtures("llama")
def test_channels_need_the_whole_model() -> None:
    result = run("prune", "llama", *CHANNELS, "--low-memory", "--out", "out")
    assert result.exit_code == 1
    assert "channels are found by running the whole model. Leave it out." in result.stderr


# Keras models


def write_keras(folder: Path) -> Any:
    """Write a network to ``net.keras``."""
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    stack = [keras.layers.Dense(16, activation="relu", name="up"), keras.layers.Dense(3, name="down")]
    made = keras.Sequential([keras.Input((8,)), *stack])
    made.save(folder / "net.keras")
    return made


def test_a_plan_of_a_keras_model_needs_no_inputs(folder: Path) -> None:
    write_keras(folder)
    result = run("plan", "net.keras", *CHANNELS, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    groups = json.loads(result.stdout)["groups"]
    assert [group["units"] for group in groups if group["reason"] is None] == [16]


@pytest.mark.parametrize("has_file", [True, False])
def test_a_keras_model_is_slimmed(folder: Path, *, has_file: bool) -> None:
    made = write_keras(folder)
    inputs = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    np.savez("inputs.npz", inputs)
    given = ("--calibration", "inputs.npz") if has_file else ()
    result = run("slim", "net.keras", *CHANNELS, *given, "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    used = "the first rows of inputs.npz" if has_file else "random numbers of shape 2×8"
    assert f"Example inputs: {used}." in result.stderr.splitlines()
    report = json.loads(result.stdout)
    assert list(count_units(report).values()) == [(16, 8)]
    assert (report["bytes_before"], report["bytes"]) == (4 * (9 * 16 + 17 * 3), 4 * (9 * 8 + 9 * 3))
    assert report["load"] == "secateur.load('out')"
    secateur.prune(made, {"pattern": "channels", "target_sparsity": 0.5})
    np.testing.assert_allclose(secateur.load("out")(inputs), made(inputs), rtol=0, atol=1e-5)


def test_a_keras_model_of_any_size_needs_inputs() -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((None, 8))
    keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(16)(inputs))).save("net.keras")
    assert run("plan", "net.keras", *CHANNELS).exit_code == 0
    result = run("slim", "net.keras", *CHANNELS, "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no inputs can be generated for Functional. Pass a file of inputs" in result.stderr
    np.savez("empty.npz")
    result = run("slim", "net.keras", *CHANNELS, "--calibration", "empty.npz", "--out", "out")
    assert "'empty.npz' must have at least one array, found none." in result.stderr


# text


@pytest.mark.parametrize("kind", ["single", "several"])
def test_text_that_is_too_short_is_an_error(llama: nn.Module, kind: str, folder: Path) -> None:
    words = {"single": "prune", "several": "to prune is to cut"}
    (folder / "short.txt").write_text(words[kind], "utf-8")
    result = run("slim", "llama", *CHANNELS, "--calibration", "short.txt", "--out", "out")
    assert result.exit_code == 1
    assert "The text for calibration must have at least 23 tokens" in result.stderr
    assert llama.config.num_hidden_layers == 2


# Calibration data and budgets


@pytest.mark.usefixtures("llama")
def test_a_budget_with_calibration_data() -> None:
    given = ("--budget", "parameters=0.9", "--sequences", "4", "--length", "24")
    result = run("slim", "llama", *given, "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert "Calibration data: 4 sequences of 24 tokens" in result.stderr
    report = json.loads(result.stdout)
    assert report["budget"]["quantity"] == "parameters"
    assert report["weights"] == report["budget"]["measured"] <= 0.9 * report["weights_before"]
    loaded = secateur.load("out")
    assert sum(weight.numel() for weight in loaded.parameters()) == report["weights"]
    assert not Path("out.part").exists()


def test_a_target_with_a_solver_and_uniform_widths(llama: Any) -> None:
    given = ("--solver", "ziplm", "--refine", "block", "--sequences", "4", "--length", "24", "--mode", "uniform")
    report = run_json("slim", "llama", *CHANNELS, *given, "--out", "out")
    assert report["budget"] is None
    assert report["config"] == {"intermediate_size": llama.config.intermediate_size // 2}


@pytest.mark.usefixtures("net")
def test_a_budget_for_code_and_a_file_of_inputs() -> None:
    result = run("slim", *CODE_MODEL, "--budget", "flops=0.7", "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert "Budget: flops at 70.0% of the dense model's" in result.stdout


@pytest.mark.usefixtures("net")
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--budget", "0.5"), "a quantity and a number, such as latency=0.6, found '0.5'"),
        (("--budget", "speed=0.5"), "unknown quantity 'speed'"),
        (("--budget", "parameters=0.5", *CHANNELS), "two targets"),
        (("--solver", "osscar"), "--solver and --refine are for pruning"),
        ((*CHANNELS, "--sequences", "4"), "--sequences is for calibration data"),
    ],
)
def test_options_of_budgets_without_effect(given: tuple[str, ...], text: str) -> None:
    result = run("slim", *CODE_MODEL, *given, "--out", "out")
    assert result.exit_code == 1
    assert text in " ".join(result.stderr.split())
    assert not Path("out").exists()

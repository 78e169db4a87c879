"""Tests of recipes of SparseML and llm-compressor, which become runs or errors with a reason."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.compat.sparseml import read_recipe
from secateur.errors import ConfigError
from secateur.schedules import get_schedule
from tiny_models import mlp
from training.models import backward

pytestmark = pytest.mark.usefixtures("registries_restored")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(16, 16), "mlp": nn.Linear(16, 16)}) for _ in range(2)
        )
        self.lm_head = nn.Linear(16, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + layer["mlp"](layer["q_proj"](hidden))
        out: torch.Tensor = self.lm_head(hidden)
        return out


LAYERS = {f"layers.{index}.{name}" for index in range(2) for name in ("q_proj", "mlp")}


def get_layer_configs(
    config: secateur.PruningConfig, model: nn.Module | None = None
) -> dict[str, secateur.PruningConfig]:
    plan = secateur.plan(Net() if model is None else model, config)
    return {layer.name: layer.config for layer in plan.layers if layer.config is not None}


def write_gradual_recipe(**changes: Any) -> str:
    keys = {
        "init_sparsity": 0.0,
        "final_sparsity": 0.75,
        "start_epoch": 1.0,
        "end_epoch": 5.0,
        "update_frequency": 0.5,
        "params": "__ALL_PRUNABLE__",
        **changes,
    }
    name = keys.pop("name", "GMPruningModifier")
    lines = "".join(f"    {key}: {value}\n" for key, value in keys.items() if value is not None)
    return f"pruning_modifiers:\n  - !{name}\n{lines}"


def write_one_shot_recipe(name: str = "SparseGPTModifier", **keys: Any) -> str:
    lines = "".join(f"      {key}: {value}\n" for key, value in keys.items())
    return f"test_stage:\n  obcq_modifiers:\n    {name}:\n{lines}"


def read_single_run(recipe: str, **options: Any) -> Any:
    (run,) = read_recipe(recipe, **{"steps_per_epoch": 100, **options})
    return run


def test_a_gradual_modifier() -> None:
    run = read_single_run(write_gradual_recipe(mask_type="block4", log_types="__ALL__", leave_enabled=True))
    expected = {
        "pattern": "1x4",
        "target_sparsity": 0.75,
        "criterion": "magnitude",
        "pruning_scope": "local",
        "start_step": 100,
        "end_step": 500,
        "pruning_frequency": 50,
        "sparsity_decay_type": "cubic",
    }
    assert {key: getattr(run.config, key) for key in expected} == expected
    assert (run.name, run.solver, run.allocation) == ("", None, None)
    assert set(get_layer_configs(run.config)) == {*LAYERS, "lm_head"}


def test_the_imported_run_prunes() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = read_single_run(write_gradual_recipe(init_sparsity=0.25, mask_type="block4"), steps_per_epoch=4).prepare(
        model, optimizer=optimizer
    )
    sparsities = []
    for step in range(20):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        sparsities.append(pruner.sparsity)
    assert sparsities[2] == 0.0
    assert sparsities[3] == 0.25
    assert [layer.sparsity for layer in pruner.finalize().layers] == [0.75] * 3


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [
        ("unstructured", "1x1"),
        ("block", "1x4"),
        ("block4", "1x4"),
        ("tensorrt", "2:4"),
        ("[4, 1]", "4x1"),
        ("[-1, 1]", "channelx1"),
        ("[1, -1]", "1xchannel"),
        ("channel", "channelx1"),
        ("filter", "1xchannel"),
    ],
)
def test_masks(mask: str, pattern: str) -> None:
    assert read_single_run(write_gradual_recipe(mask_type=mask, final_sparsity=0.5)).config.pattern == pattern


def test_groups_of_a_gradual_modifier_count_the_kept_weights() -> None:
    assert read_single_run(write_gradual_recipe(mask_type="3:4", final_sparsity=0.25)).config.pattern == "3:4"
    assert read_single_run(write_gradual_recipe(mask_type="'1:4'", final_sparsity=0.75)).config.pattern == "1:4"
    with pytest.raises(ConfigError, match=r"final_sparsity must be 0.25 for 3:4, which keeps 3 of 4, found 0.75"):
        read_single_run(write_gradual_recipe(mask_type="3:4", final_sparsity=0.75))


@pytest.mark.parametrize(
    ("name", "criterion", "scope"),
    [
        ("MagnitudePruningModifier", "magnitude", "local"),
        ("GlobalMagnitudePruningModifier", "magnitude", "global"),
        ("MovementPruningModifier", "movement", "local"),
    ],
)
def test_names_of_gradual_modifiers(name: str, criterion: str, scope: str) -> None:
    config = read_single_run(write_gradual_recipe(name=name, start_epoch=0.0)).config
    assert (config.criterion, config.pruning_scope) == (criterion, scope)
    assert config.start_step == (1 if criterion == "movement" else 0)


@given(initial=st.floats(0.01, 0.7), progress=st.floats(0, 1))
@settings(max_examples=30)
def test_the_schedule_starts_at_the_sparsity_of_the_recipe(initial: float, progress: float) -> None:
    schedule = get_schedule(read_single_run(write_gradual_recipe(init_sparsity=initial)).config.sparsity_decay_type)
    assert schedule(0.0, 0.75, progress) == pytest.approx(0.75 + (initial - 0.75) * (1 - progress) ** 3)


def test_a_run_can_start_with_the_zeros_of_the_model() -> None:
    config = read_single_run(write_gradual_recipe(init_sparsity="__FROM_PARAM__", inter_func="linear")).config
    assert (config.keep_zeros, config.sparsity_decay_type) == (True, "linear")


@pytest.mark.parametrize(
    ("params", "layers"),
    [
        ("['re:.*weight']", {*LAYERS, "lm_head"}),
        (r"['re:.*\.weight']", {*LAYERS, "lm_head"}),
        ("['re:.*q_proj.weight']", {"layers.0.q_proj", "layers.1.q_proj"}),
        (r"['re:layers\.0\..*\.weight$']", {"layers.0.q_proj", "layers.0.mlp"}),
        ("['re:layers.1.*']", {"layers.1.q_proj", "layers.1.mlp"}),
        ("['re:layers.1']", {"layers.1.q_proj", "layers.1.mlp"}),
        ("['re:layers.(0|1).mlp.weight']", {"layers.0.mlp", "layers.1.mlp"}),
        ("[layers.0.mlp.weight, lm_head.weight]", {"layers.0.mlp", "lm_head"}),
        ("layers.0.mlp.weight", {"layers.0.mlp"}),
        ("re:.*mlp.*weight", {"layers.0.mlp", "layers.1.mlp"}),
    ],
)
def test_names_of_parameters(params: str, layers: set[str]) -> None:
    assert set(get_layer_configs(read_single_run(write_gradual_recipe(params=params)).config)) == layers


def test_sparsities_that_name_their_parameters() -> None:
    recipe = write_gradual_recipe(
        params="[]", final_sparsity="{0.5: ['re:.*q_proj.weight'], 0.75: ['re:.*mlp.weight']}"
    )
    found = {name: config.target_sparsity for name, config in get_layer_configs(read_single_run(recipe).config).items()}
    assert found == {name: 0.5 if "q_proj" in name else 0.75 for name in LAYERS}


def test_several_modifiers_of_one_stage() -> None:
    recipe = textwrap.dedent("""
        modifiers:
          - !ConstantPruningModifier
            params: ['re:.*q_proj.weight']
          - !GMPruningModifier
            init_sparsity: 0.05
            final_sparsity: 0.5
            start_epoch: 0
            end_epoch: 4
            update_frequency: -1.0
            params: ['re:.*mlp.weight']
    """)
    found = get_layer_configs(read_single_run(recipe).config)
    assert {name: config.kind for name, config in found.items()} == {
        name: "pattern_lock" if "q_proj" in name else "iterative" for name in LAYERS
    }
    mlps = found["layers.0.mlp"]
    assert (mlps.target_sparsity, mlps.end_step, mlps.pruning_frequency) == (0.5, 400, 1)
    assert mlps.sparsity_decay_type == "cubic_from_0.05"


def test_variables_and_formulas() -> None:
    recipe = textwrap.dedent("""
        num_epochs: 20
        share: 0.5
        end: eval(num_epochs * share + max(1, 2))
        target: 0.8
        version: 1.1.0
        modifiers:
          - !GMPruningModifier
            init_sparsity: 0.0
            final_sparsity: eval(target)
            start_epoch: eval(num_epochs // 10)
            end_epoch: eval(end)
            update_frequency: eval(-(0.5 - 1))
            params: [eval(1), x]
    """).replace("[eval(1), x]", "__ALL_PRUNABLE__")
    config = read_single_run(recipe, steps_per_epoch=10).config
    assert (config.target_sparsity, config.start_step, config.end_step, config.pruning_frequency) == (0.8, 20, 120, 5)


LATER = """
sparsity_stage:
  run_type: oneshot
  sparsity_modifiers:
    SparseGPTModifier:
      sparsity: 0.5
      mask_structure: 2:4
      dampening_frac: 0.05
      block_size: 64
      sequential_update: true
      targets: ['re:layers.\\d*$']
      ignore: ['re:.*lm_head']
finetuning_stage:
  run_type: train
  finetuning_modifiers:
    ConstantPruningModifier:
      targets: ['re:.*q_proj.weight', 're:.*mlp.weight']
      start: 0
quantization_stage:
  quantization_modifiers:
    GPTQModifier:
      ignore: [lm_head]
"""


def test_stages() -> None:
    with pytest.raises(ConfigError, match=r"GPTQModifier is not supported.*leave_out=\['GPTQModifier'\]"):
        read_recipe(LATER)
    first, second = read_recipe(LATER, leave_out="GPTQModifier")
    assert (first.name, first.solver, first.solver_settings) == (
        "sparsity_stage",
        "sparsegpt",
        {"damping": 0.05, "columns": 64},
    )
    assert first.config.pattern == "2:4"
    assert (second.name, second.solver, second.config.kind) == ("finetuning_stage", None, "pattern_lock")
    assert set(get_layer_configs(first.config)) == set(get_layer_configs(second.config)) == LAYERS


def test_one_shot_and_fine_tuning_run() -> None:
    torch.manual_seed(0)
    model = Net()
    first, second = read_recipe(LATER, leave_out=["GPTQModifier"])
    report = first.prune(model, calibration=[torch.randint(8, (4, 16)) for _ in range(2)])
    assert report.sparsity == 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = second.prepare(model, optimizer=optimizer)
    model(torch.randint(8, (4, 16))).square().mean().backward()
    optimizer.step()
    assert pruner.finalize().sparsity == 0.5


@pytest.mark.parametrize(
    ("mask", "sparsity", "pattern"),
    [("1:4", 0.25, "3:4"), ("3:4", 0.75, "1:4"), ("2:4", 0.5, "2:4"), ("4:8", None, "4:8")],
)
def test_groups_of_a_one_shot_modifier_count_the_removed_weights(
    mask: str, sparsity: float | None, pattern: str
) -> None:
    given_keys = {} if sparsity is None else {"sparsity": sparsity}
    assert read_single_run(write_one_shot_recipe(mask_structure=f"'{mask}'", **given_keys)).config.pattern == pattern


@pytest.mark.parametrize("mask", ["'0:0'", "unstructured", None])
def test_unstructured_one_shot(mask: str | None) -> None:
    keys = {} if mask is None else {"mask_structure": mask}
    run = read_single_run(write_one_shot_recipe("WandaPruningModifier", sparsity=0.6, **keys))
    assert (run.solver, run.config.pattern, run.config.target_sparsity) == ("wanda", "1x1", 0.6)


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({}, LAYERS),
        ({"targets": "Linear"}, LAYERS),
        ({"targets": "__ALL_PRUNABLE__"}, {*LAYERS, "lm_head"}),
        ({"targets": "__ALL__", "ignore": "[lm_head]"}, LAYERS),
        ({"targets": "[layers.0]"}, {"layers.0.q_proj", "layers.0.mlp"}),
        ({"targets": "['re:layers.1']"}, {"layers.1.q_proj", "layers.1.mlp"}),
        ({"ignore": "['re:.*q_proj']"}, {"layers.0.mlp", "layers.1.mlp"}),
        ({"ignore": "[layers.0, Embedding]"}, {"layers.1.q_proj", "layers.1.mlp"}),
    ],
)
def test_names_of_modules(keys: dict[str, str], layers: set[str]) -> None:
    assert set(get_layer_configs(read_single_run(write_one_shot_recipe(sparsity=0.5, **keys)).config)) == layers


def test_owl() -> None:
    run = read_single_run(
        write_one_shot_recipe(
            sparsity=0.5, sparsity_profile="owl", owl_m=4, owl_lmbda=0.1, targets="__ALL__", ignore="[lm_head]"
        )
    )
    assert (run.allocation, run.allocation_settings) == ("owl", {"outlier": 4, "spread": 0.1})
    torch.manual_seed(0)
    report = run.prune(Net(), calibration=[torch.randint(8, (4, 16)) for _ in range(2)])
    assert report.sparsity == pytest.approx(0.5)


def test_newer_keys_of_a_gradual_modifier() -> None:
    recipe = textwrap.dedent("""
        pruning_stage:
          pruning_modifiers:
            MagnitudePruningModifier:
              init_sparsity: 0.0
              final_sparsity: 0.5
              start: 0
              end: 2
              update: 0.5
              targets: ['re:.*q_proj.weight']
              mask_structure: MASK
              update_scheduler: polynomial
              scheduler_args: {exponent: 3}
              apply_globally: true
    """)
    config = read_single_run(recipe.replace("MASK", "channel"), steps_per_epoch=10).config
    assert (config.pattern, config.end_step, config.pruning_frequency) == ("1xchannel", 20, 5)
    assert (config.sparsity_decay_type, config.pruning_scope) == ("cube", "global")
    assert read_single_run(recipe.replace("MASK", "filter")).config.pattern == "channelx1"
    assert read_single_run(recipe.replace("MASK", "block_4,1")).config.pattern == "4x1"


def test_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(write_gradual_recipe())
    (tmp_path / "recipe.md").write_text(f"---\n{write_gradual_recipe()}---\n# A recipe\n\nwords: and [more\n")
    expected = read_recipe(write_gradual_recipe(), steps_per_epoch=10)
    assert read_recipe(tmp_path / "recipe.yaml", steps_per_epoch=10) == expected
    assert read_recipe(tmp_path / "recipe.md", steps_per_epoch=10) == expected


def test_a_bare_list_of_modifiers() -> None:
    assert read_recipe(write_gradual_recipe().split("\n", 1)[1], steps_per_epoch=10) == read_recipe(
        write_gradual_recipe(), steps_per_epoch=10
    )


WITH_OTHERS = "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 9\n" + "\n".join(
    write_gradual_recipe().splitlines()[1:]
)


def test_modifiers_are_only_skipped_on_request() -> None:
    with pytest.raises(ConfigError, match=r"EpochRangeModifier is not supported.*leave_out=\['EpochRangeModifier'\]"):
        read_single_run(WITH_OTHERS)
    assert read_single_run(WITH_OTHERS, leave_out=["EpochRangeModifier"]) == read_single_run(write_gradual_recipe())
    with pytest.raises(ConfigError, match=r"leave_out: the recipe has no 'EpochModifier'\. Did you mean 'EpochRange"):
        read_single_run(WITH_OTHERS, leave_out=["EpochModifier"])
    with pytest.raises(ConfigError, match="The recipe has no modifiers to import"):
        read_single_run(write_gradual_recipe(), leave_out=["GMPruningModifier"])


def test_the_configuration_can_be_saved() -> None:
    config = read_single_run(write_gradual_recipe(init_sparsity=0.1)).config
    assert secateur.PruningConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            write_gradual_recipe(final_sparsty=0.5),
            "GMPruningModifier: unknown key 'final_sparsty'. Did you mean 'final_sparsity'",
        ),
        (
            write_gradual_recipe(name="GMPruningModifer"),
            "GMPruningModifer is not supported. Did you mean 'GMPruningModifier'",
        ),
        (
            write_gradual_recipe(final_sparsity=None),
            "GMPruningModifier: final_sparsity must be given, found only: init_sparsity",
        ),
        (write_gradual_recipe(final_sparsity=1.5), r"final_sparsity must be in \[0, 1\], found 1.5"),
        (
            write_gradual_recipe(init_sparsity="half"),
            r"init_sparsity must be in \[0, 1\] or __FROM_PARAM__, found 'half'",
        ),
        (write_gradual_recipe(end_epoch=-1), "end_epoch must not be less than start_epoch, found -1 < 1.0"),
        (write_gradual_recipe(end_epoch="soon"), "end_epoch must be a number of epochs, found 'soon'"),
        (
            write_gradual_recipe(inter_func="inverse_cubic"),
            "inter_func 'inverse_cubic' is not supported. Use linear, cubic or",
        ),
        (write_gradual_recipe(mask_type="diamond"), "mask_type 'diamond' is not supported. Known: unstructured"),
        (write_gradual_recipe(mask_type="{block: 4}"), "mask_type {'block': 4} is not supported"),
        (write_gradual_recipe(params="__ALL__"), "params: __ALL__ includes biases and norms"),
        (write_gradual_recipe(params="[fc.bias]"), "'fc.bias' must be the full name of a layer's weight"),
        (write_gradual_recipe(params="['re:.*fc$']"), r"'re:\.\*fc\$' must end in '.weight'"),
        (write_gradual_recipe(params="['re:a.weight|b.weight']"), "must end in '.weight'.*alternatives in parentheses"),
        (write_gradual_recipe(params="{a: 1}"), "params must be a name or a list of names"),
        (write_gradual_recipe(end_epoch="eval(num_epochs)"), "The recipe has no variable 'num_epochs'"),
        (write_gradual_recipe(end_epoch="eval(1 +)"), r"'eval\(1 \+\)' cannot be evaluated"),
        (write_gradual_recipe(end_epoch="eval(1 / 0)"), "cannot be evaluated: division by zero"),
        (write_gradual_recipe(end_epoch="eval('a' * 9)"), r"must be a number, found 'a'"),
        (
            write_gradual_recipe(end_epoch="eval(open('x'))"),
            r"cannot be evaluated: formulas can contain numbers, variables",
        ),
        (
            write_gradual_recipe(end_epoch="eval([].append)"),
            r"cannot be evaluated: formulas can contain numbers, variables",
        ),
        (
            write_gradual_recipe() + write_gradual_recipe().split("\n", 1)[1],
            r"Each layer can have only one set of settings, found '\.\*' more than once",
        ),
        (
            write_gradual_recipe(final_sparsity="{0.5: [a.weight]}"),
            r"params must be \[\] if final_sparsity contains names",
        ),
        (write_gradual_recipe(start=1), "each key can only have one of its names"),
        (
            "modifiers:\n  - !ConstantPruningModifier\n    params: __ALL_PRUNABLE__\n    start_epoch: 2",
            "start_epoch must be 0",
        ),
        (
            "modifiers:\n  - !ConstantPruningModifier\n    params: __ALL_PRUNABLE__\n    sparsity: 2",
            "unknown key 'sparsity'",
        ),
        ("modifiers:\n  - GMPruningModifier", "A modifier must be a tag with keys, such as !GMPruningModifier"),
        (
            "modifiers:\n  - !GMPruningModifier 3",
            "GMPruningModifier: a modifier must be a mapping of keys to values, found '3'",
        ),
        ("pruning:\n  GMPruningModifier: {}", "The recipe: 'pruning' is neither a group of modifiers nor a stage"),
        ("modifiers: []", "The recipe has no modifiers"),
        ("3", "A recipe must be a YAML mapping or a list of modifiers, found int"),
        ("recipe.yaml", r"found the text 'recipe.yaml'\. To read a file, pass a pathlib.Path"),
        ("a: [", "The recipe is not valid YAML"),
        (
            write_one_shot_recipe(sparsity=0.5, spasity=1),
            "SparseGPTModifier: unknown key 'spasity'. Did you mean 'sparsity'",
        ),
        (write_one_shot_recipe(sparsity="[0.5, 0.6]"), r"sparsity must be a number, found \[0.5, 0.6\]"),
        (write_one_shot_recipe(sparsity=2), "SparseGPTModifier: target_sparsity: .*found 2"),
        (
            write_one_shot_recipe(sparsity=0.75, mask_structure="1:4"),
            "sparsity must be 0.25 for mask_structure='1:4', which removes 1 of 4",
        ),
        (
            write_one_shot_recipe(mask_structure="4:4"),
            "mask_structure must be N:M with N of every M removed, found '4:4'",
        ),
        (write_one_shot_recipe(sparsity=0.5, mask_structure="block"), "mask_structure must be N:M .*found 'block'"),
        (write_one_shot_recipe(sparsity=0.5, preserve_sparsity_mask="true"), "preserve_sparsity_mask is not supported"),
        (
            write_one_shot_recipe(sparsity=0.5, targets="[Linear, layers.0]"),
            "targets must contain either names or types, found both",
        ),
        (write_one_shot_recipe(sparsity=0.5, sparsity_profile="atss"), "sparsity_profile must be 'owl', found 'atss'"),
        (
            write_one_shot_recipe(sparsity=0.5) + "    WandaPruningModifier: {sparsity: 0.5}\n",
            "SparseGPTModifier must be the only modifier in its stage",
        ),
    ],
)
def test_invalid_recipes(recipe: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_single_run(recipe)


def test_epochs_require_steps_per_epoch() -> None:
    with pytest.raises(
        ConfigError, match="steps_per_epoch must be given for GMPruningModifier, which counts in epochs"
    ):
        read_recipe(write_gradual_recipe())


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The recipe cannot be read"):
        read_recipe(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("old", "new"), [("quarter_cosine", "register_quarter_cosine"), ("starting_at", "register_with_start")]
)
def test_old_names_of_schedules_warn(old: str, new: str) -> None:
    from secateur.compat import schedules

    with pytest.deprecated_call(match=new):
        assert getattr(schedules, old) is getattr(schedules, new)

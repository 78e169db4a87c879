"""Test whole runs: each stage reads the outputs of the pruned stages before it, and only weights change."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from oneshot.problems import LAYER_SOLVERS, ProgressRecorder, RunArguments, batches, execute
from secateur.frameworks import WeightView
from secateur.oneshot.report import CalibratedReport
from secateur.patterns import BasePattern, BlockTiling, register_pattern
from secateur.solvers import SOLVERS, Magnitude, Problem, Solution, Solver, SparseGPT, Wanda, register_solver
from tiny_models import bits, deep_mlp
from tiny_transformers import FAMILIES, TEXT, family, inputs_of

DATA_SOLVERS = [name for name in LAYER_SOLVERS if name != "magnitude"]
"""The built-in solvers of single layers that need calibration data."""


class RecordingSolver(Solver):
    """Records its problems."""

    needs = "gram"

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}

    def solve(self, problem: Problem) -> Solution:
        solution = Wanda().solve(problem)
        self.problems["+".join(layer.name for layer in problem.layers)] = problem
        return solution


@pytest.fixture
def solvers_restored() -> Iterator[None]:
    before = dict(SOLVERS)
    yield
    SOLVERS.clear()
    SOLVERS.update(before)


def prune(model: nn.Module, given: Any, config: Mapping[str, Any] | None = None, **options: Any) -> CalibratedReport:
    options = {"solver": "wanda", **options}
    options |= given if isinstance(given, RunArguments) else {"calibration": given}
    report = secateur.prune(model, {"pattern": "2:4"} if config is None else config, **options)
    assert isinstance(report, CalibratedReport)
    return report


def record_rows(model: nn.Module, layer: str, given: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Record the inputs of a layer when the model runs on each text separately, without padding."""
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in given:
            for row in range(len(next(iter(batch.values())))):
                alone = {key: value[row : row + 1] for key, value in batch.items()}
                if (mask := alone.get("attention_mask")) is not None:
                    alone = {key: value[:, : int(mask.sum())] for key, value in alone.items()}
                model(**alone)
    hook.remove()
    return torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in inputs])


@pytest.mark.parametrize("solver", DATA_SOLVERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_every_solver(name: str, solver: str) -> None:
    model = family(name)
    report = prune(model, inputs_of(name, padded=True), solver=solver)
    assert report.sparsity == 0.5
    for layer in report.layers:
        weight = model.get_submodule(layer.name).weight.detach()
        weight = weight.T if name == "gpt2" else weight.flatten(1) if weight.ndim == 2 else weight.permute(0, 2, 3, 1)
        assert ((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all(), layer.name
    assert set(report.errors) == {layer.name for layer in report.layers}
    assert all(0 < error < 1 for error in report.errors.values())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", TEXT)
def test_statistics_come_from_the_pruned_model_without_padding(name: str, padded: bool) -> None:
    """Checks the first layer of the second block, whose inputs do not depend on the pruning of that block."""
    model, given, solver = family(name), inputs_of(name, padded=padded), RecordingSolver()
    prune(model, given, solver=solver)
    key = next(key for key in solver.problems if ".1." in key)
    rows = record_rows(model, key.split("+")[0], given)
    torch.testing.assert_close(solver.problems[key].known_gram[0], rows.T @ rows, rtol=1e-3, atol=1e-3)
    dense = record_rows(family(name), key.split("+")[0], given)
    assert not torch.allclose(solver.problems[key].known_gram[0], dense.T @ dense, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_the_first_block_reads_the_inputs_of_the_dense_model(name: str) -> None:
    model, given, solver = family(name), inputs_of(name), RecordingSolver()
    config = {"pattern": "2:4", "excluded_op_names": [".*patch_embeddings.*", "classifier"]}
    prune(model, given, config if name == "vit" else None, solver=solver)
    key = next(key for key in solver.problems if ".0." in key)
    rows = record_rows(family(name), key.split("+")[0], given)
    torch.testing.assert_close(solver.problems[key].known_gram[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_layers_before_the_stack_are_pruned_first() -> None:
    model, given, solver, progress = family("vit"), inputs_of("vit"), RecordingSolver(), ProgressRecorder()
    prune(model, execute(given, progress=progress), solver=solver)
    stages = [step.stage for step in progress.steps]
    assert stages == ["vit.embeddings.patch_embeddings.projection", *(f"vit.layers.{place}" for place in range(3))]
    key = next(key for key in solver.problems if "layers.0." in key)
    rows = record_rows(model, key.split("+")[0], given)
    torch.testing.assert_close(solver.problems[key].known_gram[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


class Conditioned(nn.Module):
    """Blocks that read their hidden state and the output of a layer before the stack."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.condition = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.fc(x) + self.condition(condition))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        condition = torch.tanh(self.embedding(x))
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x)


def test_blocks_are_called_as_the_pruned_model_calls_them() -> None:
    model, solver = Conditioned(), RecordingSolver()
    given = batches(features=8)
    prune(model, given, solver=solver)
    inputs = torch.cat([torch.tanh(model.embedding(batch)) for batch in given]).detach()
    gram = solver.problems["blocks.1.condition"].known_gram[0]
    torch.testing.assert_close(gram, inputs.T @ inputs, rtol=1e-4, atol=1e-4)


class InPlace(nn.Module):
    """A block that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1.0
        return torch.tanh(self.fc(x))


@pytest.mark.parametrize("offload", ["memory", "disk"])
def test_blocks_can_change_their_input_in_place(offload: Any) -> None:
    torch.manual_seed(0)
    model, solver = nn.Sequential(InPlace(), InPlace(), InPlace(), nn.Linear(8, 2)), RecordingSolver()
    given = batches(features=8)
    before = [batch.clone() for batch in given]
    prune(model, execute(given, offload=offload), solver=solver)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    first = torch.cat(before) + 1
    torch.testing.assert_close(solver.problems["0.fc"].known_gram[0], first.T @ first, rtol=1e-4, atol=1e-3)
    second = torch.tanh(model[0].fc(first)).detach() + 1
    torch.testing.assert_close(solver.problems["1.fc"].known_gram[0], second.T @ second, rtol=1e-4, atol=1e-3)


# Models without a stack


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(4, 8, 3, padding=1)
        self.low = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down = torch.relu(self.down(x))
        low = nn.functional.interpolate(torch.relu(self.low(down)), scale_factor=2)
        return self.head(torch.relu(self.up(torch.cat([down, low], dim=1))))


@pytest.mark.parametrize("solver", DATA_SOLVERS)
def test_a_model_without_a_stack_is_pruned_as_a_whole(solver: str) -> None:
    model, progress = UNet(), ProgressRecorder()
    images = [torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    report = prune(model, execute(images, progress=progress), solver=solver)
    assert [step.stage for step in progress.steps] == ["down to up"]
    assert [layer.sparsity for layer in report.layers] == [0.5] * 3


@pytest.mark.parametrize("solver", DATA_SOLVERS)
@pytest.mark.parametrize("spec", ["1x1", "4x1", "1x4", "2:4", "1xchannel", "channelx1"])
def test_convolutions(spec: str, solver: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"),
        nn.SiLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )
    images = [torch.randn(4, 4, 8, 8) for _ in range(2)]
    report = prune(model, images, {"pattern": spec, "target_sparsity": 0.5}, solver=solver)
    assert [layer.sparsity for layer in report.layers] == [0.5] * 3


@pytest.mark.parametrize("solver", DATA_SOLVERS)
def test_depthwise_convolutions(solver: str) -> None:
    """Each group has one output channel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    images = [torch.randn(4, 8, 8, 8) for _ in range(2)]
    dense = copy.deepcopy(model)
    report = prune(model, images, {"pattern": "1x1", "target_sparsity": 0.5}, solver=solver, refine="pcg")
    assert [layer.sparsity for layer in report.layers] == [0.5, 0.5]
    with torch.no_grad():
        lost = sum((dense[0](image) - model[0](image)).square().sum() for image in images)
        total = sum((dense[0](image) - dense[0].bias[:, None, None]).square().sum() for image in images)
    assert report.errors["0"] == pytest.approx(float(lost / total), rel=1e-3)
    assert report.errors["0"] > 0.01


def test_encoder_layers_of_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    given = [torch.randn(4, 5, 8) for _ in range(2)]
    config = {"pattern": "2:4"}
    report = prune(model, given, config, solver="sparsegpt")
    names = [layer.name.removeprefix("layers.0.") for layer in report.layers[:3]]
    assert names == ["self_attn", "self_attn.out_proj", "linear1"]
    assert report.sparsity == 0.5


def test_tied_weights_are_pruned_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    report = prune(model, batches(features=8), solver="alps")
    assert [layer.name for layer in report.layers] == ["0", "4"]
    assert report.dense["2"] == "shares its weight with '0' and is pruned there"
    assert model[2].weight is model[0].weight


def test_a_head_that_is_tied_to_the_embedding_stays_dense() -> None:
    model = family("gpt2")
    before = model.lm_head.weight.detach().clone()
    assert model.lm_head.weight is model.transformer.wte.weight
    prune(model, inputs_of("gpt2"))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, before)


def test_layers_after_the_stack_read_the_outputs_of_the_pruned_stack() -> None:
    model, given, solver = family("bert"), inputs_of("bert"), RecordingSolver()
    report = prune(model, given, solver=solver)
    assert report.layers[-1].name == "bert.pooler.dense"
    read = []
    hook = model.bert.pooler.dense.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        for batch in given:
            model(**batch)
    hook.remove()
    rows = torch.cat(read)
    torch.testing.assert_close(solver.problems["bert.pooler.dense"].known_gram[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


# The model keeps everything but its weights


def test_everything_but_weights_is_unchanged() -> None:
    model = family("llama").train()
    model.model.layers[1].eval()
    model.model.embed_tokens.requires_grad_(requires_grad=False)
    model.config.use_cache = True
    model.model.norm.register_forward_hook(lambda *_: None)

    def state() -> list[Any]:
        modules = [
            (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        ]
        parameters = [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]
        return [modules, parameters, model.config.use_cache, torch.is_grad_enabled(), torch.get_rng_state().tolist()]

    before = state()
    prune(model, inputs_of("llama", padded=True), solver="alps", refine="pcg")
    assert state() == before


def test_dropout_is_disabled() -> None:
    results = []
    for train in (False, True):
        model = family("gpt2").train(train)
        prune(model, inputs_of("gpt2"), solver="sparsegpt")
        results.append(bits(model))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_disk_and_memory_give_identical_weights(name: str) -> None:
    results = []
    for offload in ("memory", "disk"):
        model = family(name)
        prune(model, execute(inputs_of(name, padded=True), offload=offload), solver="alps")
        results.append(bits(model))
    assert results[0] == results[1]


def test_progress_is_reported_after_each_part() -> None:
    progress = ProgressRecorder()
    prune(deep_mlp(), execute(batches(), progress=progress))
    assert [(step.done, step.total) for step in progress.steps] == [(place, 5) for place in range(1, 6)]
    assert progress.steps[-1].seconds_left == 0
    assert all(step.seconds >= 0 and step.seconds_left >= 0 for step in progress.steps)


def test_the_report_contains_errors() -> None:
    report = prune(deep_mlp(), batches(), solver=SparseGPT(columns=8), refine="pcg")
    assert report.solver.startswith("SparseGPT(damping=0.01, columns=8) + PCG(iterations=10) over ")
    assert "share of a layer's output energy" in str(report)
    assert report.to_dict()["errors"] == report.errors
    assert report.seconds >= report.solver_seconds > 0
    assert report.is_complete


def test_magnitude_is_the_same_with_and_without_data() -> None:
    for config in ({"pattern": "2:4"}, {"pattern": "4x1", "target_sparsity": 0.7, "criterion_reduce_type": "max"}):
        with_data, without = deep_mlp(), deep_mlp()
        prune(with_data, batches(), config, solver="magnitude")
        secateur.prune(without, {**config, "pruning_scope": "local"})
        assert bits(with_data) == bits(without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["magnitude", "wanda", "ria", "sparsegpt", "alps"])
def test_weights_of_every_dtype(solver: str, dtype: torch.dtype) -> None:
    model = deep_mlp(dtype=dtype)
    with torch.no_grad():
        for place in (0, 2, 4):
            model[place].weight *= 1 + 1e-9  # more digits than float32 has, if the dtype has them
    dense = copy.deepcopy(model)
    given = [batch / 16 for batch in batches(dtype=dtype)]
    report = prune(model, given, solver=solver)
    assert report.sparsity == 0.5
    for place in (0, 2, 4):
        weight = model[place].weight
        assert weight.dtype == dtype
        assert not torch.signbit(weight[weight == 0]).any()
        if solver in ("magnitude", "wanda", "ria"):
            assert torch.equal(weight[weight != 0], dense[place].weight[weight != 0])


def test_bounds_hold_with_data_too() -> None:
    bounds = {"min_sparsity_ratio_per_op": 0.2, "max_sparsity_ratio_per_op": 0.5}
    report = prune(deep_mlp(), batches(), {"pattern": "1x1", "target_sparsity": 0.4, **bounds})
    assert [layer.sparsity for layer in report.layers] == pytest.approx([0.4] * 3, abs=0.002)


def test_layers_that_share_inputs_can_have_different_patterns() -> None:
    rules = {
        r".*\.q_proj": {"pattern": "4x1", "target_sparsity": 0.25},
        r".*\.k_proj": {"pattern": "1x1", "target_sparsity": 0.75},
        r".*\.up_proj": None,
    }
    for solver in DATA_SOLVERS:
        report = prune(family("llama"), inputs_of("llama"), {"pattern": "2:4", "layers": rules}, solver=solver)
        sparsities = {layer.name.split(".")[-1]: layer.sparsity for layer in report.layers}
        assert sparsities == {
            "q_proj": 0.25,
            "k_proj": 0.75,
            "v_proj": 0.5,
            "o_proj": 0.5,
            "gate_proj": 0.5,
            "down_proj": 0.5,
        }


# Custom solvers and patterns


@pytest.mark.usefixtures("solvers_restored")
def test_a_registered_solver_is_selected_by_name() -> None:
    @register_solver("last")
    class Last(Solver):
        """Keeps the last weights."""

        needs = "nothing"

        def solve(self, problem: Problem) -> Solution:
            keep = problem.select(torch.arange(problem.weight.numel()).reshape(problem.weight.shape).float())
            return Solution(weight=problem.weight * keep, keep=keep)

    model = deep_mlp()
    report = prune(model, batches(), {"pattern": "1x1", "target_sparsity": 0.5}, solver="last")
    assert report.sparsity == 0.5
    assert report.solver.startswith("Last() over ")
    assert not model[0].weight[:16].any()
    assert model[0].weight[16:].all()


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("solver", ["magnitude", *DATA_SOLVERS])
def test_every_solver_supports_a_registered_pattern(solver: str) -> None:
    @register_pattern("halves")
    class HalvesPattern(BasePattern):
        """A unit is half a row."""

        def tile(self, view: WeightView) -> BlockTiling:
            outputs, positions, inputs = view.canonical_shape
            return BlockTiling((outputs, positions, inputs), (1, positions, inputs // 2))

    model = deep_mlp()
    report = prune(model, batches(), {"pattern": "halves", "target_sparsity": 0.5}, solver=solver)
    assert report.sparsity == 0.5
    halves = model[0].weight.detach().reshape(64, 8)
    assert (halves == 0).all(dim=1).sum() == 32


def test_a_solver_can_be_an_object() -> None:
    results = []
    for solver in ("magnitude", Magnitude()):
        model = deep_mlp()
        prune(model, batches(), solver=solver)
        results.append(bits(model))
    assert results[0] == results[1]


def test_batches_run_up_to_the_last_layer_while_statistics_are_collected() -> None:
    """All but the first run of a dense block stop before its last layer, whose outputs would only be discarded."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3)))
    calls = dict.fromkeys(range(3), 0)

    def count(index: int) -> None:
        calls[index] += 1

    hooks = [block[2].register_forward_hook(lambda *_, index=index: count(index)) for index, block in enumerate(model)]
    prune(model, batches(count=4))
    for hook in hooks:
        hook.remove()
    # Once while statistics are collected, and once with the pruned weights for each of the 4 batches, which the last
    # block does not need.
    assert (calls[1], calls[2]) == (5, 1)

"""Whole runs that remove units: compared with a plain transcription, interrupted, resumed, and refused."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from oneshot.problems import ProgressRecorder
from oneshot.unit_cases import BOTH, CASES, CHANNELS, RidgeSolver, fit, run_batch
from secateur.errors import CalibrationError, ConfigError, StateError
from secateur.graph import Group, Member, Role, trace
from secateur.graph.pytorch import find_heads
from secateur.oneshot import Execution
from secateur.oneshot.magnitude import drop_schedule
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.units.unit_run import UnitRun
from secateur.oneshot.report import CalibratedReport
from secateur.planning.pytorch import plan
from secateur.refiners.base import UnitRefiner
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer
from tiny_models import bits


class InterruptedRunError(Exception):
    pass


def prune(name: str, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, CalibratedReport]:
    case = CASES[name]
    model = case.create() if model is None else model
    arguments = {"calibration": case.batches(), "solver": RidgeSolver(), "example_inputs": case.graph} | options
    config = arguments.pop("config", case.config)
    report = secateur.prune(model, config, **arguments)
    assert isinstance(report, CalibratedReport)
    return model, report


def create_run(name: str, model: nn.Module, **options: Any) -> UnitRun:
    case = CASES[name]
    recipe = Recipe.from_names(options.pop("solver", RidgeSolver()), options.pop("refine", ()))
    execution = options.pop("execution", Execution())
    made = plan(model, drop_schedule(case.config), example_inputs=case.graph, prune_frozen=True)
    identity = options.pop("identity", None)
    run = UnitRun(model, made, recipe, case.batches(), execution, **options)
    run.identity = identity
    return run


def record_features(model: nn.Module, member: Member, batches: Any) -> torch.Tensor:
    """The inputs of a layer, with the kernel positions of a channel next to each other, of shape (tokens, features)."""
    layer = model.get_submodule(member.parameter.removesuffix(".weight"))
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    for batch in batches:
        with torch.no_grad():
            run_batch(model, batch)
        inputs = seen.pop()
        if isinstance(layer, nn.Conv2d):
            columns = functional.unfold(inputs, layer.kernel_size, padding=layer.padding, stride=layer.stride)
            rows.append(columns.transpose(1, 2).reshape(-1, columns.shape[1]))
        else:
            keep = batch["attention_mask"].bool() if isinstance(batch, Mapping) and inputs.ndim == 3 else ...
            rows.append(inputs[keep].reshape(-1, inputs.shape[-1]))
    hook.remove()
    return torch.cat(rows)


class PlainRun:
    """Removes units and repairs what reads them, with the graph and the model only."""

    def __init__(self, model: nn.Module, batches: Any) -> None:
        self.model, self.batches = model, batches
        self.dead: dict[str, torch.Tensor] = {}
        self.losses: dict[str, torch.Tensor] = {}

    def prune(self, group: Group, count: int) -> torch.Tensor:
        losses_U = torch.zeros(group.units, dtype=torch.float64)
        readers = [member for member in group.members if member.role is Role.CONSUMER]
        found = []
        for member in readers:
            weight = self.model.get_parameter(member.parameter).detach()
            is_conv1d = type(self.model.get_submodule(member.parameter.removesuffix(".weight"))).__name__ == "Conv1D"
            matrix = weight.T if is_conv1d else weight.flatten(1)
            positions = matrix.shape[1] // member.shape[member.axis]
            unit_of = torch.full((member.shape[member.axis],), -1)
            for unit, indices in enumerate(member.index_map.indices()):
                unit_of[torch.from_numpy(indices)] = unit
            unit_of = unit_of.repeat_interleave(positions)
            rows = record_features(self.model, member, self.batches)
            energy = matrix.double().square().sum(dim=0) * rows.square().sum(dim=0).sqrt().double() ** 2
            losses_U.index_add_(0, unit_of[unit_of >= 0], energy[unit_of >= 0])
            found.append((member, matrix, unit_of, rows, is_conv1d))
        keep_U = torch.ones(group.units, dtype=torch.bool)
        keep_U[losses_U.argsort(stable=True)[:count]] = False
        for member, matrix, unit_of, rows, is_conv1d in found:
            alive = ~self.dead.get(member.parameter, torch.zeros_like(unit_of, dtype=torch.bool))
            kept = (keep_U[unit_of.clamp(min=0)] | (unit_of < 0))[alive]
            fitted = torch.zeros_like(matrix)
            fitted[:, alive] = fit(matrix[:, alive], (rows.T @ rows)[alive][:, alive], kept)
            parameter = self.model.get_parameter(member.parameter).detach()
            parameter.copy_(fitted.T if is_conv1d else fitted.reshape(parameter.shape))
            self.dead[member.parameter] = ~alive | ((unit_of >= 0) & ~keep_U[unit_of.clamp(min=0)])
        for member in group.members:
            parameter = dict(self.model.named_parameters()).get(member.parameter)
            if parameter is not None and parameter.ndim > 1 and member.role is not Role.PER_CHANNEL:
                for unit, indices in enumerate(member.index_map.indices()):
                    if not keep_U[unit]:
                        parameter.detach().movedim(member.axis, 0)[torch.from_numpy(indices)] = 0
        return keep_U


def list_groups(name: str) -> dict[str, Group]:
    """The groups of a model that the configuration prunes, by the layer that reads them first."""
    graph = CASES[name].graph
    assert graph is not None
    usable = [group for group in graph.groups if group.obstacle is None and group.inexact is None]
    report = prune(name)[1]
    layers = {layer.name for layer in report.layers}
    kinds = {group.kind for group in report.groups}
    found = {}
    for group in usable:
        readers = [m.parameter.removesuffix(".weight") for m in group.members if m.role is Role.CONSUMER]
        if group.kind in kinds and layers.issuperset(readers):
            found[readers[0]] = group
    return found


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "llama", "bert", "gpt2"])
def test_a_run_equals_its_transcription(name: str) -> None:
    model, plain = CASES[name].create(), CASES[name].create()
    run = create_run(name, model)
    report = run.prune()
    by_reader = list_groups(name)
    transcription = PlainRun(plain, CASES[name].batches())
    assert len(run.groups) == len(report.groups) > 1
    for group in run.groups:
        (found,) = [
            other
            for other in by_reader.values()
            if {m.parameter.removesuffix(".weight") for m in other.members if m.role is Role.CONSUMER}
            == {reader.name for reader in group.readers}
        ]
        transcription.prune(found, round(found.units / 2))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: key + m)
        assert torch.equal(model.state_dict()[key] == 0, value == 0), key
    batch = CASES[name].batches()[0]
    with torch.no_grad():
        torch.testing.assert_close(run_batch(model, batch), run_batch(plain, batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_every_group_loses_its_share(name: str) -> None:
    dense = CASES[name].create()
    model, report = prune(name, example_inputs=None)  # the first batch serves
    assert report.groups
    for group in report.groups:
        assert group.pruned_units == round(group.units / 2)
    assert report.unit_sparsity == pytest.approx(0.5, abs=0.05)
    assert all(0 <= error < 1 for error in report.errors.values())
    for layer in report.layers:
        weight = dict(model.named_parameters())
        found = next(weight[key] for key in (f"{layer.name}.weight", f"{layer.name}.in_proj_weight") if key in weight)
        # Weights that read features which are always zero can be zero too.
        assert 0 < layer.pruned_weights <= int((found == 0).sum())
    changed = {key for key, value in dense.state_dict().items() if not torch.equal(model.state_dict()[key], value)}
    weights = {f"{layer.name}.{key}" for layer in report.layers for key in ("weight", "in_proj_weight")}
    assert changed <= weights
    assert report.blind == {}
    assert "RidgeSolver() over Uniform()" in report.solver


@pytest.mark.parametrize("name", ["convolutions", "llama", "encoder"])
def test_repair_is_better_than_zeros(name: str) -> None:
    class NoRepair(RidgeSolver):
        def update_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor) -> ConsumerUpdate:
            return ConsumerUpdate(weight=consumer.weight * consumer.mask_features(keep_U))

    batch, errors = CASES[name].batches()[0], []
    with torch.no_grad():
        expected = run_batch(CASES[name].create(), batch)
        for solver in (RidgeSolver(), NoRepair()):
            outputs = run_batch(prune(name, solver=solver)[0], batch)
            errors.append(float((outputs - expected).square().mean()))
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("name", ["convolutions", "llama"])
def test_a_global_ranking_removes_the_target_in_total(name: str) -> None:
    _, report = prune(name, allocation="global")
    counts = {group.name: (group.pruned_units, group.units) for group in report.groups if group.kind == "channels"}
    removed, units = (sum(column) for column in zip(*counts.values(), strict=True))
    assert removed == round(units / 2)
    assert any(count != round(total / 2) for count, total in counts.values())
    assert all(count < total for count, total in counts.values())


def test_counts_are_chosen_from_paths_of_the_dense_model() -> None:
    model = CASES["llama"].create()
    expected = create_run("llama", CASES["llama"].create()).measure_paths()
    seen: list[Mapping[str, RemovalPath]] = []

    def choose(paths: Mapping[str, RemovalPath]) -> dict[str, int]:
        seen.append(paths)
        return {"model.layers.1.self_attn": 2, "model.layers.0.mlp.gate_proj.channels": 3}

    report = create_run("llama", model, choose_counts=choose).prune()
    (paths,) = seen
    assert paths.keys() == expected.keys() == {group.name for group in report.groups}
    for name, path in paths.items():
        assert torch.equal(path.order, expected[name].order)
        torch.testing.assert_close(path.losses, expected[name].losses)
    assert {group.name: group.pruned_units for group in report.groups if group.pruned_units} == {
        "model.layers.1.self_attn": 2,
        "model.layers.0.mlp.gate_proj.channels": 3,
    }
    for key in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert (model.get_submodule(f"model.layers.1.self_attn.{key}").weight == 0).all()
    assert (model.model.layers[0].self_attn.q_proj.weight != 0).all()


def test_losses_count_what_matters_for_the_loss() -> None:
    """The error of each output is weighted by the mean square of the gradient."""
    model = CASES["perceptron"].create()
    with torch.no_grad():
        model[4].weight *= 1000
    run = create_run("perceptron", model)
    batches = CASES["perceptron"].batches()
    paths = run.measure_paths()
    first = nn.Sequential(*list(model)[:2])
    rows = first(torch.cat(batches)).detach()
    squares = []
    for batch in batches:
        hidden = model[2](first(batch)).detach().requires_grad_()
        outputs = model[4](model[3](hidden))
        generator = torch.Generator().manual_seed(20221130 + len(squares))
        projection = torch.randn(outputs.shape, generator=generator)
        squares.append(torch.autograd.grad((outputs * projection).sum(), hidden)[0].square())
    importance = torch.cat(squares).mean(dim=0).double()
    energy = (importance[:, None] * model[2].weight.detach().double().square()).sum(0) * rows.square().sum(0).double()
    torch.testing.assert_close(
        paths["0.channels"].losses[1:].double(), energy.sort().values.cumsum(0), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"0.channels": 9}, "'0.channels': it has 8 units and cannot lose 9 of them"),
        ({"0.channels": -1}, "'0.channels': it has 8 units and cannot lose -1 of them"),
        ({"nothing": 1}, "counts must be of the groups '0.channels', '2.channels', found 'nothing'"),
    ],
)
def test_impossible_counts_are_refused(counts: dict[str, int], message: str) -> None:
    model = CASES["perceptron"].create()
    before = bits(model)
    with pytest.raises(ConfigError, match=message):
        create_run("perceptron", model, choose_counts=lambda _: counts).prune()
    assert bits(model) == before


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "llama"])
def test_offloaded_runs_have_the_same_bits(name: str) -> None:
    expected = bits(prune(name)[0])
    assert bits(prune(name, execution=Execution(offload="disk"))[0]) == expected
    assert bits(prune(name, execution=Execution(device="cpu"))[0]) == expected


@pytest.mark.parametrize(("name", "options"), [("convolutions", {"allocation": "global"}), ("llama", {})])
def test_interrupted_runs_resume_with_the_same_bits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    recorder = ProgressRecorder()
    expected, report = prune(name, execution=Execution(progress=recorder), **options)
    stages = len(recorder.steps)
    assert stages > 2
    model = CASES[name].create()
    before = bits(model)
    for at in range(1, stages):
        stop = Execution(folder=tmp_path, progress=ProgressRecorder(InterruptedRunError, at))
        with pytest.raises(InterruptedRunError) as caught:
            prune(name, model, execution=stop, **options)
        assert bits(model) == before
        assert f"{at} finished part" in caught.value.__notes__[0]
    _, resumed = prune(name, model, execution=Execution(folder=tmp_path), **options)
    assert bits(model) == bits(expected)
    assert resumed.groups == report.groups
    assert resumed.layers == report.layers
    assert resumed.errors == report.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "share"), [("convolutions", 0.3), ("convolutions", 0.8), ("llama", 0.5), ("llama", 1.0)]
)
def test_a_failing_batch_leaves_the_dense_model(name: str, share: float) -> None:
    def prune_with(last_call: float) -> tuple[nn.Module, int]:
        model, calls = CASES[name].create(), []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == last_call:
                raise KeyboardInterrupt

        layer = model.mixed if name == "convolutions" else model.model.layers[2].mlp.down_proj
        layer.register_forward_pre_hook(fail)
        if last_call == math.inf:
            prune(name, model)
        else:
            with pytest.raises(KeyboardInterrupt):
                prune(name, model)
        return model, len(calls)

    _, total = prune_with(math.inf)
    model, calls = prune_with(round(share * total))
    assert calls == round(share * total)
    assert bits(model) == bits(CASES[name].create())
    assert sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()) == 1
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_kept_parts_give_the_same_result_without_solving(tmp_path: Path) -> None:
    class NoSolver(RidgeSolver):
        def rank_units(self, problem: Any) -> RemovalPath:
            raise AssertionError(problem.name)

        def __repr__(self) -> str:
            return "RidgeSolver()"

    execution = Execution(folder=tmp_path, keep_parts=True)
    expected, report = prune("llama", execution=execution, allocation="global")
    model, again = prune("llama", execution=execution, allocation="global", solver=NoSolver())
    assert bits(model) == bits(expected)
    assert again.groups == report.groups


def test_the_second_pass_ranks_only_the_units_that_are_removed() -> None:
    asked: list[tuple[str, int | None]] = []

    class Recorder(RidgeSolver):
        def rank_units(self, problem: Any) -> RemovalPath:
            asked.append((problem.name, problem.max_removed))
            return super().rank_units(problem)

    _, report = prune("llama", allocation="global", solver=Recorder())
    removed = {group.name: group.pruned_units for group in report.groups}
    assert sorted(asked[: len(removed)]) == sorted((name, None) for name in removed)
    assert sorted(asked[len(removed) :]) == sorted((name, count) for name, count in removed.items() if count)


def test_another_choice_of_counts_does_not_resume(tmp_path: Path) -> None:
    model = CASES["llama"].create()
    execution = Execution(folder=tmp_path, progress=ProgressRecorder(InterruptedRunError, 1))
    with pytest.raises(InterruptedRunError):
        create_run("llama", model, execution=execution, choose_counts=lambda _: {}, identity={"flops": 0.5}).prune()
    with pytest.raises(StateError, match="differs in counts"):
        create_run(
            "llama", model, execution=Execution(folder=tmp_path), choose_counts=lambda _: {}, identity={"flops": 0.6}
        ).prune()


class Shift(UnitRefiner):
    """Adds to the bias what the removed units give on average."""

    unit_needs = "norms"

    def refine_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor, update: ConsumerUpdate) -> ConsumerUpdate:
        if not consumer.has_bias:
            return update
        assert consumer.means is not None
        return ConsumerUpdate(
            weight=update.weight, bias_change=(consumer.weight - update.weight) @ consumer.means * (keep_U.sum() > 0)
        )


def test_refiners_change_biases() -> None:
    dense = CASES["convolutions"].create()
    model, report = prune("convolutions", refine=Shift())
    assert report.solver.startswith("RidgeSolver() + Shift")
    changed = {key for key, value in dense.state_dict().items() if not torch.equal(model.state_dict()[key], value)}
    assert {key for key in changed if key.endswith("bias")} == {
        f"{name}.bias" for name in ("conv1", "conv2", "side", "mixed", "classifier")
    }


def test_blocks_and_the_model_are_refined() -> None:
    _, plain = prune("llama")
    model, report = prune("llama", refine=["block", "distill"])
    dense = CASES["llama"].create()
    assert report.groups == plain.groups
    zeros = {layer.name: int((model.get_submodule(layer.name).weight == 0).sum()) for layer in report.layers}
    assert zeros == {layer.name: layer.pruned_weights for layer in plain.layers}
    assert not torch.equal(model.model.norm.weight, dense.model.norm.weight)
    with pytest.raises(ConfigError, match="needs a model with a stack of blocks"):
        prune("convolutions", refine="block")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_the_bits_of_what_stays(dtype: torch.dtype) -> None:
    dense, model = CASES["bert"].create().to(dtype), CASES["bert"].create().to(dtype)
    _, report = prune("bert", model, solver="fisher", allocation="global")
    assert report.unit_sparsity == pytest.approx(0.5, abs=0.05)
    for name, weight in model.named_parameters():
        before = dense.get_parameter(name)
        assert weight.dtype == dtype
        if "output.dense" not in name and "classifier" not in name:
            assert ((weight == before) | (weight == 0)).all(), name


def test_layers_that_cannot_be_measured_are_listed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    before = model[2].weight.detach().clone()
    images = [torch.randn(2, 3, 8, 8)]
    report = secateur.prune(model, CHANNELS, calibration=images, solver=RidgeSolver())
    assert list(report.blind) == ["2"]
    assert "2" not in report.errors
    assert "Not repaired: '2': its output positions read" in str(report)
    kept = model[2].weight != 0
    assert int(kept.sum()) == 3 * 2 * 9
    assert torch.equal(model[2].weight[kept], before[kept])


def test_a_stack_after_pruned_layers_reads_their_outputs() -> None:
    """The layers before the blocks are pruned first, and the inputs of the blocks are recorded again."""

    class Block(nn.Sequential):
        def __init__(self, hidden: int) -> None:
            super().__init__(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 6))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + super().forward(inputs)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Block(10)
            self.layers = nn.ModuleList(Block(8) for _ in range(3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = self.stem(inputs)
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    torch.manual_seed(0)
    model, data = Model(), CASES["perceptron"].batches()
    plain, progress = copy.deepcopy(model), ProgressRecorder()
    config = CHANNELS | {"op_names": ["stem.*", r"layers\.\d\..*"]}
    secateur.prune(model, config, calibration=data, solver=RidgeSolver(), execution=Execution(progress=progress))
    assert [step.stage for step in progress.steps][1:] == ["layers.0", "layers.1", "layers.2"]
    graph = trace(plain, data[0])
    transcription = PlainRun(plain, data)
    for reader in ("stem.2", "layers.0.2", "layers.1.2", "layers.2.2"):
        (group,) = [
            group
            for group in graph.groups
            if any(m.role is Role.CONSUMER and m.parameter == f"{reader}.weight" for m in group.members)
        ]
        transcription.prune(group, group.units // 2)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "sparsegpt"}, "solver must support groups of units, .* found SparseGPT"),
        ({"refine": "dsnot"}, "refiner must support groups of units, .* found DSnoT"),
        ({"allocation": "owl"}, "allocation must be 'uniform' or 'global' for patterns of units"),
        ({"config": BOTH | {"layers": {"2": {"pattern": "2:4"}}}}, "cannot be mixed with others, here '2:4'"),
        ({"config": "2:4"}, "solver must support single layers, .* found RidgeSolver"),
        ({"config": "4x1", "solver": "wanda", "refine": Shift()}, "refiner must support single layers, .* found Shift"),
        ({"config": CHANNELS | {"keep_zeros": True}}, "solvers do not support keep_zeros"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    model = CASES["perceptron"].create()
    before = bits(model)
    with pytest.raises(ConfigError, match=message):
        prune("perceptron", model, **options)
    assert bits(model) == before


def test_weights_in_files_are_refused(tmp_path: Path) -> None:
    execution = Execution(weights=tmp_path / "weights", folder=tmp_path / "pruned")
    with pytest.raises(ConfigError, match="units in several layers are found in the whole model"):
        prune("llama", execution=execution)


def test_a_solver_that_removes_another_number_is_refused() -> None:
    class Stubborn(RidgeSolver):
        def select_units(self, problem: Any, path: RemovalPath, removed: int) -> torch.Tensor:
            return super().select_units(problem, path, removed - 1)

    model = CASES["perceptron"].create()
    before = bits(model)
    with pytest.raises(ConfigError, match=r"Stubborn must remove 4 of 8 units of '0\.channels', found 3 of 8"):
        prune("perceptron", model, solver=Stubborn())
    assert bits(model) == before


@pytest.mark.parametrize("solver", ["osscar", "ziplm", "taylor", "fisher"])
def test_a_given_loss_says_what_matters(solver: str) -> None:
    """The channels of a branch that the loss ignores go first."""

    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(inputs), self.second(inputs)

    torch.manual_seed(0)
    model = TwoBranches()
    data = [(rows, torch.randn(len(rows), 3)) for rows in CASES["perceptron"].batches()]

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return functional.mse_loss(outputs[0], batch[1])

    report = secateur.prune(
        model, CHANNELS | {"target_sparsity": 0.4}, calibration=data, solver=solver, allocation="global", loss=loss
    )
    assert {group.name: group.pruned_units for group in report.groups} == {
        "first.0.channels": 0,
        "second.0.channels": 6,
    }


def test_layers_that_read_zeros_are_listed() -> None:
    model = CASES["perceptron"].create()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    _, report = prune("perceptron", model, solver="osscar", refine=["ridge", "bias"])
    assert report.blind == {"2": "its inputs are all zero"}
    assert [group.pruned_units for group in report.groups] == [4, 5]


def test_inputs_that_are_not_finite_are_refused() -> None:
    model = CASES["perceptron"].create()
    with torch.no_grad():
        model[0].bias.fill_(math.inf)
    with pytest.raises(CalibrationError, match="its inputs must be finite, found inf or nan"):
        prune("perceptron", model)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *[("llama", solver) for solver in ("osscar", "ziplm", "magnitude", "wanda", "taylor", "fisher")],
        *[("convolutions", solver) for solver in ("osscar", "wanda", "taylor")],
        *[("encoder", solver) for solver in ("ziplm", "magnitude", "fisher")],
    ],
)
def test_whole_branches_go(name: str, solver: str) -> None:
    """Every built-in solver and refiner copes with groups that lose all of their units."""
    model = CASES[name].create()
    run = create_run(name, model, solver=solver, refine=["ridge", "bias"], choose_counts=lambda _: counts)
    whole = [group.name for group in run.groups if name != "convolutions" or group.name == "conv1.channels"]
    counts = {group.name: group.rule.units for group in run.groups if group.name in whole}
    report = run.prune()
    assert {group.name: group.pruned_units for group in report.groups if group.pruned_units} == counts
    for group in run.groups:
        for reader in group.readers if group.name in whole else ():
            assert (reader.weight.stored == 0).all()
    with torch.no_grad():
        assert run_batch(model, CASES[name].batches()[0]).isfinite().all()


def test_layers_are_measured_without_running_what_follows() -> None:
    model = CASES["llama"].create()
    calls = {"o_proj": 0, "down_proj": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    block = model.model.layers[1]
    block.self_attn.o_proj.register_forward_pre_hook(count("o_proj"))
    block.mlp.down_proj.register_forward_pre_hook(count("down_proj"))
    batches = [dict(CASES["llama"].batches()[0]) for _ in range(5)]
    secateur.prune(model, BOTH, calibration=batches, solver=RidgeSolver())
    # Of the pass for the heads, only the first batch reaches the layers after them.
    assert calls["o_proj"] - calls["down_proj"] == 4


def test_heads_of_models_without_example_inputs() -> None:
    groups = find_heads(CASES["encoder"].create())
    _, report = prune("encoder")
    assert [group.units for group in report.groups] == [group.units for group in groups] == [4, 4]

"""Test models that do not fit on the device or in memory: where their weights are during a run, and afterwards."""

import gc
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import secateur
from oneshot.problems import ProgressRecorder, batches, execute
from secateur.allocations import Allocation, AllocationTask
from secateur.errors import ConfigError, LayerError, ModelLoadError, ScoreError, StateError, UnsupportedModelError
from secateur.oneshot import Execution
from secateur.oneshot.pytorch.calibration.batches import move_to
from secateur.oneshot.pytorch.storage import weight_storage
from secateur.oneshot.pytorch.storage.weight_storage import DeviceStorage
from secateur.oneshot.report import CalibratedReport
from secateur.solvers import Problem, Solution, Solver, Wanda
from tiny_models import bits, deep_mlp
from tiny_transformers import TEXT, family, inputs_of

CONFIG = {"pattern": "2:4"}

IN_BLOCKS: dict[str, dict[str, Any]] = {
    "bert": {**CONFIG, "excluded_op_names": [r".*pooler.*"]},
    "vit": {**CONFIG, "excluded_op_names": [r".*patch_embeddings.*"]},
}
"""Family → a configuration that excludes layers outside of blocks, for families that have some."""


def prune(model: nn.Module, given: Any, **options: Any) -> CalibratedReport:
    options = {"solver": "wanda", **options}
    report = secateur.prune(model, options.pop("config", CONFIG), **given, **options)
    assert isinstance(report, CalibratedReport)
    return report


class ObservingSolver(Solver):
    """Wanda that records the result of `observe` at each call."""

    needs = "norms"

    def __init__(self, observe: Any, fails_at: int | None = None) -> None:
        self.observations: list[Any] = []
        self._observe = observe
        self._fails_at = fails_at

    def solve(self, problem: Problem) -> Solution:
        self.observations.append(self._observe(problem))
        if len(self.observations) == self._fails_at:
            raise KeyboardInterrupt
        return Wanda().solve(problem)

    def __repr__(self) -> str:
        return "ObservingSolver()"


class RecordingAllocation(Allocation):
    """Prunes every layer to the target, and records all problems of the dense model."""

    needs = "gram"

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def counts(self, task: AllocationTask) -> dict[str, int]:
        for _, problems in task.iterate_problems():
            self.problems += problems
        return {name: task.pattern.budget.count_locally(name, 0.5) for name in task.units}

    def __repr__(self) -> str:
        return "RecordingAllocation()"


UNSTRUCTURED = {"pattern": "1x1", "target_sparsity": 0.5}
"""A configuration with several possible allocations."""

OPTIONS: list[dict[str, Any]] = [
    {},
    {"refine": ["pcg", "block"]},
    {"allocation": RecordingAllocation(), "config": UNSTRUCTURED},
    {"allocation": "global", "config": UNSTRUCTURED},
]
"""Options of runs that use weights in different ways."""


# Blocks on a device


class MoveRecorder:
    """Records which tensors are on a device that stands in for a GPU."""

    def __init__(self) -> None:
        self.on_device: dict[int, torch.Tensor] = {}
        self.max_count = 0

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> None:
        if device == OTHER_DEVICE:
            self.on_device[id(tensor)] = tensor
        else:
            self.on_device.pop(id(tensor), None)
        self.max_count = max(self.max_count, len(self.on_device))


OTHER_DEVICE = torch.device("cpu", 0)
"""Stands in for a GPU: torch treats it as different from the device of tensors on the CPU."""


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> MoveRecorder:
    recorder = MoveRecorder()
    monkeypatch.setattr(weight_storage, "_move", recorder)
    monkeypatch.setattr(weight_storage, "find_device", lambda _: OTHER_DEVICE)
    return recorder


def block_tensors(block: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*block.parameters(), *block.buffers())}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_block_at_a_time_is_on_the_device(moves: MoveRecorder, options: dict[str, Any]) -> None:
    model = family("gpt2")
    for block in model.transformer.h:
        block.register_buffer("scale", torch.ones(2))
    solver = ObservingSolver(lambda _: set(moves.on_device))
    before = [(name, id(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    prune(model, execute(inputs_of("gpt2"), device="other"), solver=solver, **options)
    assert solver.observations == [block_tensors(block) for block in model.transformer.h for _ in range(4)]
    assert [(name, id(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())] == before
    assert moves.on_device == {}


@pytest.mark.parametrize("fails_at", [1, 6])
def test_an_interrupted_block_is_moved_back(moves: MoveRecorder, fails_at: int) -> None:
    model = family("gpt2")
    dense = bits(model)
    with pytest.raises(KeyboardInterrupt):
        prune(model, execute(inputs_of("gpt2"), device="other"), solver=ObservingSolver(lambda _: None, fails_at))
    assert moves.max_count > 0
    assert moves.on_device == {}
    assert bits(model) == dense


def test_each_tensor_of_a_block_is_moved_back_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    devices: list[str] = []
    monkeypatch.setattr(weight_storage, "_move", lambda _, device: devices.append(str(device)))
    with DeviceStorage(model, OTHER_DEVICE).load(model):
        assert devices == ["cpu:0"] * 4
    assert devices[4:] == ["cpu", "cpu", "meta", "meta"]


def test_a_block_that_is_on_the_device_is_not_copied() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = [id(tensor) for tensor in (model.weight, model.weight.grad, model.bias)]
    with DeviceStorage(model, OTHER_DEVICE).load(model):
        assert [id(tensor) for tensor in (model.weight, model.weight.grad, model.bias)] == before
    assert torch.equal(model.weight.grad, torch.ones(2, 2))


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", 99, [], "privateuseone"])
def test_a_device_that_does_not_exist(device: Any) -> None:
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(ConfigError, match=r"device must .*, found"):
        prune(model, execute(batches(), device=device))
    assert bits(model) == before


class Pair(NamedTuple):
    tensor: torch.Tensor
    nested: dict[str, list[torch.Tensor]]


def test_nested_arguments_of_blocks_are_moved() -> None:
    given = Pair(torch.ones(2), {"inner": [torch.ones(3)]})
    moved = move_to((given, None, 3), torch.device("meta"))
    assert type(moved[0]) is Pair
    assert moved[0].tensor.is_meta
    assert moved[0].nested["inner"][0].is_meta
    assert moved[1:] == (None, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [*TEXT, "vit"])
def test_pruning_on_a_gpu(name: str, options: dict[str, Any]) -> None:
    options = {**options, "config": {**IN_BLOCKS.get(name, CONFIG), **options.get("config", {})}}
    model, given = family(name), inputs_of(name, padded=name != "vit")
    devices = [(id(tensor), tensor.device) for tensor in (*model.parameters(), *model.buffers())]

    def observe(problem: Problem) -> tuple[str, str, torch.Tensor]:
        return problem.weight.device.type, problem.norms.device.type, problem.select(problem.weight)

    solver = ObservingSolver(observe)
    report = prune(model, execute(given, device="cuda"), solver=solver, **options)
    assert {(weight, norms, mask.device.type) for weight, norms, mask in solver.observations} == {
        ("cuda", "cuda", "cuda")
    }
    assert [(id(tensor), tensor.device) for tensor in (*model.parameters(), *model.buffers())] == devices
    assert report.sparsity == 0.5


@pytest.mark.gpu
def test_one_block_is_in_device_memory() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.Tanh()) for _ in range(64)), nn.Linear(1024, 8))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prune(wide, execute([torch.randn(64, 1024) for _ in range(4)], device="cuda"), solver="sparsegpt")
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before < 64 * wide[0][0].weight.nbytes / 2


# Weights in files


def build_empty(name: str) -> nn.Module:
    with torch.device("meta"):
        return family(name)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Save a dense Llama and return its folder."""
    return save_family("llama", tmp_path)


def save_family(name: str, folder: Path, shard: str = "1GB") -> Path:
    path = folder / "dense"
    family(name).save_pretrained(path, max_shard_size=shard)
    return path


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def load_checkpoint(folder: Path) -> nn.Module:
    """Load a checkpoint with transformers, without missing or unexpected tensors."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


def is_empty(model: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    ("options", "shard"),
    [
        ({"solver": "wanda"}, "1GB"),
        ({"solver": "sparsegpt"}, "20KB"),
        ({"solver": "sparsegpt", "refine": ["pcg", "block"]}, "1GB"),
        ({"solver": "wanda", "allocation": RecordingAllocation(), "config": UNSTRUCTURED}, "1GB"),
        ({"solver": "wanda", "allocation": "global", "config": UNSTRUCTURED}, "20KB"),
        ({"solver": "wanda", "allocation": "owl", "config": UNSTRUCTURED}, "1GB"),
        ({"solver": "wanda", "allocation": "sensitivity", "config": UNSTRUCTURED}, "1GB"),
    ],
    ids=str,
)
def test_files_and_memory_give_identical_weights(tmp_path: Path, shard: str, options: dict[str, Any]) -> None:
    dense, given, model = save_family("llama", tmp_path, shard), inputs_of("llama", padded=True), build_empty("llama")
    assert (dense / "model.safetensors.index.json").exists() == (shard != "1GB")
    ids = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    report = prune(model, execute(given, weights=dense, folder=tmp_path / "pruned"), **dict(options))
    assert is_empty(model)
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == ids
    whole = family("llama")
    expected = prune(whole, execute(given), **dict(options))
    assert bits(load_checkpoint(tmp_path / "pruned")) == bits(whole)
    assert (report.layers, report.errors, report.model_weights) == (
        expected.layers,
        expected.errors,
        expected.model_weights,
    )


@pytest.mark.parametrize("name", TEXT)
def test_every_family_from_files(name: str, tmp_path: Path) -> None:
    dense, given = save_family(name, tmp_path), inputs_of(name, padded=True)
    before = tensors_in(dense)
    options = {"solver": "sparsegpt", "config": IN_BLOCKS.get(name, CONFIG)}
    prune(build_empty(name), execute(given, weights=dense, folder=tmp_path / "pruned"), **options)
    whole = family(name)
    prune(whole, execute(given), **options)
    tensors, expected = tensors_in(tmp_path / "pruned"), dict(whole.state_dict())
    assert tensors.keys() == before.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], expected[key])] == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors_in(dense).items())
    if name != "bert":
        assert bits(load_checkpoint(tmp_path / "pruned")) == bits(whole)


def test_allocations_get_the_same_problems_from_files_and_memory(dense: Path, tmp_path: Path) -> None:
    from_files, from_memory, given = RecordingAllocation(), RecordingAllocation(), inputs_of("llama", padded=True)
    calibration = execute(given, weights=dense, folder=tmp_path / "pruned")
    prune(build_empty("llama"), calibration, allocation=from_files, config=UNSTRUCTURED)
    prune(family("llama"), execute(given), allocation=from_memory, config=UNSTRUCTURED)
    assert len(from_files.problems) == len(from_memory.problems) == 12
    for first, second in zip(from_files.problems, from_memory.problems, strict=True):
        assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
        assert torch.equal(first.weight, second.weight)
        assert torch.equal(first.known_gram, second.known_gram)


def test_the_folder_is_a_checkpoint(dense: Path, tmp_path: Path) -> None:
    (dense / "tokenizer.json").write_text("{}")
    (dense / "merges.txt").write_text("")
    (dense / "pytorch_model.bin").write_text("not copied")
    folder = tmp_path / "pruned"
    prune(build_empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        *(f"model-0000{index}-of-00004.safetensors" for index in range(1, 5)),
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    whole = tensors_in(folder)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    for name, shard in index["weight_map"].items():
        assert name in load_file(folder / shard)
    assert index["weight_map"]["lm_head.weight"] == "model-00004-of-00004.safetensors"
    assert index["weight_map"]["model.layers.1.mlp.up_proj.weight"] == "model-00002-of-00004.safetensors"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_block_at_a_time_is_materialized(dense: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = build_empty("llama")

    def list_materialized(_: Any) -> set[str]:
        return {name for name, tensor in model.named_parameters() if not tensor.is_meta}

    everything = dict(model.named_parameters())
    outside = {name for name in everything if ".layers." not in name}
    solver, between = ObservingSolver(list_materialized), []
    calibration = execute(
        inputs_of("llama"),
        weights=dense,
        folder=tmp_path / "pruned",
        progress=lambda _: between.append(list_materialized(None)),
    )
    prune(model, calibration, solver=solver, **options)
    blocks = [{name for name in everything if f".layers.{index}." in name} for index in range(3)]
    assert solver.observations == [outside | block for block in blocks for _ in range(4)]
    assert between == [outside] * 3


def count_parameter_bytes() -> int:
    """Count the bytes of all parameters in this process; shared memory counts once."""
    sizes = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if type(item) is nn.Parameter and item.device.type == "cpu"
    }
    return sum(sizes.values())


def test_one_block_at_a_time_is_in_memory(tmp_path: Path) -> None:
    dense, model = save_family("llama", tmp_path), build_empty("llama")
    sizes = {name: tensor.nbytes for name, tensor in model.named_parameters()}
    outside = sum(size for name, size in sizes.items() if ".layers." not in name)
    block = sum(size for name, size in sizes.items() if ".layers.0." in name)
    start, solver, between = count_parameter_bytes(), ObservingSolver(lambda _: count_parameter_bytes()), []
    calibration = execute(
        inputs_of("llama"),
        weights=dense,
        folder=tmp_path / "pruned",
        progress=lambda _: between.append(count_parameter_bytes()),
    )
    prune(model, calibration, solver=solver)
    assert {size - start for size in solver.observations} == {outside + block}
    assert {size - start for size in between} == {outside}
    assert count_parameter_bytes() == start


@pytest.mark.parametrize(("options", "at"), [({}, 1), ({}, 3), ({"refine": "block"}, 2)], ids=str)
def test_the_same_call_resumes(dense: Path, tmp_path: Path, at: int, options: dict[str, Any]) -> None:
    given, folder, model = inputs_of("llama"), tmp_path / "pruned", build_empty("llama")
    progress = ProgressRecorder(KeyboardInterrupt, at)
    with pytest.raises(KeyboardInterrupt) as caught:
        prune(model, execute(given, weights=dense, folder=folder, progress=progress), **options)
    assert is_empty(model)
    assert f"{at} finished part" in caught.value.__notes__[0]
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(times) == at
    solver = ObservingSolver(lambda _: None)
    report = prune(model, execute(given, weights=dense, folder=folder), **options)
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    whole = family("llama")
    expected = prune(whole, execute(given), **options)
    assert bits(load_checkpoint(folder)) == bits(whole)
    assert (report.layers, report.errors) == (expected.layers, expected.errors)
    assert solver.observations == []


def test_a_failure_within_a_block_leaves_no_files_of_it(dense: Path, tmp_path: Path) -> None:
    given, folder, model = inputs_of("llama"), tmp_path / "pruned", build_empty("llama")
    with pytest.raises(KeyboardInterrupt):
        prune(model, execute(given, weights=dense, folder=folder), solver=ObservingSolver(lambda _: None, 6))
    assert is_empty(model)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model-00001-of-00004.safetensors"]


def test_a_run_is_not_resumed_with_other_weights(dense: Path, tmp_path: Path) -> None:
    given, folder = inputs_of("llama"), tmp_path / "pruned"
    with pytest.raises(KeyboardInterrupt):
        prune(
            build_empty("llama"),
            execute(given, weights=dense, folder=folder, progress=ProgressRecorder(KeyboardInterrupt, 1)),
        )
    other = tmp_path / "other"
    family("llama", seed=1).save_pretrained(other)
    with pytest.raises(StateError, match="unfinished run of a model with other weights"):
        prune(build_empty("llama"), execute(given, weights=other, folder=folder))
    with pytest.raises(StateError, match="different unfinished run"):
        prune(family("llama"), execute(given, folder=folder))


def test_a_finished_checkpoint_is_not_overwritten(dense: Path, tmp_path: Path) -> None:
    given = inputs_of("llama")
    for folder in (tmp_path / "pruned", dense):
        if folder != dense:
            prune(build_empty("llama"), execute(given, weights=dense, folder=folder))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(StateError, match="Choose an empty folder"):
            prune(build_empty("llama"), execute(given, weights=dense, folder=folder))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_blocks_that_stay_dense_are_written_too(dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    config = {"pattern": "2:4", "excluded_op_names": [r".*layers\.[02]\.mlp.*", r".*layers\.2\..*"]}
    prune(build_empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder), config=config)
    whole = family("llama")
    prune(whole, execute(inputs_of("llama")), config=config)
    assert bits(load_checkpoint(folder)) == bits(whole)


def test_tensors_that_the_model_does_not_have_are_copied(dense: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "something": torch.zeros(3)}
    save_file(tensors_in(dense) | extra, dense / "model.safetensors", {"format": "pt"})
    folder = tmp_path / "pruned"
    prune(build_empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder))
    tensors = tensors_in(folder)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in extra.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_files_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    family("llama").to(dtype).save_pretrained(tmp_path / "dense")
    prune(build_empty("llama"), execute(inputs_of("llama"), weights=tmp_path / "dense", folder=tmp_path / "pruned"))
    whole = family("llama").to(dtype)
    prune(whole, execute(inputs_of("llama")))
    assert bits(load_checkpoint(tmp_path / "pruned")) == bits(whole)


def test_a_single_file_and_a_folder_of_plain_files(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    (tmp_path / "plain").mkdir()
    for number, names in enumerate((list(whole)[:5], list(whole)[5:])):
        save_file({name: whole[name] for name in names}, tmp_path / "plain" / f"part{number}.safetensors")
    results = []
    for index, weights in enumerate((dense / "model.safetensors", tmp_path / "plain")):
        folder = tmp_path / f"pruned{index}"
        prune(build_empty("llama"), execute(inputs_of("llama"), weights=str(weights), folder=str(folder)))
        results.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert "config.json" not in results[-1]
    assert results[0] == results[1]


@pytest.mark.parametrize("options", [{"solver": "alps"}, {"allocation": "global", "config": UNSTRUCTURED}], ids=str)
def test_a_stack_of_plain_layers(options: dict[str, Any], tmp_path: Path) -> None:
    """Each layer is a block, some without parameters, and nothing is outside of the blocks."""
    whole, given = deep_mlp(), batches()
    save_file(dict(whole.state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = deep_mlp()
    calibration = execute(
        given, weights=tmp_path / "dense.safetensors", folder=tmp_path / "pruned", device="cpu", offload="disk"
    )
    report = prune(model, calibration, **options)
    expected = prune(whole, execute(given), **options)
    assert (report.layers, report.errors) == (expected.layers, expected.errors)
    tensors = tensors_in(tmp_path / "pruned")
    assert tensors.keys() == whole.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_files_on_a_gpu(dense: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = build_empty("llama")
    solver = ObservingSolver(lambda problem: problem.weight.device.type)
    calibration = execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned", device="cuda")
    report = prune(model, calibration, solver=solver, **options)
    assert set(solver.observations) == {"cuda"}
    assert is_empty(model)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(bool(tensor.isfinite().all()) for tensor in load_checkpoint(tmp_path / "pruned").parameters())


# Buffers


class Block(nn.Module):
    def __init__(self, *, saved: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=saved)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x) * self.scale)


class Buffered(nn.Module):
    """Buffers inside and outside of blocks."""

    def __init__(self, *, saved: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(Block(saved=saved) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def buffered(*, saved: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Buffered(saved=saved)
    model.norm.running_mean.add_(0.5)
    for block in model.blocks:
        block.scale.mul_(1.5 if saved else 1.0)
    return model


@pytest.mark.parametrize("kind", ["saved", "saved and computed", "computed"])
def test_buffers_come_from_the_files_or_the_model(kind: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    whole, given = buffered(saved="saved" in kind), batches(features=8)
    save_file(dict(whole.state_dict()), tmp_path / "dense.safetensors")
    if kind == "saved":
        with torch.device("meta"):
            model: nn.Module = Buffered(saved=True)
    else:
        with accelerate.init_empty_weights(include_buffers=False):
            model = Buffered(saved="saved" in kind)
    before = [(id(tensor), tensor.device) for tensor in model.buffers()]
    folder = tmp_path / "pruned"
    prune(model, execute(given, weights=tmp_path / "dense.safetensors", folder=folder), solver="sparsegpt")
    assert [(id(tensor), tensor.device) for tensor in model.buffers()] == before
    prune(whole, execute(given), solver="sparsegpt")
    tensors = tensors_in(folder)
    assert tensors.keys() == whole.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.state_dict().items())


def test_buffers_without_values(tmp_path: Path) -> None:
    save_file(dict(buffered(saved=False).state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Buffered(saved=False)
    calibration = execute(batches(features=8), weights=tmp_path / "dense.safetensors", folder=tmp_path / "pruned")
    with pytest.raises(ModelLoadError, match=r"'blocks.0.scale' is on the meta device.*include_buffers=False"):
        prune(model, calibration)
    assert is_empty(model)


class ScaledActivation(nn.Module):
    """Has a buffer that only the constructor computes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.arange(2, 4).float()[:1], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x) * self.scale


class ScaledLlama(transformers.LlamaForCausalLM):
    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = ScaledActivation()


def test_buffers_that_only_a_constructor_of_transformers_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = ScaledLlama(family("llama").config)
    save_file(dict(whole.state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = ScaledLlama(whole.config)
    given, folder = inputs_of("llama"), tmp_path / "pruned"
    prune(model, execute(given, weights=tmp_path / "dense.safetensors", folder=folder), solver="sparsegpt")
    assert is_empty(model)
    prune(whole, execute(given), solver="sparsegpt")
    assert all(torch.equal(tensor, tensors_in(folder)[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("name", TEXT)
def test_models_with_empty_weights_of_accelerate(name: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    dense = save_family(name, tmp_path)
    with accelerate.init_empty_weights(include_buffers=False):
        model = family(name)
    model.tie_weights()
    config = IN_BLOCKS.get(name, CONFIG)
    prune(model, execute(inputs_of(name), weights=dense, folder=tmp_path / "pruned"), config=config)
    whole = family(name)
    prune(whole, execute(inputs_of(name)), config=config)
    tensors = tensors_in(tmp_path / "pruned")
    assert [key for key, tensor in tensors.items() if not torch.equal(tensor, whole.state_dict()[key])] == []


# Unsupported models and files


def test_a_model_on_the_meta_device_needs_weights(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"is on the meta device .*weights=\.\.\., folder=\.\.\."):
        prune(build_empty("llama"), execute(inputs_of("llama")))
    with pytest.raises(LayerError, match="is on the meta device"):
        secateur.prune(build_empty("llama"), CONFIG)
    with pytest.raises(ConfigError, match="weights needs a folder"):
        Execution(weights=dense)
    assert not (tmp_path / "pruned").exists()


def test_a_model_with_values_needs_no_weights(dense: Path, tmp_path: Path) -> None:
    model = family("llama")
    with pytest.raises(ConfigError, match=r"'model.embed_tokens.weight' has values. Leave weights out"):
        prune(model, execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned"))
    partly = build_empty("llama")
    partly.lm_head = nn.Linear(16, 64, bias=False)
    with pytest.raises(ConfigError, match=r"'lm_head.weight' has values"):
        prune(partly, execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned"))


def prune_and_check_unchanged(model: nn.Module, weights: Path, folder: Path, given: Any = None, **options: Any) -> None:
    given = inputs_of("llama") if given is None else given
    try:
        prune(model, execute(given, weights=weights, folder=folder), **options)
    finally:
        assert is_empty(model)
        assert not (folder / "run.state").exists() or any(folder.glob("*.done.state"))


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "none.safetensors"):
        with pytest.raises(ModelLoadError, match=r"weights must be a .safetensors file or a folder"):
            prune_and_check_unchanged(build_empty("llama"), path, tmp_path / "pruned")


def test_files_without_a_layer(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    del whole["model.layers.1.mlp.up_proj.weight"]
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks 'model.layers.1.mlp.up_proj.weight' of the model. Did you mean"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


def test_tied_weights_that_accelerate_unties(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    dense = save_family("gpt2", tmp_path)
    with accelerate.init_empty_weights(include_buffers=False):
        model = family("gpt2")
    with pytest.raises(ModelLoadError, match=r"lacks 'lm_head.weight' .*model.tie_weights\(\)"):
        prune_and_check_unchanged(model, dense, tmp_path / "pruned")


def test_files_of_another_model(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.norm.weight"] = torch.ones(8)
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' has shape \[8\] in .* and \[16\] in the model"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


def test_quantized_files(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.norm.weight"] = torch.ones(16, dtype=torch.float8_e4m3fn)
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' is stored as F8_E4M3 .* before quantization"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


def test_damaged_files(dense: Path, tmp_path: Path) -> None:
    os.truncate(dense / "model.safetensors", 1000)
    with pytest.raises(ModelLoadError, match=r"model.safetensors cannot be read .* Is it complete\?"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")
    (dense / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelLoadError, match=r"index.json: 'weight_map' must map each tensor"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "'weight_map' must map each tensor to the name of its file"),
        ({"weight_map": {}}, "'weight_map' must name the files of all tensors, found an empty one"),
        (
            {"weight_map": {"a": "../secret.safetensors"}},
            "'../secret.safetensors' is not the name of a file in the",
        ),
        ({"weight_map": {"a": ".."}}, "'..' is not the name of a file in the folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' is not the name of a file in the folder"),
        ({"weight_map": {"a": "c:\\model.safetensors"}}, "is not the name of a file in the folder"),
        ({"weight_map": {"a": "\x1b[2J"}}, "is not the name of a file in the folder"),
        ({"weight_map": {"a": ""}}, "'' is not the name of a file in the folder"),
        (
            {"weight_map": {"a": "gone.safetensors"}},
            "gone.safetensors must be a file with weights, but it does not exist",
        ),
        (
            {"weight_map": {"a": "pipe.safetensors"}},
            "pipe.safetensors must be a file with weights, but it is not a file",
        ),
        ({"weight_map": {"a": 3}}, "'weight_map' must map each tensor to the name of its file"),
    ],
)
def test_an_index_must_name_files_in_its_folder(index: Any, message: str, dense: Path, tmp_path: Path) -> None:
    (dense / "pipe.safetensors").mkdir()
    shutil.move(dense / "model.safetensors", dense.parent / "secret.safetensors")
    (dense / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


def test_a_tensor_in_two_files(dense: Path, tmp_path: Path) -> None:
    shutil.move(dense / "model.safetensors", dense / "one.safetensors")
    shutil.copy(dense / "one.safetensors", dense / "two.safetensors")
    with pytest.raises(ModelLoadError, match=r"and \d+ more are in several files of"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")


def test_nan_is_reported_when_its_block_is_loaded(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ScoreError, match=r"'model.layers.1.mlp.up_proj': weights must be numbers, found nan"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned")
    assert [path.name for path in (tmp_path / "pruned").glob("*.safetensors")] == ["model-00001-of-00004.safetensors"]


def test_layers_outside_of_blocks(tmp_path: Path) -> None:
    dense = save_family("bert", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'bert.pooler.dense' are not in a stack of blocks .* Exclude"):
        prune_and_check_unchanged(
            build_empty("bert"), dense, tmp_path / "pruned", inputs_of("bert"), config={"pattern": "2:4"}
        )


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)))


def test_a_model_without_a_stack(tmp_path: Path) -> None:
    save_file(dict(Flat().state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Flat()
    with pytest.raises(UnsupportedModelError, match="'first', 'second' are not in a stack of blocks"):
        prune_and_check_unchanged(model, tmp_path / "dense.safetensors", tmp_path / "pruned", batches(features=8))


def test_a_model_that_fails_on_the_data(dense: Path, tmp_path: Path) -> None:
    given = [batch | {"inputs_embeds": torch.ones(3, 8, 16)} for batch in inputs_of("llama")]
    with pytest.raises(UnsupportedModelError, match=r"The model fails on calibration batch 0: .*inputs_embeds"):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned", given)


class Shared(Buffered):
    def __init__(self) -> None:
        super().__init__(saved=True)
        self.blocks[2].fc.weight = self.blocks[0].fc.weight


def test_blocks_that_share_a_parameter(tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in Shared().state_dict().items()}, tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Shared()
    with pytest.raises(
        UnsupportedModelError, match=r"'blocks.0.fc.weight', 'blocks.2.fc.weight' are the same parameter"
    ):
        prune_and_check_unchanged(model, tmp_path / "dense.safetensors", tmp_path / "pruned", batches(features=8))


def test_distilling_needs_the_whole_model(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Distill needs the whole model, and Execution\.weights loads it block by block"
    ):
        prune_and_check_unchanged(build_empty("llama"), dense, tmp_path / "pruned", refine="distill")

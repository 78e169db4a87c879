"""Test that each kind of unusable input has its own error and leaves the model unchanged."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import secateur
from oneshot.problems import LAYER_SOLVERS, batches, execute
from secateur.errors import (
    CalibrationError,
    ConfigError,
    LayerError,
    ScoreError,
    UnknownNameError,
    UnsupportedModelError,
)
from secateur.oneshot import Calibration, Execution
from secateur.oneshot.pytorch.calibration.batches import read_batches
from secateur.refiners import PCG
from secateur.solvers import ALPS, SOLVERS
from tiny_models import bits, deep_mlp
from tiny_transformers import family, inputs_of

CONFIG = {"pattern": "2:4"}


def check_error(model: nn.Module, kind: type[Exception], message: str, **options: Any) -> None:
    """Check the error, and that the model, its mode and its hooks are unchanged."""
    before, modes = bits(model), [module.training for module in model.modules()]
    config = options.pop("config", CONFIG)
    with pytest.raises(kind, match=message):
        secateur.prune(model, config, **options)
    assert bits(model) == before
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


# No data, or no batches


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"magnitude"}))
def test_solvers_need_data(name: str) -> None:
    message = f"{SOLVERS[name].__name__} needs calibration data, found none. Pass calibration=batches"
    check_error(deep_mlp(), CalibrationError, message, solver=name)


@pytest.mark.parametrize("refine", ["pcg", PCG(), ["pcg"]])
def test_refiners_need_data(refine: Any) -> None:
    check_error(deep_mlp(), CalibrationError, "PCG needs calibration data, found none", refine=refine)


INVALID_BATCHES: list[tuple[Any, str]] = [
    ([], "calibration must contain at least one batch, found none"),
    ((), "calibration must contain at least one batch, found none"),
    (iter([]), "calibration must contain at least one batch, found none"),
    (torch.ones(4, 16), "calibration must be an iterable of batches, such as a list, found a single Tensor"),
    ({"input": torch.ones(4, 16)}, "calibration must be an iterable of batches, such as a list, found a single dict"),
    ("text", "calibration must be an iterable of batches, such as a list, found a single str"),
    ([torch.ones(4, 16), None], "calibration batch 1 must be a tensor, a tuple of tensors or a mapping .* NoneType"),
    ([np.ones((4, 16))], "calibration batch 0 must be a tensor.*, found ndarray"),
    ([[]], "calibration batch 0 must be a tensor.*, found list"),
    ([{}], "calibration batch 0 must be a tensor.*, found dict"),
    ([{0: torch.ones(4, 16)}], "calibration batch 0 must be a tensor.*, found dict"),
    (["text"], "calibration batch 0 must be a tensor.*, found str"),
    ([(3, torch.ones(4, 16))], "calibration batch 0 must be a tensor.*, found tuple"),
]


@pytest.mark.parametrize(("given", "message"), INVALID_BATCHES)
def test_values_that_are_not_batches(given: Any, message: str) -> None:
    check_error(deep_mlp(), CalibrationError, message, calibration=given, solver="wanda")


def test_calibration_data_must_be_iterable() -> None:
    check_error(
        deep_mlp(),
        CalibrationError,
        "calibration must be an iterable.*found a single int",
        calibration=3,
        solver="wanda",
    )


def test_a_generator_can_be_used_once() -> None:
    def fresh() -> Iterator[torch.Tensor]:
        yield from batches()

    given = Calibration(fresh())
    assert secateur.prune(deep_mlp(), CONFIG, calibration=given, solver="wanda").sparsity == 0.5
    check_error(deep_mlp(), CalibrationError, "at least one batch, found none", calibration=given, solver="wanda")


@pytest.mark.parametrize("make", [tuple, list, lambda given: {"input": given[0]}, lambda given: given[0]])
def test_all_forms_of_batches(make: Callable[[list[torch.Tensor]], Any]) -> None:
    given = [make([batch]) for batch in batches()]
    assert secateur.prune(deep_mlp(), CONFIG, calibration=given, solver="wanda").sparsity == 0.5


def test_offload_is_checked() -> None:
    with pytest.raises(ConfigError, match="offload must be 'memory' or 'disk', found 'cpu'"):
        Execution(offload="cpu")  # type: ignore[arg-type]


# Batches that the model cannot use


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (0, 64), (0, 10**6)])
@pytest.mark.parametrize("bare", [False, True])
def test_tokens_must_be_in_the_vocabulary(low: int, high: int, bare: bool) -> None:
    good = inputs_of("llama")
    tokens = torch.tensor([[low, 3, high]])
    given: list[Any] = [*good, tokens if bare else {"input_ids": tokens}]
    message = rf"calibration batch 2: token ids must be in \[0, 64\), found {low} to {high}. Use the tokenizer of"
    check_error(family("llama"), CalibrationError, message, calibration=given, solver="wanda")


def test_batches_must_have_tokens() -> None:
    given = [{"input_ids": torch.zeros(1, 0, dtype=torch.long)}]
    check_error(
        family("llama"),
        CalibrationError,
        "batch 0 must contain at least one row and one token",
        calibration=given,
        solver="ria",
    )


# Data without content


@pytest.mark.parametrize("solver", LAYER_SOLVERS)
@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (deep_mlp, [torch.ones(0, 16)], r"batch 0 must contain at least one row and one token, found shape \(0, 16\)"),
        (deep_mlp, [*batches(), torch.ones(0, 16)], "batch 3 must contain at least one row"),
        (deep_mlp, [torch.zeros(8, 16)], "layer '0': its inputs are all zero"),
        (nn.Conv2d, [torch.ones(0, 4, 5, 5)], "batch 0 must contain at least one row"),
    ],
    ids=["no rows", "no rows in the last", "zeros", "no images"],
)
def test_data_without_content(make: Any, given: list[torch.Tensor], message: str, solver: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)) if make is nn.Conv2d else make()
    check_error(model, CalibrationError, message, calibration=given, solver=solver)


@pytest.mark.parametrize("solver", ["magnitude", "wanda", "ria", "sparsegpt", "alps"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_batches_must_not_be_only_padding(name: str, solver: str) -> None:
    given = [dict(batch) for batch in inputs_of(name, padded=True)]
    given[1]["attention_mask"] = torch.zeros_like(given[1]["attention_mask"])
    message = "calibration batch 1 must contain at least one token, found only padding: its attention_mask is zero"
    check_error(family(name), CalibrationError, message, calibration=given, solver=solver)


class Experts(nn.Module):
    """A mixture of experts whose last expert gets no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.router.bias.data[3] = -1e4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return out


@pytest.mark.parametrize("solver", LAYER_SOLVERS)
def test_an_expert_without_tokens_is_named(solver: str) -> None:
    model, config = Experts(), {**CONFIG, "op_names": ["experts.*"]}
    message = "'experts.3' read no calibration data. Exclude them, or provide data"
    check_error(model, CalibrationError, message, calibration=[torch.randn(64, 16)], solver=solver, config=config)


UNSUPPORTED = {
    "sparse": lambda: torch.ones(8, 16).to_sparse(),
    "on the meta device": lambda: torch.ones(8, 16, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(8, 16), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(3, 16), torch.ones(2, 16)], layout=torch.jagged),
    "uninitialized": nn.parameter.UninitializedParameter,
}


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*:UserWarning")
@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"input": x}, lambda x: {"input": [{"x": x}]}])
def test_unsupported_tensors(kind: str, wrap: Callable[[Any], Any]) -> None:
    message = f"calibration batch 1 must contain dense tensors with values, found a tensor that is {kind}."
    check_error(
        deep_mlp(),
        CalibrationError,
        message,
        calibration=[torch.ones(8, 16), wrap(UNSUPPORTED[kind]())],
        solver="wanda",
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.float16, torch.complex64])
def test_unsupported_dtypes(dtype: torch.dtype) -> None:
    check_error(
        deep_mlp(), CalibrationError, "batch 0|complex", calibration=[torch.ones(8, 16).to(dtype)], solver="wanda"
    )


def test_views_and_gradients_do_not_change_the_result() -> None:
    given = batches()
    expected, model = deep_mlp(), deep_mlp()
    secateur.prune(expected, CONFIG, calibration=given, solver="sparsegpt")
    views = [given[0].clone().requires_grad_(), nn.Parameter(given[1]), given[2].T.contiguous().T]
    secateur.prune(model, CONFIG, calibration=views, solver="sparsegpt")
    assert bits(model) == bits(expected)


class Asserting(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == 16, "sixteen features"
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (deep_mlp, [torch.ones(4, 15)], r"fails on calibration batch 0: RuntimeError: .*shapes cannot be multiplied"),
        (deep_mlp, [torch.ones(4, 16), torch.ones(4, 15)], r"fails on calibration batch 1: RuntimeError"),
        (deep_mlp, [torch.ones(4, 16, dtype=torch.long)], r"fails on calibration batch 0: RuntimeError: .*dtype"),
        (deep_mlp, [{"inputs": torch.ones(4, 16)}], r"fails on calibration batch 0: TypeError: .*dict.*'inputs'"),
        (lambda: Asserting(*deep_mlp()), [torch.ones(4, 15)], r"fails on calibration batch 0: AssertionError: sixteen"),
        (lambda: family("vit"), [{"pixel_values": torch.ones(1, 4, 9, 9)}], r"fails on calibration batch 0: Value"),
        (lambda: family("gpt2"), [{"inputs": torch.ones(1, 4)}], r"fails on calibration batch 0: ValueError"),
    ],
)
def test_batches_on_which_the_model_fails(make: Callable[[], nn.Module], given: list[Any], message: str) -> None:
    for solver in ("wanda", "alps"):
        check_error(make(), CalibrationError, f"The model {message}", calibration=given, solver=solver)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_inputs_of_layers_must_be_finite(value: float) -> None:
    given = batches()
    given[1][3, 5] = value
    for solver in ("wanda", "alps"):
        message = "layer '0': its inputs must be finite, found inf or nan"
        check_error(deep_mlp(), CalibrationError, message, calibration=given, solver=solver)


def test_the_first_layer_with_infinite_inputs_is_named() -> None:
    model = deep_mlp()
    with torch.no_grad():
        model[2].bias.fill_(float("inf"))
    message = "layer '4': its inputs must be finite, found inf or nan. Check the calibration data and"
    check_error(model, CalibrationError, message, calibration=batches(), solver="wanda")
    llama = family("llama")
    with torch.no_grad():
        llama.model.layers[1].input_layernorm.weight.fill_(float("inf"))
    message = "layer 'model.layers.1.self_attn.q_proj': its inputs must be finite"
    check_error(llama, CalibrationError, message, calibration=inputs_of("llama"), solver="sparsegpt")


def test_padding_can_have_any_values() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = deep_mlp()

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - batches contain it
            return self.body(x)

    tokens, mask = torch.randn(2, 5, 16), torch.ones(2, 5)
    mask[1, 3:], tokens[1, 3:] = 0, float("nan")
    report = secateur.prune(Padded(), CONFIG, calibration=[{"x": tokens, "attention_mask": mask}], solver="sparsegpt")
    assert report.sparsity == 0.5


# Layers


class Branches(nn.Module):
    """A model with a branch that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.left, self.out, self.head = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.out(torch.relu(self.taken(x))))


def test_layers_without_inputs_are_named() -> None:
    message = "'left' read no calibration data. Exclude them, or provide data"
    check_error(Branches(), CalibrationError, message, calibration=batches(), solver="wanda")
    model = Branches()
    report = secateur.prune(model, {**CONFIG, "excluded_op_names": ["left"]}, calibration=batches(), solver="wanda")
    assert [layer.name for layer in report.layers] == ["taken", "out"]


@pytest.mark.parametrize("solver", ["wanda", "alps"])
def test_transposed_convolutions(solver: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    images = [torch.randn(2, 4, 6, 6)]
    message = "layer '1': calibration does not support ConvTranspose2d. Exclude it, or prune without"
    check_error(model, CalibrationError, message, calibration=images, solver=solver)
    check_error(model, CalibrationError, message, **execute(images, offload="disk"), solver=solver)
    assert secateur.prune(model, CONFIG).sparsity == 0.5


class Crossed(nn.Module):
    """Cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x + 1, x + 1, need_weights=False)[0])


def test_cross_attention_is_refused() -> None:
    config = {**CONFIG, "op_names": ["attention"]}
    message = "^layer 'attention': its query, key and value differ, so its weight has no single input. Exclude it"
    given = [torch.randn(2, 5, 16)]
    check_error(Crossed(), CalibrationError, message, calibration=given, solver="wanda", config=config)


def test_weights_must_not_be_nan() -> None:
    model = deep_mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    check_error(
        model, ScoreError, "layer '2': weights must be numbers, found nan", calibration=batches(), solver="alps"
    )


def test_pattern_lock_is_refused() -> None:
    config = {**CONFIG, "kind": "pattern_lock"}
    message = "layer '0': kind='pattern_lock' keeps the existing zeros, so there is nothing to prune"
    check_error(deep_mlp(), ConfigError, message, calibration=batches(), solver="wanda", config=config)


def test_layers_that_do_not_fit_the_pattern() -> None:
    config = {"pattern": "5x1"}
    message = "No layer of the model can be pruned with pattern '5x1'"
    check_error(deep_mlp(), LayerError, message, calibration=batches(), solver="wanda", config=config)


def test_keep_zeros_is_refused() -> None:
    model = deep_mlp()
    before = copy.deepcopy(model.state_dict())
    config = {"pattern": "1x1", "target_sparsity": 0.95, "keep_zeros": True}
    with pytest.raises(ConfigError, match="layer '0': solvers do not support keep_zeros=True"):
        secateur.prune(model, config, calibration=batches(), solver="wanda")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "sparsgpt"}, "Unknown solver 'sparsgpt'. Did you mean 'sparsegpt'. Known: alps, fisher, magnitude"),
        ({"solver": "Wanda"}, "Unknown solver 'Wanda'. Did you mean 'wanda'"),
        ({"solver": "x"}, "Unknown solver 'x'. Known: alps"),
        ({"refine": "pgc"}, "Unknown refiner 'pgc'. Did you mean 'pcg'"),
        ({"refine": ["pcg", "blok"]}, "Unknown refiner 'blok'. Did you mean 'block'"),
        ({"allocation": "unifrom"}, "Unknown allocation 'unifrom'. Did you mean 'uniform'"),
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_unknown_names(with_data: bool, options: dict[str, Any], message: str) -> None:
    check_error(deep_mlp(), UnknownNameError, message, calibration=batches() if with_data else None, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": ALPS}, "solver must be a name or an instance of Solver or UnitSolver, found <class"),
        ({"solver": PCG()}, "solver must be a name or an instance of Solver or UnitSolver, found PCG"),
        ({"solver": None}, "solver must be a name or an instance of Solver or UnitSolver, found None"),
        ({"refine": PCG}, "refiner must be a name or an instance of Refiner, found <class"),
        ({"refine": None}, "refiner must be a name or an instance of Refiner, found None"),
        ({"refine": [ALPS()]}, "refiner must be a name or an instance of Refiner, found ALPS"),
        ({"allocation": 3}, "allocation must be a name or an instance of Allocation, found 3"),
    ],
)
def test_values_that_are_neither_names_nor_objects(options: dict[str, Any], message: str) -> None:
    check_error(deep_mlp(), ConfigError, message, calibration=batches(), **options)


def test_block_refiners_need_a_stack_of_blocks() -> None:
    message = "refine='block' needs a model with a stack of blocks that run one after another, and Branches has none"
    config = {**CONFIG, "excluded_op_names": ["left"]}
    check_error(Branches(), ConfigError, message, calibration=batches(), solver="wanda", refine="block", config=config)


# Keras


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"calibration": [np.ones((4, 8), "float32")]}, "calibration"),
        ({"calibration": np.ones((4, 8), "float32")}, "calibration"),
        ({"calibration": Calibration([])}, "calibration"),
        ({"solver": "wanda"}, "solver"),
        ({"refine": "pcg"}, "refine"),
        ({"refine": ["pcg"]}, "refine"),
        ({"allocation": "global"}, "allocation"),
    ],
)
def test_keras_models_are_pruned_by_magnitude_only(options: dict[str, Any], name: str) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(4)])
    before = [np.array(weight) for weight in model.get_weights()]
    with pytest.raises(UnsupportedModelError, match=f"^{name} supports torch models only, and this is a Keras model"):
        secateur.prune(model, CONFIG, **options)
    for dense, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, dense)


def test_keras_models_accept_the_defaults() -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(4)])
    assert secateur.prune(model, CONFIG, solver="magnitude", refine=[], allocation=None).sparsity == 0.5


# Reading batches


def test_masks_of_other_shapes_are_not_padding() -> None:
    tokens = torch.ones(2, 3, dtype=torch.long)
    masks = {"two": torch.ones(2, 3), "four": torch.ones(2, 1, 3, 3), "none": None}
    keeps = {
        name: read_batches(deep_mlp(), [{"input_ids": tokens, "attention_mask": mask}])[0].keep
        for name, mask in masks.items()
    }
    assert keeps["two"] is not None
    assert keeps["two"].dtype == torch.bool
    assert keeps["four"] is None
    assert keeps["none"] is None

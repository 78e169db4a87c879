"""Compare random models compiled by `secateur.runtime.compile` with the dense models."""

import copy
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import secateur.runtime
from fuzz.harness import attack
from runtime.sparse_layers import replace_always
from secateur._calls.pytorch.output_snapshot import measure_difference, take_snapshot
from secateur.errors import StateError
from secateur.runtime.pytorch import SparseLayer

WIDTH = 16
"""Features between the layers of a model."""

TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}
INT8_TOLERANCE = 0.2

Step = Callable[[torch.Tensor, nn.Module], torch.Tensor]


@dataclass
class Result:
    value: Any
    count: int


class Subclass(nn.Linear):
    """A layer with a custom forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input) - 1


class Untouched(torch.Tensor):
    """A tensor subclass."""


class EmptyMode(TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Pair(nn.Module):
    """Two layers: one that widens, and one that narrows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(inputs))
        return self.down(hidden) + 0.1 * functional.linear(hidden, self.up.weight.T)


def call(inputs: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return layer(inputs)


def call_in_autocast(inputs: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(inputs).to(inputs.dtype)


def call_nested(inputs: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    if inputs.ndim < 2 or not len(inputs):
        return layer(inputs)
    return torch.stack(layer(torch.nested.as_nested_tensor(list(inputs))).unbind())


def weight_of(layer: nn.Module) -> torch.Tensor:
    return layer.up.weight if isinstance(layer, Pair) else layer.weight


STEPS: dict[str, Step] = {
    "call": call,
    "twice": lambda x, layer: layer(torch.tanh(layer(x))),
    "residual": lambda x, layer: x + layer(torch.tanh(x)),
    "keyword": lambda x, layer: layer(x) if isinstance(layer, Pair) else layer(input=x),
    "in place": lambda x, layer: layer(x).relu_(),
    "negative": lambda x, layer: layer(torch._neg_view(x)),
    "imaginary": lambda x, layer: layer(torch.complex(x.float(), x.float()).conj().imag.to(x.dtype)),
    "lazy zeros": lambda x, layer: x + layer(torch._efficientzerotensor(x.shape, dtype=x.dtype)),
    "expanded": lambda x, layer: x + layer(x[..., :1, :].expand(x.shape)) if x.ndim > 1 and x.shape[-2] else layer(x),
    "strided": lambda x, layer: layer(torch.stack([x, x], -1)[..., 0]),
    "vmap": lambda x, layer: torch.vmap(layer)(x) if x.ndim > 1 and len(x) else layer(x),
    "functionalize": lambda x, layer: torch.func.functionalize(layer)(x),
    "autocast": call_in_autocast,
    "nested": call_nested,
    "device": lambda x, layer: layer(x.to(weight_of(layer).device)),
    "type": lambda x, layer: layer(x.to(weight_of(layer).dtype)),
    "zeros": lambda x, layer: layer(x) * (weight_of(layer) == 0).to(x.dtype).mean(),
    "norm": lambda x, layer: layer(x) / (1 + weight_of(layer).norm()),
    "data": lambda x, layer: layer(x) + weight_of(layer).data.sum() * 0.01,
    "array": lambda x, layer: layer(x) + float(weight_of(layer).detach().float().numpy()[0, 0]),
    "row": lambda x, layer: layer(x) + weight_of(layer)[0, :WIDTH],
    "product": lambda x, layer: functional.linear(layer(x), weight_of(layer)[:WIDTH, :WIDTH].T.contiguous()),
    "random": lambda x, layer: layer(x + 0.1 * torch.randn_like(x)),
    "cut": lambda x, layer: layer(torch.where(x > 0, x, torch.zeros_like(x))),
}


class Model(nn.Module):
    """Layers that are called in different ways."""

    def __init__(self, layers: list[nn.Module], steps: list[Step], shape: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layers, self.steps, self.shape = nn.ModuleList(layers), steps, shape

    def forward(self, inputs: torch.Tensor, scale: torch.Tensor | float = 1.0) -> Any:
        for step, layer in zip(self.steps, self.layers, strict=True):
            inputs = step(inputs, layer)
        return self.shape(inputs * scale)


SHAPES: list[Callable[[torch.Tensor], Any]] = [
    lambda y: y,
    lambda y: (y, [y.sum(), None]),
    lambda y: {"logits": y, "more": (y[..., 0],)},
    lambda y: Result(y, 3),
    lambda y: torch.where(y > 10, y, float("nan")),
]


def make_layer(chance: random.Random) -> nn.Module:
    """Create a square layer with zeros in a random pattern, sometimes with hooks or other extras."""
    if chance.random() < 0.3:
        pair = Pair(chance.choice([8, 24, 32]))
        put_zeros(chance, pair.up.weight)
        put_zeros(chance, pair.down.weight)
        return pair
    kind = chance.choice(["plain"] * 6 + ["subclass", "hook", "norm", "mask", "forward", "buffer", "attribute"])
    layer = (Subclass if kind == "subclass" else nn.Linear)(WIDTH, WIDTH, bias=chance.random() < 0.8)
    put_zeros(chance, layer.weight)
    if kind == "hook":
        layer.register_forward_hook(lambda _, __, outputs: outputs * 2)
    elif kind == "norm":
        parametrizations.weight_norm(layer)
    elif kind == "mask":
        prune.custom_from_mask(layer, "weight", layer.weight != 0)
    elif kind == "forward":
        weight = layer.weight
        layer.forward = lambda input: functional.linear(input, weight) + 1  # type: ignore[method-assign] # noqa: A006
    elif kind == "buffer":
        layer.register_buffer("more", torch.ones(1))
    elif kind == "attribute":
        layer.scale = 3
    return layer


@torch.no_grad()
def put_zeros(chance: random.Random, weight: torch.Tensor) -> None:
    """Put zeros in blocks, single weights, 2:4 groups, whole channels, everywhere or nowhere."""
    outputs, inputs = weight.shape
    share, kind = (
        chance.choice([0.3, 0.6, 0.9]),
        chance.choice(["4x1", "8x1", "1x1", "2:4", "outputs", "inputs", "all", ""]),
    )
    kept = torch.rand_like(weight) > share
    if kind in ("4x1", "8x1"):
        high = int(kind[0])
        kept = (torch.rand(outputs // high, 1, inputs) > share).expand(-1, high, -1).reshape(outputs, inputs)
    elif kind == "2:4":
        groups = torch.rand(outputs, inputs // 4, 4)
        kept = (groups >= groups.sort(-1).values[..., 2:3]).reshape(outputs, inputs)
    elif kind in ("outputs", "inputs"):
        kept = (torch.rand(outputs, 1) if kind == "outputs" else torch.rand(1, inputs)).gt(share).expand_as(weight)
    elif kind in ("all", ""):
        kept = torch.full_like(weight, float(not kind)).bool()
    weight.mul_(kept)


def make_model(chance: random.Random) -> Model:
    torch.manual_seed(chance.randrange(1 << 31))
    layers = [make_layer(chance) for _ in range(chance.randint(1, 4))]
    plain = [layer for layer in layers if type(layer) is nn.Linear and "weight" in layer._parameters]
    if len(plain) > 1 and chance.random() < 0.2:
        plain[1].weight = plain[0].weight
    if chance.random() < 0.2:
        layers.append(layers[0])
    if chance.random() < 0.1:
        layers.append(nn.LazyLinear(WIDTH))
    steps = [STEPS[chance.choice(list(STEPS))] if chance.random() < 0.7 else call for _ in layers]
    steps = [call if isinstance(layer, nn.LazyLinear) else step for step, layer in zip(steps, layers, strict=True)]
    return Model(layers, steps, chance.choice(SHAPES)).eval()


def make_inputs(chance: random.Random, dtype: torch.dtype) -> torch.Tensor:
    shape = chance.choice([(1, WIDTH), (3, WIDTH), (17, WIDTH), (40, WIDTH), (2, 5, WIDTH), (WIDTH,), (2, 3, 2, WIDTH)])
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(chance.randrange(1 << 31)))
    return inputs.to(dtype)


UNUSUAL: list[Callable[[torch.Tensor], torch.Tensor]] = [
    *[lambda x: x] * 4,
    torch._neg_view,
    lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    lambda x: x[:1].expand(x.shape),
    lambda x: x.as_strided(x.shape, [1] * x.ndim),
    lambda x: nn.Parameter(x, requires_grad=False),
    lambda x: x.as_subclass(Untouched),
    lambda x: x.clone().requires_grad_(),
    torch.inference_mode()(lambda x: x + 0),
    lambda x: x[:0],
]

CONTEXTS: list[Callable[[], AbstractContextManager[Any]]] = [
    *[nullcontext] * 4,
    torch.inference_mode,
    lambda: FlopCounterMode(display=False),
    EmptyMode,
    forward_ad.dual_level,
    lambda: torch.device("meta"),
    lambda: torch.autograd.graph.save_on_cpu(),
]


CHANNELS = 8

CONV_STEPS: dict[str, Step] = {
    "call": call,
    "residual": lambda x, layer: (
        functional.interpolate(layer(torch.tanh(x)), x.shape[-2:]) + x if x.ndim == 4 else layer(x)
    ),
    "in place": lambda x, layer: layer(x).relu_(),
    "negative": lambda x, layer: layer(torch._neg_view(x)),
    "lazy zeros": lambda x, layer: layer(torch._efficientzerotensor(x.shape, dtype=x.dtype)) + layer(x),
    "channels last": lambda x, layer: (
        layer(x.contiguous(memory_format=torch.channels_last)) if x.ndim == 4 else layer(x)
    ),
    "one image": lambda x, layer: torch.stack([layer(image) for image in x]) if x.ndim == 4 and len(x) else layer(x),
    "vmap": lambda x, layer: torch.vmap(layer)(x) if x.ndim == 4 and len(x) else layer(x),
    "vmap of batches": lambda x, layer: torch.vmap(layer)(torch.stack([x, x]))[1],
    "functionalize": lambda x, layer: torch.func.functionalize(layer)(x),
    "autocast": call_in_autocast,
    "device": lambda x, layer: layer(x.to(layer.weight.device, layer.weight.dtype)),
    "zeros": lambda x, layer: layer(x) * (layer.weight == 0).to(x.dtype).mean(),
    "again": lambda x, layer: functional.conv2d(layer(x), layer.weight, padding=3),
    "padding": lambda x, layer: functional.pad(layer(x), [int(layer.padding[0] == "s")] * 4),
}


def make_convolution(chance: random.Random) -> nn.Module:
    """Create a convolution with equally many inputs and outputs, and zeros in a random pattern."""
    kernel = chance.choice([1, 1, 2, 3, (3, 1), (1, 3)])
    mode = chance.choice(["zeros", "zeros", "reflect", "circular", "replicate"])
    padding = chance.choice([0, 1, (0, 1), "same"])
    stride = 1 if padding == "same" else chance.choice([1, 1, 2, (1, 2)])
    layer = nn.Conv2d(
        *(CHANNELS, CHANNELS, kernel),
        stride=stride,
        padding=padding,
        padding_mode=mode,
        dilation=chance.choice([1, 1, 2]),
        bias=chance.random() < 0.7,
        groups=chance.choice([1, 1, 1, 2]),
    )
    with torch.no_grad():
        flat = layer.weight.permute(0, 2, 3, 1).flatten(1)
        flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 4))
        put_zeros(chance, flat)
        kernel_size, inputs = layer.kernel_size, layer.weight.shape[1]
        cut = flat[:, : inputs * kernel_size[0] * kernel_size[1]].reshape(CHANNELS, *kernel_size, inputs)
        layer.weight.copy_(cut.permute(0, 3, 1, 2))
    return layer


def make_convolutions(chance: random.Random) -> Model:
    torch.manual_seed(chance.randrange(1 << 31))
    layers = [make_convolution(chance) for _ in range(chance.randint(1, 3))]
    steps = [CONV_STEPS[chance.choice(list(CONV_STEPS))] for _ in layers]
    return Model(layers, steps, chance.choice(SHAPES)).eval()


def make_images(chance: random.Random, dtype: torch.dtype) -> torch.Tensor:
    shape = chance.choice([(1, CHANNELS, 9, 9), (3, CHANNELS, 12, 7), (2, CHANNELS, 16, 16), (CHANNELS, 11, 11)])
    return torch.randn(shape, generator=torch.Generator().manual_seed(chance.randrange(1 << 31))).to(dtype)


def outputs_of(model: nn.Module, given: Any, context: Callable[[], AbstractContextManager[Any]]) -> Any:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(context())
        torch.manual_seed(0)
        return take_snapshot(model(*given) if isinstance(given, tuple) else model(**given))


@attack(cases=12, may_refuse=False)
def random_models(chance: random.Random, folder: Path) -> None:  # noqa: ARG001 - nothing is stored
    """Compile random models: their outputs do not change, for any kind of input."""
    attack_model(chance, make_model, make_inputs)


@attack(cases=6, may_refuse=False)
def random_convolutions(chance: random.Random, folder: Path) -> None:  # noqa: ARG001 - nothing is stored
    """Compile random convolutions: their outputs do not change."""
    attack_model(chance, make_convolutions, make_images)


def attack_model(
    chance: random.Random,
    build: Callable[[random.Random], Model],
    make: Callable[[random.Random, torch.dtype], torch.Tensor],
) -> None:
    """Compile a model, and compare it with the dense model in many kinds of calls."""
    dtype = chance.choice([torch.float32] * 6 + [torch.bfloat16, torch.float16])
    model, int8 = build(chance).to(dtype), chance.random() < 0.15
    inputs = chance.choice(UNUSUAL[:-1])(make(chance, dtype)).detach()
    scale: Any = chance.choice([1.0, torch.tensor(0.5, dtype=dtype)])
    example = chance.choice([lambda: inputs, lambda: (inputs, scale), lambda: {"inputs": inputs, "scale": scale}])()
    given = (example,) if isinstance(example, torch.Tensor) else example
    try:
        outputs_of(model, given, nullcontext)
    except Exception:  # noqa: BLE001 - skip models that fail without compiling
        return
    dense = copy.deepcopy(model)
    with replace_always():
        compiled, report = secateur.runtime.compile(model, example, int8=int8)
    assert [row.name for row in report.layers] == [
        name for name, module in dense.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    rounds = dtype if call_in_autocast not in model.steps else torch.bfloat16
    tolerance = max(TOLERANCES[dtype], TOLERANCES[rounds], INT8_TOLERANCE * int8)
    compare(dense, compiled, given, nullcontext, tolerance)
    for _ in range(4):
        other = chance.choice(UNUSUAL)(make(chance, dtype))
        compare(dense, compiled, (other, scale), chance.choice(CONTEXTS), tolerance)
    check_layers(chance, compiled, dense, is_exact=not int8)


def compare(dense: nn.Module, compiled: nn.Module, given: Any, context: Any, tolerance: float) -> None:
    try:
        expected = outputs_of(dense, given, context)
    except Exception:  # noqa: BLE001 - inputs that fail with the dense model may fail
        return
    difference = measure_difference(expected, outputs_of(compiled, given, context))
    assert difference <= tolerance, difference


def check_layers(chance: random.Random, compiled: nn.Module, dense: nn.Module, *, is_exact: bool) -> None:
    """Assert that the state is that of the dense model, and that weights cannot be modified."""
    replaced = [layer for layer in compiled.modules() if isinstance(layer, SparseLayer)]
    for layer in replaced:
        try:
            chance.choice([torch.Tensor.zero_, nn.init.ones_, lambda w: w.data.mul_(2), lambda w: w[0].fill_(1)])(
                layer.weight
            )
        except StateError:
            continue
        raise AssertionError("a weight was written")
    state = compiled.state_dict()
    assert list(state) == list(dense.state_dict())
    assert not is_exact or all(torch.equal(state[name], value) for name, value in dense.state_dict().items())

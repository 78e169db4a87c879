"""Test which models have a stack of blocks, and that its blocks on their own compute what the model computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.block_stack import BlockStack, find_block_stack
from secateur.oneshot.pytorch.calibration.batches import Batch, calibration_mode, read_batches
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.storage.weight_storage import ModelStorage
from secateur.planning.pytorch import plan
from tiny_models import deep_mlp
from tiny_transformers import FAMILIES, STACKS, TEXT, family, inputs_of


def find_stack(model: nn.Module, given: list[Any]) -> tuple[BlockStack | None, Activations, list[Batch]]:
    batches, inputs = read_batches(model, given), Activations()
    layers = [row.name for row in plan(model, {"pattern": "1x1"}).layers if row.is_pruned]
    with calibration_mode(model):
        return find_block_stack(model, layers, batches, inputs, ModelStorage(model)), inputs, batches


def record_hidden_states(model: nn.Module, stack: BlockStack, batch: Batch) -> list[torch.Tensor]:
    """Record the hidden state that each block reads when the whole model runs."""
    hidden_states: list[torch.Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states.append((args[0] if args else next(iter(kwargs.values()))).clone())

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in dict.fromkeys(stack.blocks)]
    with calibration_mode(model):
        batch.run(model, None)
    for hook in hooks:
        hook.remove()
    return hidden_states


def check_replay(model: nn.Module, given: list[Any]) -> BlockStack:
    stack, inputs, batches = find_stack(model, given)
    assert stack is not None
    for batch in batches:
        expected = record_hidden_states(model, stack, batch)
        hidden = inputs[batch.number]
        with calibration_mode(model):
            for call, block, expected_hidden in zip(stack.calls[batch.number], stack.blocks, expected, strict=True):
                torch.testing.assert_close(hidden, expected_hidden, rtol=0, atol=0)
                hidden = call.run(block, hidden)
    return stack


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_on_their_own_compute_what_the_model_computes(name: str, padded: bool) -> None:
    model = family(name)
    stack = check_replay(model, inputs_of(name, padded=padded))
    prefix = STACKS.get(name, "vit.layers" if name == "vit" else "model.layers")
    assert stack.names == [f"{prefix}.{index}" for index in range(3)]
    assert [model.get_submodule(name) for name in stack.names] == stack.blocks


SHARED = {
    "gpt2": [],
    "bert": [{"query", "key", "value"}],
    "opt": [{"q_proj", "k_proj", "v_proj"}],
    "vit": [{"q_proj", "k_proj", "v_proj"}],
}
"""Family → the layers of a block that share inputs, if they differ from those of Llama."""


@pytest.mark.parametrize("name", FAMILIES)
def test_projections_share_their_inputs(name: str) -> None:
    model = family(name)
    stack, inputs, _ = find_stack(model, inputs_of(name))
    assert stack is not None
    layers = {key: part for key, part in stack.blocks[0].named_modules() if type(part).__name__ in ("Linear", "Conv1D")}
    statistics = InputStatistics(layers, with_gram=True)
    with statistics.record_inputs(), torch.no_grad():
        for number, calls in stack.calls.items():
            statistics.start_batch(None)
            calls[0].run(stack.blocks[0], inputs[number])
    shared = [{layer.split(".")[-1] for layer in group} for group in statistics.group_layers() if len(group) > 1]
    assert shared == SHARED.get(name, [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_the_model_is_restored(name: str) -> None:
    model = family(name)
    before = [*model.named_modules()]
    find_stack(model, inputs_of(name))
    assert [*model.named_modules()] == before
    assert sum(len(module._forward_pre_hooks) for _, module in before) == 0


# Models that are not from transformers


class Chain(nn.Module):
    """Blocks that run one after another."""

    def __init__(self, count: int = 3, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(self.block(width) for _ in range(count))
        self.head = nn.Linear(width, 2)

    def block(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class NamedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, *, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden).tanh()


class ByKeyword(Chain):
    """Blocks whose only argument has a name."""

    def block(self, width: int) -> nn.Module:
        return NamedBlock(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(hidden=x)
        return self.head(x)


def test_blocks_that_are_called_by_keyword() -> None:
    stack = check_replay(ByKeyword(), [torch.randn(4, 8), torch.randn(2, 8)])
    assert stack.names == ["blocks.0", "blocks.1", "blocks.2"]


class Residual(Chain):
    """Residual connections outside of the blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class InPlace(Chain):
    """An in-place operation between the blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).mul_(2.0)
        return self.head(x)


class Twice(Chain):
    """Blocks that all run twice, as in a recurrent transformer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            for block in self.blocks:
                x = block(x)
        return self.head(x)


class Siamese(Chain):
    """One encoder for two inputs."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(self.encode(x) - self.encode(y))


class Backwards(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(x)


class Joined(nn.Module):
    """A block that reads two tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.skip = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x) + self.skip(other))


class Constant(Chain):
    """Blocks that also read the first block's input, which does not depend on the blocks."""

    def block(self, width: int) -> nn.Module:
        return Joined(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x
        for block in self.blocks:
            x = block(x, first)
        return self.head(x)


class Skip(Constant):
    """Blocks that read the outputs of several earlier blocks, as in a U-Net."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for block in self.blocks:
            x = block(x, outputs[-1] if len(outputs) < 3 else outputs[1])
            outputs.append(x)
        return self.head(x)


class Derived(Constant):
    """Blocks that also read a value computed from the output of the previous block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, other=x.mean(dim=-1, keepdim=True).expand_as(x))
        return self.head(x)


class Growing(Constant):
    """Blocks that get a growing list."""

    def block(self, width: int) -> nn.Module:
        class Summed(Joined):
            def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
                return super().forward(x, sum(other))

        return Summed(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for block in self.blocks:
            x = block(x, outputs)
            outputs.append(x)
        return self.head(x)


def tokens() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [Chain, Constant])
def test_models_with_a_stack(make: Callable[[], nn.Module]) -> None:
    assert check_replay(make(), [tokens(), 2 * tokens()]).names == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("make", [Residual, InPlace, Twice, Backwards, Skip, Derived, Growing])
def test_models_without_a_stack(make: Callable[[], nn.Module]) -> None:
    given = tokens()
    assert find_stack(make(), [given])[0] is None
    assert (given == tokens()).all()


def test_an_encoder_that_runs_twice_is_not_a_stack() -> None:
    assert find_stack(Siamese(), [(tokens(), 2 * tokens())])[0] is None


def test_a_stack_of_layers() -> None:
    assert check_replay(deep_mlp(), [torch.randn(6, 16)]).names == [str(index) for index in range(7)]


def test_a_layer_can_be_at_several_positions() -> None:
    torch.manual_seed(0)
    activation = nn.Tanh()
    model = nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 2))
    assert check_replay(model, [tokens()]).names == list("01234")
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, activation, layer, activation, nn.Linear(8, 8), nn.Linear(8, 2))
    assert check_replay(model, [tokens()]).names == list("012345")


def test_a_layer_can_have_an_earlier_name_outside_of_the_stack() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation = nn.Tanh()
            self.body = nn.Sequential(self.activation, nn.Linear(8, 8), self.activation, nn.Linear(8, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    assert check_replay(Named(), [tokens()]).names == [f"body.{index}" for index in range(4)]


def test_encoder_layers_of_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    stack, _, _ = find_stack(model, [torch.randn(2, 5, 8)])
    assert stack is not None
    assert stack.names == ["layers.0", "layers.1", "layers.2"]


def test_one_image_without_a_batch_dimension() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    assert check_replay(model, [torch.randn(3, 8, 8)]).names == ["0", "1", "2", "3"]


def test_each_batch_has_its_own_padding() -> None:
    for name in TEXT:
        batches = read_batches(family(name), inputs_of(name, padded=True))
        keeps = [inputs["attention_mask"].bool() for inputs in inputs_of(name, padded=True)]
        assert all((batch.keep == keep).all() for batch, keep in zip(batches, keeps, strict=True))
        assert not all(keep.all() for keep in keeps)

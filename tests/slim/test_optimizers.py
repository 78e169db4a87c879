"""Optimizers continue with the state of the weights that stay."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import secateur
from secateur.errors import StateError
from secateur.graph import Graph
from slim.graphs import CONSUMER, PER_CHANNEL, PRODUCER, GraphBuilder
from slim.test_surgery import everything

STEPS = 20
GONE = [1, 4, 5]

MAKERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, amsgrad=True),
    "adam foreach": lambda weights: torch.optim.Adam(weights, lr=0.01, foreach=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.01),
    "nadam": lambda weights: torch.optim.NAdam(weights, lr=0.01),
    "rprop": lambda weights: torch.optim.Rprop(weights, lr=0.01),
}


def make_model() -> nn.Module:
    """The first layer has no bias: in front of a batch norm its gradients would be rounding errors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def make_graph(model: nn.Module) -> Graph:
    names = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    members = [("0.weight", 0, PRODUCER), *((name, 0, PER_CHANNEL) for name in names), ("3.weight", 1, CONSUMER)]
    return GraphBuilder(model).add("hidden", 8, *members).build()


def mask(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].weight[:, GONE] = 0


def train(model: nn.Module, optimizer: Optimizer, seed: int, *, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        inputs, targets = torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        if is_masked:
            mask(model)


@pytest.mark.parametrize("name", MAKERS)
def test_further_steps_are_those_of_the_masked_model(name: str) -> None:
    model = make_model()
    optimizer = MAKERS[name](model.parameters())
    mask(model)
    train(model, optimizer, 1, is_masked=True)
    masked = copy.deepcopy(model)
    masked_optimizer = MAKERS[name](masked.parameters())
    masked_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    secateur.slim(model, example_inputs=torch.randn(4, 6), graph=make_graph(model), optimizer=optimizer)
    assert (model[0].weight.shape, model[1].weight.shape) == ((5, 6), (5,))
    train(model, optimizer, 2, is_masked=False)
    train(masked, masked_optimizer, 2, is_masked=True)
    kept = [unit for unit in range(8) if unit not in GONE]
    torch.testing.assert_close(model[0].weight, masked[0].weight[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(model[3].weight, masked[3].weight[:, kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, masked[1].running_var[kept], rtol=0, atol=1e-5)
    inputs = torch.randn(4, 6)
    torch.testing.assert_close(model.eval()(inputs), masked.eval()(inputs), rtol=0, atol=1e-5)


def test_groups_keep_their_order_and_settings() -> None:
    model = make_model()
    mask(model)
    weights = [*model.parameters()]
    optimizer = torch.optim.SGD([{"params": weights[:2]}, {"params": weights[2:], "lr": 0.5}], lr=0.1, momentum=0.9)
    secateur.slim(model, example_inputs=torch.randn(4, 6), graph=make_graph(model), optimizer=optimizer)
    assert [[id(weight) for weight in group["params"]] for group in optimizer.param_groups] == [
        [id(weight) for weight in [*model.parameters()][:2]],
        [id(weight) for weight in [*model.parameters()][2:]],
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


def test_several_optimizers() -> None:
    model = make_model()
    mask(model)
    optimizers = [torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[3].parameters(), momentum=0.9)]
    model(torch.randn(4, 6)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    mask(model)
    secateur.slim(model, example_inputs=torch.randn(4, 6), graph=make_graph(model), optimizer=optimizers)
    assert optimizers[0].state[model[0].weight]["exp_avg"].shape == (5, 6)
    assert optimizers[1].state[model[3].weight]["momentum_buffer"].shape == (3, 5)


def test_optimizers_inside_others() -> None:
    class Outer(torch.optim.Optimizer):
        """Has a state of its own, and the groups of the optimizer inside."""

        def __init__(self, inner: Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner
            self.param_groups = inner.param_groups

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for weight in group["params"]:
                    self.state[weight]["copy"] = weight.detach().clone()
            self.inner.step(closure)

    model = make_model()
    mask(model)
    outer = Outer(torch.optim.Adam(model.parameters()))
    model(torch.randn(4, 6)).sum().backward()
    outer.step()
    mask(model)
    secateur.slim(model, example_inputs=torch.randn(4, 6), graph=make_graph(model), optimizer=outer)
    assert outer.state[model[0].weight]["copy"].shape == (5, 6)
    assert outer.inner.state[model[0].weight]["exp_avg"].shape == (5, 6)
    assert [id(weight) for weight in outer.param_groups[0]["params"]] == [id(weight) for weight in model.parameters()]


def compute_moment(state: dict[str, Any]) -> torch.Tensor:
    """The second moment that Adafactor estimates from its factors."""
    return state["row_var"] @ state["col_var"] / state["row_var"].mean(dim=-2, keepdim=True)


def test_adafactor_keeps_its_estimates() -> None:
    """Its steps also depend on the mean square of a whole weight, zeros included, so that they differ a little."""
    model = make_model()
    model[1] = nn.Identity()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    with torch.no_grad():
        model[0].weight[GONE] = 0  # without gradients, as after masked training
    mask(model)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        mask(model)
    before = {name: copy.deepcopy(optimizer.state[weight]) for name, weight in model.named_parameters()}
    builder = GraphBuilder(model)
    graph = builder.add("hidden", 8, ("0.weight", 0, PRODUCER), ("3.weight", 1, CONSUMER)).build()
    secateur.slim(model, example_inputs=torch.randn(4, 6), graph=graph, optimizer=optimizer)
    kept = [unit for unit in range(8) if unit not in GONE]
    after = {name: optimizer.state[weight] for name, weight in model.named_parameters()}
    assert (after["3.weight"]["row_var"].shape, after["3.weight"]["col_var"].shape) == ((3, 1), (1, 5))
    torch.testing.assert_close(compute_moment(after["3.weight"]), compute_moment(before["3.weight"])[:, kept])
    torch.testing.assert_close(compute_moment(after["0.weight"]), compute_moment(before["0.weight"])[kept])
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_an_unknown_state_is_refused_before_anything_changes() -> None:
    model = make_model()
    mask(model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mask(model)
    before = everything(model)
    with pytest.raises(StateError, match="of the LBFGS optimizer has shape"):
        secateur.slim(model, example_inputs=torch.randn(4, 6), graph=make_graph(model), optimizer=optimizer)
    assert everything(model) == before

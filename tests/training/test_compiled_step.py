"""An optimizer step that torch.compile compiles."""

from typing import Any

import pytest
import torch

import secateur
from tiny_models import mlp
from training.models import CONFIG, NeverRevived, backward


def run(*, compiled: bool) -> tuple[list[int], Any]:
    """Train; return the number of nodes of each graph that was traced, and the pruner."""
    torch._dynamo.reset()
    graphs: list[int] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    pruner = secateur.prepare(model, CONFIG, optimizer=optimizer)
    check = NeverRevived(pruner)
    step = torch.compile(optimizer.step, backend=record) if compiled else optimizer.step
    for number in range(9):
        model.zero_grad()
        backward(model, number)
        step()
        check(number + 1)
    return graphs, pruner


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.torch.jit:DeprecationWarning")
def test_hooks_are_called_and_not_traced() -> None:
    graphs, pruner = run(compiled=True)
    assert len(graphs) == 1  # the step of SGD
    expected = run(compiled=False)[1]
    assert pruner.step == 9
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in pruner.masks.items())
    assert pruner.finalize().unit_sparsity == 0.75

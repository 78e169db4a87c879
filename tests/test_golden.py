"""Compare runs with stored results, because pruned weights must not change between releases."""

from typing import Any

import pytest
import torch

import secateur
from golden import GOLDEN, digest, exact, model_of_given_weights


def run(device: str, **config: Any) -> tuple[list[int], str]:
    """Return the number of pruned weights after each step, and the digest of the last masks, for fixed gradients."""
    model = model_of_given_weights().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    found = []
    for step in range(8):
        for place, weight in enumerate(model.parameters()):
            weight.grad = exact(weight.numel(), 7 * step + place).reshape(weight.shape).to(device)
        optimizer.step()
        found.append(sum(layer.pruned_weights for layer in pruner.report().layers))
    pruner.finalize()
    return found, digest(pruner.masks)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", GOLDEN)
def test_stored_result(name: str, device: str) -> None:
    config, pruned, masks = GOLDEN[name]
    assert run(device, **config) == (pruned, masks)


def test_all_results_differ() -> None:
    assert len({masks for _, _, masks in GOLDEN.values()}) == len(GOLDEN)


def test_digest_changes_with_one_weight() -> None:
    masks = {"fc": torch.ones(4, 8, dtype=torch.bool)}
    torn = {"fc": masks["fc"].clone()}
    torn["fc"][3, 7] = False
    assert len({digest(masks), digest(torn), digest({"fc2": masks["fc"]})}) == 3

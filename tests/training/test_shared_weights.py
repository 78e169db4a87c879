"""Several pruners of one model whose layers are the same: each keeps its own zeros."""

import gc
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import secateur
from secateur.errors import LayerError, ScoreError, StateError
from secateur.training.pytorch import PytorchPruner, prepare_together

ONCE = {"start_step": 0, "sparsity_decay_type": "one_shot", "criterion": "magnitude"}
GROWING = {"end_step": 5, "pruning_frequency": 2, "sparsity_decay_type": "linear", "criterion": "magnitude"}
ROWS: dict[str, Any] = {**GROWING, "pattern": "1xchannel", "target_sparsity": 0.5}
COLUMNS: dict[str, Any] = {**GROWING, "pattern": "channelx1", "target_sparsity": 0.25}


def square() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def train(optimizer: torch.optim.Optimizer, pruners: list[PytorchPruner], *, announced: bool) -> None:
    for pruner in pruners if announced else ():
        pruner.before_step()
    optimizer.step()
    for pruner in pruners if announced else ():
        pruner.after_step()
    optimizer.zero_grad()


def backward(model: nn.Module) -> None:
    (model(torch.randn(16, 8)) - torch.randn(16, 8)).square().mean().backward()


def count_zeros(model: nn.Module) -> int:
    return int((model.get_parameter("weight") == 0).sum())


@pytest.mark.parametrize("announced", [False, True])
def test_weight_is_zero_where_any_pruner_prunes_it(announced: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    rows, columns = pruners = prepare_together(model, [ROWS, COLUMNS], None if announced else optimizer)
    counts = []
    for _ in range(7):
        backward(model)
        train(optimizer, pruners, announced=announced)
        masks = rows.masks[""] & columns.masks[""]
        assert torch.equal(model.weight == 0, ~masks)
        counts.append((8 * rows.sparsity, 8 * columns.sparsity, count_zeros(model)))
    # Rows of 8 weights and columns of 8, which overlap.
    assert counts == [(0, 0, 0)] * 2 + [(2, 1, 22)] * 2 + [(4, 2, 40)] * 3
    assert [pruner.finalize().sparsity for pruner in pruners] == [0.5, 0.25]
    assert not caplog.records


@pytest.mark.parametrize("announced", [False, True])
def test_order_of_pruners_does_not_change_their_targets(announced: bool) -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    pruners = prepare_together(model, [COLUMNS, ROWS], None if announced else optimizer)
    for _ in range(5):
        backward(model)
        train(optimizer, pruners, announced=announced)
    assert [pruner.finalize().sparsity for pruner in pruners] == [0.25, 0.5]
    assert count_zeros(model) == 40


def test_scores_see_zeros_of_the_others() -> None:
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0, 1, 1, 1], [3, 2, 2, 2], [4, 2, 2, 3], [4, 3, 3, 3]]))
    configs = [
        {**ONCE, "pattern": "channelx1", "target_sparsity": 0.25, "criterion_reduce_type": "sum"},
        {**ONCE, "pattern": "1xchannel", "target_sparsity": 0.25, "criterion_reduce_type": "sum"},
    ]
    columns, rows = prepare_together(model, configs)
    # Columns sum to 20, 8, 8 and 9. Without the third one, ties going by index, rows sum to 11, 7, 9 and 10.
    assert (~columns.masks[""]).all(dim=0).tolist() == [False, False, True, False]
    assert (~rows.masks[""]).all(dim=1).tolist() == [False, True, False, False]


def test_zeros_of_the_others_are_not_those_of_a_sparse_model(caplog: pytest.LogCaptureFixture) -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    once = {**ONCE, "pattern": "1x1", "target_sparsity": 0.5}
    pruners = prepare_together(model, [once, {**ROWS, "keep_zeros": True}, once], optimizer)
    for _ in range(5):
        backward(model)
        optimizer.step()
    assert [pruner.finalize().sparsity for pruner in pruners] == [0.5, 0.5, 0.5]
    assert not caplog.records


def test_overwritten_zeros_are_restored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    once = [{**ONCE, "pattern": pattern, "target_sparsity": 0.5} for pattern in ("1xchannel", "channelx1")]
    pruners = prepare_together(model, once, optimizer)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with caplog.at_level(logging.WARNING):
        backward(model)
        optimizer.step()
    assert count_zeros(model) == 48
    assert sum("were changed between two steps" in record.message for record in caplog.records) == 1
    for pruner in pruners:
        pruner.finalize()


def test_new_zeros_that_no_pruner_keeps_are_refused() -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    prepare_together(model, [ROWS, {**ONCE, "pattern": "channelx1", "target_sparsity": 0.5}], optimizer)
    with torch.no_grad():
        model.weight[:, 0] = 0
        model.weight[:2] = 0
    backward(model)
    with pytest.raises(StateError, match="of its weights have become zero"):
        optimizer.step()


def test_zeros_of_a_pruner_that_has_ended_are_free() -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    rows, columns = prepare_together(
        model,
        [{**ONCE, "pattern": pattern, "target_sparsity": 0.5} for pattern in ("1xchannel", "channelx1")],
        optimizer,
    )
    rows.finalize()
    backward(model)
    optimizer.step()
    assert torch.equal(model.weight == 0, ~columns.masks[""])
    with pytest.raises(StateError, match="Another pruner already prunes"):
        secateur.prepare(model, ROWS, optimizer=optimizer)


def test_pruner_without_references_has_ended() -> None:
    model = square()
    pruners = prepare_together(
        model, [{**ONCE, "pattern": pattern, "target_sparsity": 0.5} for pattern in ("1xchannel", "channelx1")]
    )
    del pruners[0]
    gc.collect()
    with torch.no_grad():
        model.weight.fill_(1.0)
    pruners[0].apply_masks()
    assert count_zeros(model) == 32


def test_others_stay_refused() -> None:
    model = square()
    optimizer = SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, ROWS, optimizer=optimizer)
    with pytest.raises(StateError, match="Another pruner already prunes ''"):
        prepare_together(model, [ROWS, COLUMNS], optimizer)
    pruner.close()
    first = prepare_together(model, [ROWS, COLUMNS], optimizer)
    with pytest.raises(StateError, match="Another pruner already prunes ''"):
        prepare_together(model, [ROWS, COLUMNS], optimizer)
    assert [pruner.is_active for pruner in first] == [True, True]


def test_error_in_one_configuration_changes_nothing() -> None:
    model = square()
    before = model.weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(secateur.SecateurError, match="snip"):
        prepare_together(
            model,
            [{**ONCE, "pattern": "1x1"}, {**ROWS, "start_step": 0, "end_step": None, "criterion": "snip"}],
            optimizer,
        )
    assert torch.equal(model.weight, before)
    secateur.prepare(model, ROWS, optimizer=optimizer).close()


def test_parameters_that_share_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].weight = nn.Parameter(model[0].get_parameter("weight").detach())
    with pytest.raises(LayerError, match="share memory"):
        prepare_together(model, [{**ROWS, "op_names": "0"}, {**ROWS, "op_names": "1"}])


def test_tied_weights_are_shared() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].weight = model[0].weight
    configs = [
        {**ONCE, "pattern": pattern, "target_sparsity": 0.5, "op_names": name}
        for pattern, name in (("1xchannel", "0"), ("channelx1", "1"))
    ]
    pruners = prepare_together(model, configs)
    assert count_zeros(model[0]) == 48
    assert [pruner.sparsity for pruner in pruners] == [0.5, 0.5]


@pytest.mark.parametrize("announced", [False, True])
def test_states_resume_with_the_same_bits(announced: bool) -> None:
    def run(steps: int, states: Any = None) -> tuple[nn.Linear, list[PytorchPruner], dict[str, Any]]:
        model = square()
        optimizer = SGD(model.parameters(), lr=0.1)
        if states is not None:
            model.load_state_dict(states["model"])
        pruners = prepare_together(model, [ROWS, COLUMNS], None if announced else optimizer)
        for pruner, state in zip(pruners, states["pruners"] if states else (), strict=False):
            pruner.load_state_dict(state)
        for step in range(pruners[0].step, steps):
            torch.manual_seed(step)
            backward(model)
            train(optimizer, pruners, announced=announced)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return model, pruners, {"model": weights, "pruners": [pruner.state_dict() for pruner in pruners]}

    straight, _, _ = run(7)
    _, _, states = run(3)
    resumed, _, _ = run(7, states)
    assert torch.equal(straight.weight, resumed.weight)
    assert count_zeros(resumed) == 40


def test_nan_names_the_layer() -> None:
    model = square()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="found nan"):
        prepare_together(model, [ROWS, COLUMNS])

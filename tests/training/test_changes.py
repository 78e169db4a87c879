"""What others change in the middle of a run: it goes on rightly, or the next step names the layer."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed.fsdp
from torch import nn

import secateur
from secateur.errors import ConfigError, LayerError, ScoreError
from tiny_models import bits, mlp
from training.models import CONFIG, PROGRESSIVE, Trial, backward, begin, revived

LASSO = {**CONFIG, "reg_type": "group_lasso", "reg_coeff": 0.01}


def another_shape(trial: Trial) -> None:
    trial.model[0].weight.data = torch.ones(4, 4)


def transposed(trial: Trial) -> None:
    trial.model[0].weight.data = trial.model[0].weight.data.T


def replaced(trial: Trial) -> None:
    trial.model[0].weight = nn.Parameter(torch.ones(32, 16))


def replaced_layer(trial: Trial) -> None:
    trial.model[0] = nn.Linear(16, 32)


def deleted_layer(trial: Trial) -> None:
    del trial.model[0]
    trial.model.insert(0, nn.Identity())


def shorter_model(trial: Trial) -> None:
    trial.model.__dict__["_modules"] = {"body": nn.Linear(16, 16)}


def complex_numbers(trial: Trial) -> None:
    trial.model[0].weight.data = trial.model[0].weight.data.to(torch.complex64)


def deleted_weight(trial: Trial) -> None:
    del trial.model[0].weight


def parametrized(trial: Trial) -> None:
    torch.nn.utils.parametrizations.weight_norm(trial.model[0])


def meta(trial: Trial) -> None:
    trial.model.to("meta")


def sharded(trial: Trial) -> None:
    """Shard the model over the processes, of which there is one."""
    torch.distributed.fsdp.fully_shard(trial.model)


BREAKING = {
    another_shape: r"its weight now has shape \(4, 4\), but had \(32, 16\) when pruning started",
    transposed: r"its weight now has shape \(16, 32\)",
    replaced: "its weight is not the parameter that was pruned",
    replaced_layer: "its weight is not the parameter that was pruned",
    deleted_layer: "its weight is no longer a parameter of the layer",
    shorter_model: "it is no longer in the model",
    complex_numbers: "its weight is now torch.strided, torch.complex64, but must be a dense floating-point tensor",
    deleted_weight: "its weight is no longer a parameter of the layer",
    parametrized: "its weight is no longer a parameter of the layer",
    meta: "its weight is not the parameter that was pruned",
    sharded: r"its weight is not the parameter that was pruned but a DTensor, as after sharding or quantization",
}


@pytest.mark.parametrize("config", [CONFIG, PROGRESSIVE, LASSO, {**CONFIG, "criterion": "magnitude"}])
@pytest.mark.parametrize("change", BREAKING)
@pytest.mark.usefixtures("process_group")
def test_a_change_that_breaks_the_run_is_named_at_the_next_step(
    change: Callable[[Trial], None], config: dict[str, Any]
) -> None:
    trial = begin(config).train(range(4))
    change(trial)
    order = "Change the model before .* load, shard and wrap the model, create the optimizer, call secateur.prepare"
    with pytest.raises(LayerError, match=rf"layer '0': {BREAKING[change]}.*{order}"):
        trial.optimizer.step()
    assert trial.pruner.step == 4
    with pytest.raises(RuntimeError, match=BREAKING[change]):
        trial.pruner.finalize()


@pytest.mark.parametrize("change", [sharded, replaced])
@pytest.mark.parametrize("announces", [False, True])
@pytest.mark.usefixtures("process_group")
def test_a_replaced_weight_is_named_at_the_next_step_of_a_new_optimizer(
    change: Callable[[Trial], None], announces: bool
) -> None:
    model = mlp()
    given = None if announces else torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, CONFIG, given)
    change(Trial(model, given, pruner))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    with pytest.raises(LayerError, match=rf"layer '0': {BREAKING[change]}"):
        optimizer.step()


def test_a_weight_that_another_optimizer_has_taken_over_is_named_at_its_step() -> None:
    trial = begin(CONFIG).train(range(4))
    weight = trial.optimizer.param_groups[0]["params"].pop(0)
    with pytest.raises(
        LayerError, match=r"layer '0': its weight was moved from the AdamW .* to another SGD.*The order is"
    ):
        torch.optim.SGD([weight], lr=0.1).step()


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group with one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def frozen(trial: Trial) -> None:
    trial.model[0].requires_grad_(requires_grad=False)


def as_double(trial: Trial) -> None:
    trial.model.double()
    for state in trial.optimizer.state.values():
        state |= {key: value.double() for key, value in state.items() if value.ndim}


def other_memory(trial: Trial) -> None:
    trial.model[0].weight.data = trial.model[0].weight.data.clone()


def other_strides(trial: Trial) -> None:
    trial.model[0].weight.data = trial.model[0].weight.data.T.contiguous().T


def copied(trial: Trial) -> None:
    copied = copy.deepcopy(trial.model)
    copied[0].weight.data.fill_(7)


def new_group(trial: Trial) -> None:
    trial.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def regrouped(trial: Trial) -> None:
    (group,) = trial.optimizer.param_groups
    weights = group["params"]
    trial.optimizer.param_groups[:] = [{**group, "params": weights[:1]}, {**group, "params": weights[1:]}]


class Wrapper(nn.Module):
    """As activation checkpointing and adapters put around a layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(inputs)
        return found


def wrapped(trial: Trial) -> None:
    trial.model[0] = Wrapper(trial.model[0])
    trial.model[2] = Wrapper(trial.model[2])


def renamed(trial: Trial) -> None:
    layers = list(trial.model)
    del trial.model[:]
    trial.model.append(Wrapper(nn.Identity()))
    trial.model.extend(layers)


def weight_in_another_layer(trial: Trial) -> None:
    other = nn.Linear(16, 32)
    other.weight = trial.model[0].weight
    trial.model[0] = other


def compiled(trial: Trial) -> None:
    trial.model.compile(backend="eager")


def loaded(trial: Trial) -> None:
    trial.model.load_state_dict(mlp(3).state_dict())
    trial.optimizer.load_state_dict(copy.deepcopy(trial.optimizer.state_dict()))


def foreign_state(trial: Trial) -> None:
    trial.optimizer.state["mine"] = {"x": 1}
    trial.optimizer.param_groups[0]["note"] = "mine"


HARMLESS = [
    frozen,
    as_double,
    other_memory,
    other_strides,
    copied,
    new_group,
    regrouped,
    wrapped,
    renamed,
    weight_in_another_layer,
    compiled,
    loaded,
    foreign_state,
]


@pytest.mark.parametrize("config", [CONFIG, PROGRESSIVE, LASSO, {**CONFIG, "criterion": "magnitude"}])
@pytest.mark.parametrize("change", HARMLESS)
def test_a_run_goes_on_after_a_change(change: Callable[[Trial], None], config: dict[str, Any]) -> None:
    trial = begin(config, optimizer="sgd").train(range(4))
    weights = {"0": trial.model[0].weight, "2": trial.model[2].weight}
    change(trial)
    trial.train(range(4, 9))
    assert not any(weights[name][~mask].count_nonzero() for name, mask in trial.pruner.masks.items())
    assert trial.pruner.finalize().unit_sparsity == 0.75


def emptied(trial: Trial) -> None:
    trial.optimizer.param_groups.clear()


def emptied_group(trial: Trial) -> None:
    trial.optimizer.param_groups[0]["params"].clear()


def removed(trial: Trial) -> None:
    trial.optimizer.param_groups[0]["params"] = list(trial.model[2:].parameters())


UNHELD = [emptied, emptied_group, removed]


@pytest.mark.parametrize("config", [CONFIG, PROGRESSIVE, {**CONFIG, "criterion": "magnitude"}])
@pytest.mark.parametrize("change", UNHELD)
def test_a_weight_that_no_optimizer_holds_any_more_is_as_a_frozen_one(
    change: Callable[[Trial], None], config: dict[str, Any]
) -> None:
    trial = begin(config).train(range(4))
    change(trial)
    trial.train(range(4, 9))
    assert revived(trial.pruner) == []
    assert trial.pruner.finalize().unit_sparsity == 0.75


@pytest.mark.parametrize("change", UNHELD)
def test_group_lasso_needs_an_optimizer_to_the_end(change: Callable[[Trial], None]) -> None:
    trial = begin(LASSO).train(range(4))
    change(trial)
    with pytest.raises(ConfigError, match="layer '0': group lasso needs a learning rate"):
        trial.optimizer.step()
    assert (trial.pruner.step, revived(trial.pruner)) == (4, [])
    ended = begin(LASSO).train(range(9))
    change(ended)
    assert ended.train(range(9, 11)).pruner.finalize().is_complete


@pytest.mark.parametrize("criterion", ["snip_momentum", "taylor", "gradient", "magnitude"])
def test_sparse_gradients_are_read_as_dense(criterion: str) -> None:
    dense, sparse = (begin({**CONFIG, "criterion": criterion}, optimizer="sgd") for _ in range(2))
    for trial, step in itertools.product((dense, sparse), range(9)):
        trial.optimizer.param_groups[0] |= {"momentum": 0, "weight_decay": 0}
        trial.model.zero_grad()
        backward(trial.model, step)
        if trial is sparse:
            trial.model[0].weight.grad = trial.model[0].weight.grad.to_sparse()
        trial.optimizer.step()
    assert all(torch.equal(mask, sparse.pruner.masks[layer]) for layer, mask in dense.pruner.masks.items())
    assert sparse.pruner.finalize().unit_sparsity == 0.75


def test_gradients_of_another_dtype() -> None:
    trial = begin(optimizer="sgd")
    trial.optimizer.param_groups[0] |= {"momentum": 0}
    for step in range(9):
        trial.model.zero_grad()
        backward(trial.model, step)
        gradient = trial.model[0].weight.grad.double()
        trial.model[0].weight.grad = None
        trial.model[0].weight.grad_dtype = None
        trial.model[0].weight.grad = gradient
        trial.optimizer.step()
    assert trial.pruner.finalize().unit_sparsity == 0.75


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_gradients_that_are_no_finite_numbers_name_the_layer(value: float) -> None:
    trial = begin(optimizer="sgd").train(range(5))  # inf times a pruned weight is nan
    trial.model[2].weight.grad.fill_(value)
    with pytest.raises(ScoreError, match="layer '2': scores must be numbers, found nan"):
        trial.optimizer.step()
    assert revived(trial.pruner) == []


@pytest.mark.parametrize("rate", [None, -1.0, torch.nan, torch.inf, "fast"])
def test_group_lasso_needs_a_learning_rate(rate: Any) -> None:
    trial = begin(LASSO).train(range(4))
    before = bits(trial.model)
    trial.optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(ConfigError, match="layer '0': group lasso needs a learning rate of at least 0"):
        trial.optimizer.step()
    assert bits(trial.model) == before

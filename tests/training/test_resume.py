"""A run that was killed and resumed ends with the same bits as one that was not."""

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import StateError
from secateur.masking.run_options import RunOptions
from secateur.training.pytorch import prepare_together
from tiny_models import bits, mlp
from training.models import CONFIG, OPTIMIZERS, NeverRevived, Trial, backward, begin, equal_states, pruned_units

STEPS = 12

LONG: dict[str, Any] = {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 10, "pruning_frequency": 3}

RUNS: dict[str, dict[str, Any]] = {
    "iterative": LONG,
    "one_shot": {**LONG, "start_step": 7, "end_step": None},
    "from_step_0": {**LONG, "start_step": 0, "criterion": "magnitude"},
    "before_training": {**LONG, "start_step": 0, "end_step": None, "criterion": "random"},
    "local": {**LONG, "pruning_scope": "local", "sparsity_decay_type": "exponential"},
    "bfloat16": {**LONG, "score_dtype": "bfloat16"},
    "per_weight": {**LONG, "criterion_reduce_type": "max"},
    "per_weight_bfloat16": {**LONG, "criterion_reduce_type": "l2", "score_dtype": "bfloat16", "pattern": "1x4"},
    "taylor": {**LONG, "criterion": "taylor", "pattern": "1xchannel"},
    "movement": {**LONG, "criterion": "movement", "pattern": "channelx1"},
    "gradient": {**LONG, "criterion": "gradient", "pattern": "1x1"},
    "progressive": {**LONG, "kind": "progressive", "progressive_steps": 3},
    "progressive_groups": {**LONG, "kind": "progressive", "pattern": "2:4", "progressive_steps": 2},
    "groups": {**LONG, "pattern": "2:4", "target_sparsity": 0.25},
    "bounds": {**LONG, "max_sparsity_ratio_per_op": 0.5},
    "lock": {**LONG, "kind": "pattern_lock"},
    "keep_zeros": {**LONG, "keep_zeros": True},
    "lasso": {**LONG, "reg_type": "group_lasso", "reg_coeff": 0.05},
    "rigl": {**LONG, "kind": "rigl"},
    "rigl_groups": {**LONG, "kind": "rigl", "pattern": "2:4", "start_step": 0},
    "set": {**LONG, "kind": "set", "pattern": "1x1", "sparsity_distribution": "er"},
    "rules": {**LONG, "layers": {"2": {"pattern": "2:4", "kind": "progressive", "progressive_steps": 3}}},
}


def start(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Trial:
    model = mlp(seed, dtype)
    model[0].weight.data[4:12] = 0
    model[2].weight.data.view(-1)[::9] *= 1e-3
    return begin(config, model=model)


def saved(trial: Trial) -> io.BytesIO:
    file = io.BytesIO()
    torch.save({part: getattr(trial, part).state_dict() for part in trial._fields}, file)
    return file


def loaded(file: io.BytesIO) -> dict[str, Any]:
    """Read as untrusted: tensors and plain values only."""
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def resumed(config: dict[str, Any], file: io.BytesIO, dtype: torch.dtype = torch.float32) -> Trial:
    trial = start(config, seed=1, dtype=dtype)
    for part, state in loaded(file).items():
        getattr(trial, part).load_state_dict(state)
    return trial


def parts(trial: Trial) -> dict[str, Any]:
    return {part: getattr(trial, part).state_dict() for part in trial._fields}


@pytest.mark.parametrize("run", RUNS)
def test_resumed_run_ends_with_the_same_bits(run: str) -> None:
    trial, files = start(RUNS[run]), {}
    for step in range(STEPS):
        files[step] = saved(trial)
        trial.train([step])
    for stop in (0, 1, 3, 4, 6, 10, 11):
        other = resumed(RUNS[run], files[stop])
        other.train(range(stop, STEPS), NeverRevived(other.pruner))
        assert equal_states(parts(other), parts(trial)), stop
        assert other.pruner.report() == trial.pruner.report()
    assert trial.pruner.finalize().is_complete


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_resumed_run_in_another_dtype(dtype: torch.dtype) -> None:
    trial = begin(LONG, model=mlp(dtype=dtype), optimizer="sgd").train(range(5))
    file = saved(trial)
    other = begin(LONG, model=mlp(1, dtype), optimizer="sgd")
    for part, state in loaded(file).items():
        getattr(other, part).load_state_dict(state)
    assert equal_states(parts(other.train(range(5, STEPS))), parts(trial.train(range(5, STEPS))))


def test_resumed_by_preparing_the_loaded_model() -> None:
    for config in (LONG, RUNS["keep_zeros"], RUNS["from_step_0"], RUNS["progressive"]):
        trial = start(config).train(range(8))
        states = loaded(saved(trial))
        model = mlp(seed=1)
        model.load_state_dict(states["model"])
        other = begin(config, model=model)
        other.optimizer.load_state_dict(states["optimizer"])
        other.pruner.load_state_dict(states["pruner"])
        assert equal_states(parts(other.train(range(8, STEPS))), parts(trial.train(range(8, STEPS))))


@pytest.mark.parametrize("run", ["iterative", "before_training", "bounds", "keep_zeros", "lock", "progressive", "rigl"])
def test_run_that_is_announced_as_resumed_leaves_the_loaded_weights_alone(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial = start(RUNS[run]).train(range(8))
    states = loaded(saved(trial))
    model = mlp(seed=1)
    model.load_state_dict(states["model"])
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    optimizer.load_state_dict(states["optimizer"])
    caplog.clear()
    pruner = prepare_together(model, [RUNS[run]], optimizer, [RunOptions(is_resumed=True)])[0]
    assert equal_states(model.state_dict(), states["model"])
    pruner.load_state_dict(states["pruner"])
    assert caplog.messages == []
    other = Trial(model, optimizer, pruner).train(range(8, STEPS), NeverRevived(pruner))
    assert equal_states(parts(other), parts(trial.train(range(8, STEPS))))
    assert pruner.finalize() == trial.pruner.finalize()


def test_finished_run_can_be_loaded_with_its_zeros_kept() -> None:
    config = {**RUNS["keep_zeros"], "target_sparsity": 0.3}
    trial = start(config).train(range(STEPS))
    states = loaded(saved(trial))
    model = mlp(seed=1)
    model.load_state_dict(states["model"])
    other = begin(config, model=model)
    other.pruner.load_state_dict(states["pruner"])
    assert other.pruner.finalize() == trial.pruner.finalize()


def test_without_the_state_of_the_pruner_it_does_not_go_on() -> None:
    trial = start(LONG).train(range(5))
    states = loaded(saved(trial))
    other = start(LONG, seed=1)
    other.model.load_state_dict(states["model"])
    other.optimizer.load_state_dict(states["optimizer"])
    with pytest.raises(StateError, match=r"of its weights have become zero since secateur.prepare"):
        other.train([5])


def test_sameness_can_fail() -> None:
    assert not equal_states({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)})
    assert not equal_states([1, {"a": torch.ones(2)}], [1, {"a": torch.ones(2, dtype=torch.float64)}])
    assert equal_states({"a": (torch.tensor(math.nan), 1)}, {"a": (torch.tensor(math.nan), 1)})


@pytest.mark.parametrize("run", ["iterative", "progressive", "keep_zeros", "lasso"])
def test_run_can_go_back_to_an_earlier_state(run: str) -> None:
    trial = start(RUNS[run])
    early = loaded(saved(trial))
    trial.train(range(STEPS))
    late = loaded(saved(trial))
    for part, state in early.items():
        getattr(trial, part).load_state_dict(state)
    assert equal_states(trial.pruner.state_dict(), early["pruner"])
    assert equal_states(parts(trial.train(range(STEPS))), late)


def test_frozen_layers_are_resumed() -> None:
    trial = start(LONG).train(range(4))
    trial.pruner.plan.patterns[0].keep_mask_layers["0"] = "mine"
    file = saved(trial)
    frozen = trial.pruner.masks["0"]
    other = resumed(LONG, file).train(range(4, STEPS))
    assert torch.equal(other.pruner.masks["0"], frozen)
    assert pruned_units(other.pruner) == 128


def test_a_state_is_a_snapshot() -> None:
    trial = start(LONG).train(range(5))
    state = trial.pruner.state_dict()
    before = loaded(saved(trial))["pruner"]
    trial.train(range(5, STEPS))
    assert equal_states(state, before)
    other = start(LONG, seed=1)
    other.pruner.load_state_dict(state)
    other.train(range(5, STEPS))
    assert equal_states(state, before)


# States that are refused.


def another(model: nn.Sequential | None = None, **config: Any) -> dict[str, Any]:
    return begin({**LONG, **config}, model=model).train(range(2)).pruner.state_dict()


def narrow() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def deeper() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: another(narrow()), r"another model\. Layers that differ in name or shape: '0', '2'\. Load"),
        (lambda: another(deeper()), r"another model\. Layers that differ in name or shape: '1'\. Load"),
        (lambda: another(target_sparsity=0.25), "another configuration: target_sparsity was 0.25, is 0.5"),
        (
            lambda: another(kind="progressive", progressive_steps=3),
            "another configuration: kind was 'progressive', is 'iterative'",
        ),
        (lambda: another(layers={"2": {"pattern": "2:4"}}), "of a run with 2 patterns, this one has 1"),
        (lambda: another() | {"format_version": 2}, "Not the state of a pruner of format 1, found format 2"),
        (lambda: another() | {"optimizer_steps": [2, 2]}, "of a run with 2 optimizers, this one has 1"),
        (lambda: mlp().state_dict(), "Not the state of a pruner of format 1, found format None"),
        (dict, r"Pass the result of pruner.state_dict\(\)"),
    ],
)
def test_state_of_something_else_is_refused(make: Any, message: str) -> None:
    trial = start(LONG).train(range(5))
    before = loaded(saved(trial))
    with pytest.raises(StateError, match=message):
        trial.pruner.load_state_dict(make())
    assert equal_states(parts(trial), before)


def put(state: Any, value: Any, *path: Any) -> Any:
    """A copy of `state` with `value` at `path`, or without what is there where `value` is ``...``."""
    if not path:
        return value
    copied = state.copy()
    if value is ... and len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = put(state[path[0]] if path[1:] else None, value, *path[1:])
    return copied


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), None, "Not the state of a pruner of format 1, found NoneType"),
        ((), [1], "Not the state of a pruner of format 1, found list"),
        (("format_version",), torch.ones(3), "Not the state of a pruner of format 1, found format tensor"),
        (("step",), ..., "The state is damaged. step: Field required"),
        (("step",), "x", "The state is damaged. step: Input should be a valid integer, found str"),
        (("step",), -1, "step: Input should be greater than or equal to 0"),
        (("optimizer_steps",), 2, "optimizer_steps: Input should be a valid list"),
        (("optimizer_steps", 0), None, r"optimizer_steps\.0: Input should be a valid integer"),
        (("runs",), None, "runs: Input should be a valid list"),
        (("runs",), [{}], r"runs\.0\.config: Field required"),
        (("runs", 0), None, r"runs\.0: Input should be a valid dict"),
        (("runs", 0, "shapes"), None, r"runs\.0\.shapes: "),
        (("runs", 0, "masks"), ..., r"runs\.0\.masks: Field required"),
        (("runs", 0, "masks"), None, r"runs\.0\.masks: "),
        (("runs", 0, "masks", "0"), None, r"masks of '0' must be bool of shape \(32, 16\), found NoneType"),
        (("runs", 0, "masks", "0"), ..., "masks must include all of '0', '2' or none, found '2'"),
        (("runs", 0, "masks", "0"), torch.ones(32, 16), r"must be bool of shape \(32, 16\), found float32 of shape"),
        (("runs", 0, "masks", "0"), torch.ones(3, dtype=torch.bool), r"found bool of shape \(3,\)"),
        (("runs", 0, "progress"), {}, r"runs\.0\.progress\.keep: Field required"),
        (("runs", 0, "progress", "asked"), "x", r"runs\.0\.progress\.asked: Input should be a valid number"),
        (
            ("runs", 0, "progress", "initial"),
            2.0,
            r"runs\.0\.progress\.initial: Input should be less than or equal to 1",
        ),
        (("runs", 0, "progress", "keep", "2"), torch.ones(3), r"progress\.keep of '2' must be bool of shape \(128,\)"),
        (("runs", 0, "progress", "keep", "2"), ..., r"progress\.keep must include all"),
        (("runs", 0, "scores"), [], r"runs\.0\.scores: "),
        (("runs", 0, "scores", "2"), torch.ones(3), r"scores of '2' must be float32 of shape \(128,\)"),
        (("runs", 0, "scores", "1"), torch.ones(3), "scores must be among '0', '2', found '0', '2', '1'"),
        (("runs", 0, "keep_mask_layers"), {1: 2}, r"runs\.0\.keep_mask_layers"),
    ],
)
def test_damaged_state_is_refused_whole(path: tuple[Any, ...], value: Any, message: str) -> None:
    trial = start({**LONG, "criterion": "snip_momentum"}).train(range(5))
    before = loaded(saved(trial))
    state = trial.pruner.state_dict()
    with pytest.raises(StateError, match=message):
        trial.pruner.load_state_dict(put(state, value, *path))
    assert equal_states(parts(trial), before)


def test_state_of_rules_that_differ_in_the_second_is_refused_whole() -> None:
    def ruled(target: float) -> Trial:
        return begin({**LONG, "layers": {"2": {"target_sparsity": target}}}).train(range(4))

    trial = ruled(0.3)
    before = loaded(saved(trial))
    with pytest.raises(StateError, match=r"target_sparsity was 0\.4, is 0\.3"):
        trial.pruner.load_state_dict(ruled(0.4).pruner.state_dict())
    assert equal_states(parts(trial), before)


def test_own_schedule_is_told_by_its_name() -> None:
    def quick(initial: float, target: float, progress: float) -> float:
        return initial + (target - initial) * progress**0.5

    config = {**LONG, "sparsity_decay_type": quick}
    trial = start(config).train(range(5))
    other = resumed(config, saved(trial))
    assert equal_states(parts(other.train(range(5, STEPS))), parts(trial.train(range(5, STEPS))))
    with pytest.raises(StateError, match=r"sparsity_decay_type was '.*quick', is 'cubic'"):
        start(LONG).pruner.load_state_dict(trial.pruner.state_dict())


def test_several_optimizers_resume_between_their_steps() -> None:
    def both() -> tuple[nn.Sequential, list[torch.optim.Optimizer], Any]:
        model = mlp()
        optimizers = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[2:].parameters(), 0.1)]
        config = {**CONFIG, "criterion": "snip_momentum", "start_step": 2}
        return model, optimizers, secateur.prepare(model, config, optimizer=optimizers)

    first, optimizers, pruner = both()
    backward(first, 0)
    optimizers[0].step()
    model, others, other = both()
    other.load_state_dict(pruner.state_dict())
    before = bits(model)
    others[1].step()
    assert (pruner.step, other.step) == (0, 1)
    assert list(pruner.state_dict()["runs"][0]["scores"]) == ["0"]
    assert bits(model) == before


def test_a_state_of_a_version_without_a_default_maximum_continues_without_one() -> None:
    config = {**LONG, "pattern": "1xchannel", "criterion": "magnitude"}
    old = {**config, "max_sparsity_ratio_per_op": 1.0}  # what such a version saved by default
    trial = start(old)
    trial.model[2].weight.data *= 1e-3
    file = saved(trial.train(range(7)))
    other = resumed(config, file).train(range(7, STEPS))
    assert equal_states(parts(other), parts(trial.train(range(7, STEPS))))
    assert other.pruner.report().layers == trial.pruner.report().layers
    assert max(layer.sparsity for layer in other.pruner.report().layers) == 1  # the configuration limits new runs
    again = resumed(config, saved(other))  # nor does a state that is saved after that have one
    assert again.pruner.plan.patterns[0].max_sparsity_ratio_per_op == 1
    new = start(config)
    new.model[2].weight.data *= 1e-3
    new.train(range(STEPS))
    assert max(layer.sparsity for layer in new.pruner.report().layers) < 1


def test_a_state_that_is_refused_leaves_the_maximum() -> None:
    config = {**LONG, "pattern": "1xchannel", "criterion": "magnitude"}
    state = start({**config, "max_sparsity_ratio_per_op": 1.0}).train(range(7)).pruner.state_dict()
    state["runs"][0]["progress"]["initial"] = 0.25
    trial = start(config)
    with pytest.raises(StateError, match=r"progress\.initial"):
        trial.pruner.load_state_dict(state)
    assert trial.pruner.plan.patterns[0].max_sparsity_ratio_per_op == 0.98

"""States of pruners: what no run can have reached is refused with nothing changed, what one has reached is accepted."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import StateError
from tiny_models import bits, mlp
from training.models import CONFIG, Trial, backward, begin, equal_states
from training.test_resume import LONG, RUNS, STEPS, start

State = dict[str, Any]
Change = Callable[[State], Any]

SNIP: dict[str, Any] = {**LONG, "criterion": "snip_momentum"}
KINDS: dict[str, dict[str, Any]] = {**RUNS, "snip": SNIP, "snip_bfloat16": {**SNIP, "score_dtype": "bfloat16"}}


def unit(state: State, key: str = "keep", run: int = 0, layer: str = "0", *, lives: bool) -> tuple[torch.Tensor, int]:
    """Flags of units, and the first one that lives or does not."""
    flags = state["runs"][run]["progress"][key][layer]
    return flags, int((flags == lives).nonzero()[0])


def flip_mask(state: State, *, prunes: bool, run: int = 0, layer: str = "0") -> None:
    mask = state["runs"][run]["masks"][layer].view(-1)
    mask[int((mask == prunes).nonzero()[0])] = not prunes


def swap_in_mask(state: State) -> None:
    flip_mask(state, prunes=True)
    mask = state["runs"][0]["masks"]["0"].view(-1)
    mask[int((~mask).nonzero()[-1])] = True


def flip_unit(state: State, key: str, *, prunes: bool) -> None:
    flags, place = unit(state, key, lives=prunes)
    flags[place] = not prunes


def flip_unit_and_mask(state: State, layer: str = "0", *, prunes: bool) -> None:
    """A 4x1 unit of both."""
    flags, place = unit(state, layer=layer, lives=prunes)
    flags[place] = not prunes
    mask = state["runs"][0]["masks"][layer]
    row, column = divmod(place, mask.shape[1])
    mask[4 * row : 4 * row + 4, column] = not prunes


def move_unit(state: State) -> None:
    """From one layer to the other, so that the sum stays."""
    flip_unit_and_mask(state, "0", prunes=True)
    flip_unit_and_mask(state, "2", prunes=False)


def put(*path: Any, value: Any) -> Change:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


def put_step(value: int) -> Change:
    return lambda state: state.update(step=value, optimizer_steps=[value])


def progress(key: str, value: Any) -> Change:
    return put("runs", 0, "progress", key, value=value)


def swap_layers(part: str) -> Change:
    def change(state: State) -> None:
        found = state["runs"][0][part]
        found["0"], found["2"] = found["2"], found["0"]

    return change


def put_nan(state: State) -> None:
    state["runs"][0]["scores"]["2"][5] = torch.nan


def exceed_bound(state: State) -> None:
    while int((~state["runs"][0]["progress"]["keep"]["0"]).sum()) < 65:
        move_unit(state)


def fade_more(state: State) -> None:
    """Prune one weight more of a condemned 4x1 unit."""
    found = state["runs"][0]
    condemned = ~found["progress"]["condemned_keep"]["0"].reshape(8, 16).repeat_interleave(4, dim=0)
    mask = found["masks"]["0"]
    row, column = (mask & condemned).nonzero()[0].tolist()
    mask[row, column] = False


def break_group(state: State) -> None:
    """Move a pruned weight from one group of 2:4 to another, of which more than two are pruned then."""
    found = state["runs"][0]
    flags, mask = found["progress"]["keep"]["0"], found["masks"]["0"].view(-1)
    assert torch.equal(flags, mask)
    groups = mask.reshape(-1, 4)
    full, other = (groups.sum(1) == 2).nonzero()[[0, -1], 0].tolist()
    for changed in (flags.reshape(-1, 4), groups):
        changed[full][int(changed[full].nonzero()[0])] = False
        changed[other][int((~changed[other]).nonzero()[0])] = True


def put_all_units(state: State) -> None:
    units = {name: torch.ones_like(mask).view(-1) for name, mask in state["runs"][0]["masks"].items()}
    state["runs"][0]["progress"]["keep"] = units


def no_masks(state: State) -> None:
    state["runs"][0]["masks"] = {}


def all_but_masks_dense(state: State) -> None:
    found = state["runs"][0]
    for flags in (*found["masks"].values(), *found["progress"]["keep"].values()):
        flags.fill_(value=True)


DAMAGED = r"The state is damaged\. "
FOUND: dict[str, tuple[str, int, Change, str]] = {
    "mask bit pruned": ("iterative", 5, partial(flip_mask, prunes=True), "masks of '0' do not match progress"),
    "mask bit kept": ("iterative", 5, partial(flip_mask, prunes=False), "masks of '0' do not match progress"),
    "mask bits swapped": ("iterative", 5, swap_in_mask, "masks of '0' do not match progress"),
    "mask all kept": ("iterative", 5, put("runs", 0, "masks", "0", value=torch.ones_like), "masks of '0' do not match"),
    "mask all pruned": ("iterative", 5, put("runs", 0, "masks", "0", value=torch.zeros_like), "masks of '0' do not"),
    "mask bit, groups": ("groups", 5, partial(flip_mask, prunes=True), "masks of '0' do not match progress"),
    "mask bit, fading": ("progressive", 5, partial(flip_mask, prunes=False), "masks of '0' do not match"),
    "mask bit, part of the way": ("progressive", 5, fade_more, "masks of '0' must keep .* found"),
    "mask of the second run": ("rules", 5, partial(flip_mask, prunes=True, run=1, layer="2"), "masks of '2' "),
    "masks missing": ("iterative", 5, no_masks, "masks and progress.keep must both be present, or neither"),
    "masks missing, lock": ("lock", 5, no_masks, "masks must be present if zeros are locked"),
    "masks of one layer": ("iterative", 5, lambda state: state["runs"][0]["masks"].pop("2"), "must include all of"),
    "masks of other layers": ("iterative", 5, swap_layers("masks"), r"masks of '0' must be bool of shape \(32, 16\)"),
    "mask of floats": ("iterative", 5, put("runs", 0, "masks", "0", value=torch.Tensor.float), "must be bool of shape"),
    "mask on meta": ("iterative", 5, put("runs", 0, "masks", "0", value=lambda m: m.to("meta")), "cannot be read"),
    "mask of another shape": ("iterative", 5, put("runs", 0, "masks", "0", value=lambda m: m[:-1]), r"of shape \(31,"),
    "mask that is sparse": ("iterative", 5, put("runs", 0, "masks", "0", value=lambda m: m.to_sparse()), DAMAGED),
    "masks too early": ("iterative", 5, put_step(0), "progress.asked must be 0.0 after step 0"),
    "units live that were pruned": ("iterative", 5, partial(flip_unit, key="keep", prunes=False), "masks of '0' do"),
    "units pruned that live": ("iterative", 5, partial(flip_unit, key="keep", prunes=True), "masks of '0' do not"),
    "one unit more": ("iterative", 5, partial(flip_unit_and_mask, prunes=True), "units must be pruned, found"),
    "one unit less": ("iterative", 5, partial(flip_unit_and_mask, prunes=False), "units must be pruned, found"),
    "no unit": ("iterative", 5, all_but_masks_dense, "units must be pruned, found 0"),
    "unit of another layer": ("local", 5, move_unit, "units of '.' must be pruned, found"),
    "more than the bound": ("bounds", 11, exceed_bound, "at most 64 units of '0' may be pruned, found 65"),
    "units of N:M": ("groups", 11, break_group, "layer '0': "),
    "no units": ("iterative", 5, progress("keep", None), "progress.keep must be present after step 5"),
    "empty units": ("iterative", 5, progress("keep", {}), "progress.keep must include all of '0', '2', or be None"),
    "units, lock": ("lock", 5, progress("keep", {}), "progress.keep must include all of"),
    "units where all zeros are locked": ("lock", 5, put_all_units, "must be as they were when the zeros were locked"),
    "condemned, iterative": (
        "iterative",
        5,
        lambda state: state["runs"][0]["progress"].update(condemned_keep=state["runs"][0]["progress"]["keep"]),
        "progress.condemned_keep must not be present after step 5",
    ),
    "no condemned": ("progressive", 5, progress("condemned_keep", None), "condemned_keep must be present after step 5"),
    "condemned live": ("progressive", 5, partial(flip_unit, key="condemned_keep", prunes=False), "masks of '0' "),
    "condemned more": ("progressive", 5, partial(flip_unit, key="condemned_keep", prunes=True), "masks of '0' "),
    "condemned more, unfaded": (
        "progressive",
        4,
        partial(flip_unit, key="condemned_keep", prunes=True),
        "units must be pruned, found",
    ),
    "asked more": ("iterative", 5, progress("asked", lambda asked: asked + 1e-6), "progress.asked must be"),
    "asked, lock": ("lock", 5, progress("asked", 0.1), "progress.asked and progress.initial must agree"),
    "asked nan": ("iterative", 5, progress("asked", torch.nan), r"progress\.asked: Input should be"),
    "asked negative": ("iterative", 5, progress("asked", -0.1), r"progress\.asked: Input should be greater"),
    "initial": ("iterative", 5, progress("initial", 0.1), "progress.initial must be 0 without keep_zeros, found 0.1"),
    "initial, zeros kept": (
        "keep_zeros",
        11,
        progress("initial", 0.6),
        "progress.initial is 0.6, more than the target",
    ),
    "initial, before": ("keep_zeros", 0, progress("initial", 0.1), "progress.asked must be 0.1 after step 0"),
    "step more": ("iterative", 6, put_step(7), "progress.asked must be"),
    "step less": ("iterative", 4, put_step(3), "progress.asked must be"),
    "step of a part": ("progressive", 5, put_step(6), "masks of '.' must keep .* weights, found"),
    "step late": ("iterative", 5, put_step(1000), "progress.asked must be 0.5 after step 1000"),
    "step huge": ("iterative", 5, put_step(10**30), "progress.asked must be 0.5 after step 1000000000"),
    "step negative": ("iterative", 5, put_step(-1), "step: Input should be greater than or equal to 0"),
    "step bool": ("iterative", 1, put("step", value=True), "step: Input should be a valid integer, found bool"),
    "step float": ("iterative", 5, put("step", value=5.0), "step: Input should be a valid integer, found float"),
    "step alone": ("iterative", 5, put("step", value=6), "step must be 5, the minimum of optimizer_steps, found 6"),
    "steps alone": (
        "iterative",
        5,
        put("optimizer_steps", value=[6]),
        "step must be 6, the minimum of optimizer_steps",
    ),
    "steps bool": (
        "iterative",
        1,
        put("optimizer_steps", value=[True]),
        r"optimizer_steps\.0: Input should be a valid",
    ),
    "steps none": ("iterative", 5, put("optimizer_steps", value=[]), "with 0 optimizers, this one has 1"),
    "version bool": ("iterative", 5, put("format_version", value=True), "found format True"),
    "version float": ("iterative", 5, put("format_version", value=1.0), r"found format 1\.0"),
    "scores nan": ("snip", 5, put_nan, "scores of '2' must be numbers, found nan"),
    "scores nan, bfloat16": ("snip_bfloat16", 5, put_nan, "scores of '2' must be numbers, found nan"),
    "scores double": (
        "snip",
        5,
        put("runs", 0, "scores", "0", value=torch.Tensor.double),
        "scores of '0' must be float32",
    ),
    "scores short": ("snip", 5, put("runs", 0, "scores", "0", value=lambda s: s[1:]), "scores of '0' must be"),
    "scores on meta": ("snip", 5, put("runs", 0, "scores", "0", value=lambda s: s.to("meta")), "cannot be read"),
    "scores of lock": ("lock", 5, put("runs", 0, "scores", value={"0": torch.ones(128)}), "scores must be among"),
    "scores ungathered": (
        "from_step_0",
        5,
        put("runs", 0, "scores", value={"0": torch.ones(128)}),
        "scores must be among",
    ),
    "scores of a stranger": (
        "iterative",
        5,
        put("runs", 0, "scores", value={"9": torch.ones(1)}),
        "scores must be among",
    ),
    "frozen by a number": ("iterative", 5, put("runs", 0, "keep_mask_layers", value={"0": 1}), "keep_mask_layers"),
    "runs swapped": ("rules", 5, lambda state: state["runs"].reverse(), "another model"),
    "runs doubled": ("iterative", 5, lambda state: state["runs"].append(state["runs"][0]), "with 2 patterns"),
    "runs none": ("iterative", 5, lambda state: state["runs"].clear(), "with 0 patterns, this one has 1"),
    "configuration": ("iterative", 5, put("runs", 0, "config", "end_step", value=11), "end_step was 11, is 10"),
    "shapes": ("iterative", 5, put("runs", 0, "shapes", "0", value=[16, 32]), "another model"),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_contradiction_is_refused_whole(name: str) -> None:
    run, step, change, message = FOUND[name]
    state = copy.deepcopy(start(KINDS[run]).train(range(step)).pruner.state_dict())
    trial = start(KINDS[run], seed=1).train(range(2))
    trial.pruner.load_state_dict(state)
    trial.train(range(step, step + 1))
    before, weights = copy.deepcopy(trial.pruner.state_dict()), bits(trial.model)
    change(state)
    with pytest.raises(StateError, match=message):
        trial.pruner.load_state_dict(state)
    assert equal_states(trial.pruner.state_dict(), before)
    assert bits(trial.model) == weights
    trial.train(range(step + 1, STEPS))
    assert trial.pruner.finalize().is_complete


def resume(trial: Trial, config: dict[str, Any], *, seed: int = 1) -> Trial:
    """Another run, made of another model, that takes over the state."""
    other = start(config, seed=seed)
    state = copy.deepcopy(trial.pruner.state_dict())
    other.pruner.load_state_dict(state)
    assert equal_states(other.pruner.state_dict(), state)
    return other


@pytest.mark.parametrize("run", KINDS)
def test_the_state_of_each_step_is_accepted(run: str) -> None:
    trial = start(KINDS[run])
    for step in range(STEPS):
        resume(trial, KINDS[run])
        trial.train([step])


def quadratic(exponent: int, initial: float, target: float, progress: float) -> float:
    return initial + (target - initial) * progress**exponent


class Cautious:
    """A schedule whose answer depends on when it is asked, such as on the loss so far."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, initial: float, target: float, progress: float) -> float:
        self.asked += 1
        return initial + (target - initial) * progress * (0.5 + 0.5 / self.asked)


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
@pytest.mark.parametrize("schedule", [partial(quadratic, 2), Cautious(), Cautious().__call__])
def test_functions_as_schedules_are_resumed(schedule: Any, kind: str) -> None:
    config = {**LONG, "sparsity_decay_type": schedule, "kind": kind, "progressive_steps": 2}
    trial = start(config)
    for step in range(STEPS):
        other = resume(trial, config)
        trial.train([step])
    assert other.train(range(STEPS - 1, STEPS)).pruner.finalize().is_complete


@pytest.mark.parametrize("config", [{"keep_zeros": True}, {"keep_zeros": True, "target_sparsity": 0.001}])
def test_locked_units_are_resumed(config: dict[str, Any]) -> None:
    config = {**LONG, "kind": "pattern_lock", **config}
    trial = start(config).train(range(3))
    other = begin(config, model=mlp(1))  # without zeros of its own
    other.pruner.load_state_dict(trial.pruner.state_dict())
    assert all(torch.equal(mask, other.pruner.masks[name]) for name, mask in trial.pruner.masks.items())
    other.train(range(3, 6))
    assert other.pruner.finalize().is_complete


@pytest.mark.parametrize("layer", ["0", "2", "4", "elsewhere"])
@pytest.mark.parametrize("run", ["iterative", "local", "progressive", "keep_zeros", "groups", "bounds"])
def test_frozen_layers_are_accepted_at_each_step(run: str, layer: str) -> None:
    trial = start(RUNS[run]).train(range(4))
    trial.pruner.plan.patterns[0].keep_mask_layers[layer] = "mine"
    for step in range(4, STEPS):
        resume(trial, RUNS[run])
        trial.train([step])


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
def test_several_optimizers_between_their_steps(kind: str) -> None:
    config = {**CONFIG, "kind": kind, "progressive_steps": 2}

    def both() -> tuple[nn.Sequential, list[torch.optim.Optimizer], Any]:
        model = mlp()
        optimizers = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[2:].parameters(), 0.1)]
        return model, optimizers, secateur.prepare(model, config, optimizer=optimizers)

    model, optimizers, pruner = both()
    for step in range(CONFIG["end_step"] + 2):
        model.zero_grad()
        backward(model, step)
        for optimizer in (optimizers[0], optimizers[0], optimizers[1]):
            state = copy.deepcopy(pruner.state_dict())
            both()[2].load_state_dict(state)
            optimizer.step()
    assert state["optimizer_steps"] == [22, 10]
    assert pruner.finalize().is_complete


def test_what_was_added_to_a_state_is_passed_over() -> None:
    trial = start(LONG).train(range(5))
    trial.pruner.load_state_dict({**trial.pruner.state_dict(), "epoch": 3})


def test_scores_may_lie_anywhere_in_memory() -> None:
    trial = start(SNIP).train(range(5))
    state = copy.deepcopy(trial.pruner.state_dict())
    found = state["runs"][0]
    found["scores"]["0"] = found["scores"]["0"].repeat_interleave(2)[::2]
    found["masks"]["0"] = found["masks"]["0"].mT.contiguous().mT
    before = copy.deepcopy(trial.pruner.state_dict())
    trial.pruner.load_state_dict(state)
    assert equal_states(trial.pruner.state_dict(), before)

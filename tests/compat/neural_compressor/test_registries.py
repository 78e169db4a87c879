"""Criteria, schedulers and regularizers that were written for Intel Neural Compressor take part in runs.

The numbers of zeros were measured with that package, at the last version with its pruner, with these classes.
"""

from typing import Any

import pytest
import torch

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.criteria import (
    PruningCriterion,
    SnipMomentumCriterion,
    get_criterion,
    register_criterion,
)
from secateur.compat.neural_compressor.compression.pruner.regs import (
    BaseReg,
    GroupLasso,
    get_reg,
    get_reg_type,
    register_reg,
)
from secateur.compat.neural_compressor.compression.pruner.schedulers import (
    SCHEDULERS,
    PruningScheduler,
    get_scheduler,
    register_scheduler,
)
from secateur.errors import ConfigError, ScoreError, UnknownNameError, UnsupportedModelError
from tiny_models import mlp
from training.models import backward

STEPS = 13

SETTINGS: dict[str, Any] = {
    "target_sparsity": 0.75,
    "start_step": 1,
    "end_step": 10,
    "pruning_frequency": 3,
    "sparsity_decay_type": "linear",
}


class Criterion(PruningCriterion):
    def __init__(self, modules: Any, config: Any, pattern: Any) -> None:
        super().__init__(modules, config, pattern)
        self.calls = ""

    def set_score(self, name: str, score: Any) -> None:
        reduces = hasattr(self.pattern, "reduce_score")
        self.scores[name] = self.pattern.reduce_score(score, name) if reduces else score


class SmoothedFisher(Criterion):
    """Keeps a running mean of its own, so it must see every step."""

    def __init__(self, modules: Any, config: Any, pattern: Any) -> None:
        super().__init__(modules, config, pattern)
        self.means = {name: torch.zeros_like(module.weight) for name, module in modules.items()}

    def on_before_optimizer_step(self) -> None:
        self.calls += "b"
        for name, module in self.modules.items():
            self.means[name] = 0.5 * self.means[name] + (module.weight * module.weight.grad).detach() ** 2
            self.set_score(name, self.means[name])


class ShareOfRow(Criterion):
    def on_step_begin(self) -> None:
        self.calls += "s"
        for name, module in self.modules.items():
            weight = module.weight.detach().abs()
            self.set_score(name, weight / weight.norm(dim=1, keepdim=True).add(1e-9))


class Subtract(BaseReg):
    def __init__(self, config: Any, modules: Any, pattern: Any, coeff: float) -> None:
        super().__init__(config, modules, pattern)
        self.coeff = coeff
        self.calls = ""

    def on_before_optimizer_step(self) -> None:
        self.calls += "b"

    def on_after_optimizer_step(self) -> None:
        self.calls += "a"
        with torch.no_grad():
            for module in self.modules.values():
                module.weight -= self.coeff * module.weight.sign()


class TwoThirds(PruningScheduler):
    """Starts at once, and ends below the target."""

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any,
        init_ratio: float = 0.0,  # noqa: ARG002 - part of the interface
    ) -> float:
        assert set(masks) == {"0", "2"}
        return target_ratio * (current_prune_step + 1) / (2 * total_prune_steps)


def run(**settings: Any) -> tuple[list[tuple[int, int]], Any, float]:
    """Return the zeros of both layers before each step, the pruner, and the sum of the first weight."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callbacks = prepare_compression(model, WeightPruningConfig([{}], **{**SETTINGS, **settings})).callbacks
    callbacks.on_train_begin()
    found = []
    for step in range(STEPS):
        callbacks.on_step_begin(step)
        found.append(tuple(int((model[index].weight == 0).sum()) for index in (0, 2)))
        backward(model, step)
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
        callbacks.on_step_end()
    callbacks.on_train_end()
    return found[1::3], callbacks.callbacks_list[0].pruners[0], float(model[0].weight.detach().abs().sum())


REG = {"reg_type": "subtract", "parameters": {"reg_coeff": 0.001}}

CASES: dict[str, tuple[dict[str, Any], list[tuple[int, int]], float]] = {
    "fisher": ({"pruning_type": "fisher"}, [(0, 0), (104, 152), (244, 268), (384, 384)], 19.0657),
    "fisher of channels": (
        {"pruning_type": "fisher", "pattern": "1xchannel"},
        [(0, 0), (160, 64), (272, 224), (384, 384)],
        17.6510,
    ),
    "share": ({"pruning_type": "share"}, [(0, 0), (40, 216), (176, 336), (332, 436)], 29.4982),
    "share, local": (
        {"pruning_type": "share", "pruning_scope": "local"},
        [(0, 0), (128, 128), (256, 256), (384, 384)],
        22.1003,
    ),
    "share of weights": (
        {"pruning_type": "share", "pattern": "1x1"},
        [(0, 0), (97, 159), (204, 308), (331, 437)],
        36.8759,
    ),
    "basic": (
        {"pruning_type": "basic", "criterion_type": "share"},
        [(0, 0), (40, 216), (176, 336), (332, 436)],
        29.4982,
    ),
    "regularizer": (
        {"pruning_type": "magnitude", **REG},
        [(0, 0), (36, 220), (132, 380), (280, 488)],
        34.5781,
    ),
    "both": ({"pruning_type": "fisher", **REG}, [(0, 0), (104, 152), (244, 268), (372, 396)], 19.7988),
}
"""Settings, zeros of both layers after each update, and the sum of the absolute values of the first weight."""


@pytest.fixture(autouse=True)
def _register() -> None:
    register_criterion("fisher")(SmoothedFisher)
    register_criterion("share")(ShareOfRow)
    register_reg("subtract")(Subtract)


@pytest.mark.parametrize("name", CASES)
def test_zeros_are_those_of_neural_compressor(name: str) -> None:
    settings, zeros, total = CASES[name]
    found, _, weight = run(**settings)
    assert found == zeros
    assert weight == pytest.approx(total, abs=2e-4)


@pytest.mark.parametrize(
    ("pruning_type", "zeros", "total"),
    [
        ("magnitude", [(28, 100), (36, 220), (92, 292), (128, 384)], 54.3666),
        ("snip_momentum", [(12, 116), (84, 172), (148, 236), (212, 300)], 43.5726),
    ],
)
def test_scheduler(pruning_type: str, zeros: list[tuple[int, int]], total: float) -> None:
    register_scheduler("iterative")(TwoThirds)
    found, _, weight = run(pruning_type=pruning_type)
    assert found == zeros
    assert weight == pytest.approx(total, abs=2e-4)


def test_hooks_are_called_at_every_step() -> None:
    _, pruner, _ = run(pruning_type="fisher", **REG)
    assert isinstance(pruner.criterion, SmoothedFisher)
    assert pruner.criterion.calls == STEPS * "b"
    # The regularizer changes weights in the steps with the indices start_step to end_step.
    assert pruner.reg.calls == "b" + 10 * "ba" + 2 * "b"
    assert pruner.config.criterion_type == "fisher"
    _, pruner, _ = run(pruning_type="share")
    assert pruner.criterion.calls == "ssss"  # at the updates


def test_with_an_optimizer_as_with_callbacks() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruning = prepare_pruning(model, WeightPruningConfig([{"pruning_type": "fisher", **REG}], **SETTINGS), optimizer)
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    report = pruning.on_train_end()
    _, zeros, total = CASES["both"]
    assert tuple(layer.pruned_weights for layer in report.layers) == zeros[-1]
    assert float(model[0].weight.detach().abs().sum()) == pytest.approx(total, abs=2e-4)


def test_a_progressive_run_ranks_by_the_criterion() -> None:
    _, pruner, _ = run(pruning_type="fisher_progressive")
    assert pruner.current_sparsity_ratio == 0.75
    assert pruner.criterion.calls == STEPS * "b"


def test_objects_are_replaced_before_the_run() -> None:
    class Reversed(ShareOfRow):
        def on_step_begin(self) -> None:
            super().on_step_begin()
            self.scores = {name: -score for name, score in self.scores.items()}

    def zeros(*replaced: str) -> tuple[int, ...]:
        model = mlp()
        config = WeightPruningConfig(
            **{**SETTINGS, "end_step": 1, "pruning_type": "magnitude", "pruning_scope": "local"}
        )
        callbacks = prepare_compression(model, config).callbacks
        pruner = callbacks.callbacks_list[0].pruners[0]
        if "criterion" in replaced:
            pruner.criterion = Reversed(pruner.modules, pruner.config, pruner.pattern)
        if "reg" in replaced:
            pruner.reg = Subtract(pruner.config, pruner.modules, pruner.pattern, 10.0)
        if "scheduler" in replaced:
            pruner.scheduler = TwoThirds(pruner.config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for step in range(2):
            backward(model, step)
            callbacks.on_before_optimizer_step()
            optimizer.step()
            callbacks.on_after_optimizer_step()
        callbacks.on_train_end()
        kept = model[0].weight[model[0].weight != 0].abs()
        return int((model[0].weight == 0).sum()), round(float(kept.detach().mean()), 2)

    size = 16 * 32
    plain, reversed_ = zeros(), zeros("criterion")
    assert plain[0] == reversed_[0] == 0.75 * size
    assert reversed_[1] < plain[1]
    assert zeros("reg")[1] > 9
    assert zeros("scheduler")[0] == 0.75 * size  # (1 + 1) / (2 · 1) of the target


def test_updates_are_left_out_while_there_are_no_scores(caplog: pytest.LogCaptureFixture) -> None:
    found, _, _ = run(pruning_type="fisher", start_step=0, end_step=9, target_sparsity=0.75)
    assert caplog.text.count("SmoothedFisher has no scores after 0 steps, so this update is skipped") == 1
    assert found[0] == (0, 0)
    assert sum(found[-1]) == 0.75 * 1024
    found, _, _ = run(pruning_type="fisher_progressive", start_step=0, end_step=8, target_sparsity=0.75)
    assert found[0] == (0, 0)
    assert sum(found[-1]) > 0.5 * 1024


def test_one_update_waits_for_the_first_gradient() -> None:
    found, _, _ = run(pruning_type="fisher", start_step=0, end_step=0)
    assert sum(found[0]) == 0.75 * 1024


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda _: None, "layer '0': there are no scores to rank by"),
        (lambda weight: weight[:3], r"layer '0': scores must have the shape of the weight, \(32, 16\), or one score "),
        (lambda weight: weight * float("nan"), "'0'.*nan"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_wrong_scores_are_refused(score: Any, message: str) -> None:
    @register_criterion("wrong")
    class Wrong(PruningCriterion):
        def on_step_begin(self) -> None:
            scores = {name: module.weight.detach() for name, module in self.modules.items()}
            self.scores = {**scores, "0": score(scores["0"])}
            self.scores = {name: scores for name, scores in self.scores.items() if scores is not None}

    with pytest.raises(ScoreError, match=message):
        run(pruning_type="wrong")


def test_a_sparsity_out_of_bounds_is_refused() -> None:
    @register_scheduler("iterative")
    class Above(PruningScheduler):
        def update_sparsity_ratio(self, *_: Any) -> float:
            return 1.5

    with pytest.raises(ConfigError, match=r"must return a sparsity in \[0, 1\].*returned 1.5"):
        run(pruning_type="magnitude")


def test_unknown_names_list_what_is_registered() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown pruning_type 'fihser'. Did you mean 'fisher'"):
        run(pruning_type="fihser")
    (element,) = WeightPruningConfig([{"criterion_type": "no"}]).complete_elements()
    element["reg_type"] = "none"
    with pytest.raises(UnknownNameError, match=r"Unknown criterion_type 'no'.*magnitude.*fisher"):
        get_criterion(element, {}, None)
    with pytest.raises(UnknownNameError, match=r"Unknown reg_type 'none'.*group_lasso.*subtract"):
        get_reg(element, {}, None)
    element["sparsity_decay_type"] = "expo"
    with pytest.raises(UnknownNameError, match="Unknown sparsity_decay_type 'expo'"):
        get_scheduler(element | {"end_step": 9}).update_sparsity_ratio(0.5, 1, 2)


def test_the_criterion_runs_under_its_interface_only() -> None:
    run(pruning_type="share")
    with pytest.raises(ConfigError, match=r"runs only through secateur.compat.neural_compressor"):
        secateur.prune(mlp(), {"criterion": "neural_compressor.share"})


def test_registering_in_place_of_a_built_in_name() -> None:
    register_criterion("magnitude")(ShareOfRow)
    found, _, _ = run(pruning_type="magnitude")
    assert found == CASES["share"][1]


@pytest.mark.parametrize("name", ["magnitude", "gradient", "snip", "snip_momentum"])
def test_built_in_criteria_score(name: str) -> None:
    model = mlp()
    (element,) = WeightPruningConfig([{"criterion_type": name}]).complete_elements()
    criterion = get_criterion(element, {"0": model[0]}, None)
    expected = torch.zeros_like(model[0].weight)
    for step in range(2):
        model.zero_grad()
        backward(model, step)
        criterion.on_step_begin()
        criterion.on_before_optimizer_step()
        weight, gradient = model[0].weight.detach(), model[0].weight.grad
        one = {"magnitude": weight, "gradient": gradient}.get(name, weight * gradient).abs()
        expected = 0.9 * expected + one if name == "snip_momentum" else one
    assert torch.allclose(criterion.scores["0"], expected)


def test_a_criterion_derives_from_a_built_in_one() -> None:
    @register_criterion("slow")
    class Slow(SnipMomentumCriterion):
        def __init__(self, modules: Any, config: Any, pattern: Any) -> None:
            super().__init__(modules, config, pattern)
            self.alpha = 0.0

    found, _, _ = run(pruning_type="slow")
    assert found == run(pruning_type="snip")[0]
    assert found != run(pruning_type="snip_momentum")[0]


@pytest.mark.parametrize("name", ["block_mask", "retrain_free"])
def test_criteria_of_units_say_what_to_use(name: str) -> None:
    (element,) = WeightPruningConfig([{"criterion_type": name}]).complete_elements()
    criterion = get_criterion(element, {}, None, masks={})
    with pytest.raises(UnsupportedModelError, match=f"Use prepare_pruning with pruning_type='{name}'"):
        criterion.on_before_optimizer_step({})


def test_criteria_need_gradients() -> None:
    (element,) = WeightPruningConfig([{"criterion_type": "snip"}]).complete_elements()
    criterion = get_criterion(element, {"0": mlp()[0]}, None)
    with pytest.raises(ScoreError, match="layer '0' must have a gradient, found none"):
        criterion.on_before_optimizer_step()


@pytest.mark.parametrize(
    ("decay", "expected"), [("exp", 1 - 0.5**0.5), ("linear", 0.25), ("cube", 0.0625), ("cos", 0.5 - 0.125**0.5)]
)
def test_built_in_schedulers(decay: str, expected: float) -> None:
    (element,) = WeightPruningConfig([{}], end_step=9, sparsity_decay_type=decay).complete_elements()
    assert get_scheduler(element).update_sparsity_ratio(0.5, 2, 4, {}) == pytest.approx(expected)
    assert SCHEDULERS["oneshot"](element).update_sparsity_ratio(0.5, 0, 4) == 0.5
    assert get_scheduler(element | {"start_step": 9}).update_sparsity_ratio(0.5, 0, 4) == 0.5


def test_group_lasso_on_its_own() -> None:
    model = mlp()
    (element,) = WeightPruningConfig([{"reg_type": "group_lasso", "reg_coeff": 0.05}]).complete_elements()
    before = model[0].weight.detach().clone()
    reg = get_reg(element, {"0": model[0]}, None)
    reg.on_before_optimizer_step()
    reg.on_after_optimizer_step()
    blocks = before.reshape(8, 4, 16)
    factors = (1 - 0.05 * 2 / blocks.norm(dim=1, keepdim=True)).clamp(min=0)  # a unit has 4 weights, and √4 = 2
    assert torch.allclose(model[0].weight.detach(), (blocks * factors).reshape(32, 16), atol=1e-6)
    with pytest.raises(ConfigError, match="reg_coeff must be at least 0"):
        GroupLasso(element, {}, None, -1)
    with pytest.raises(ConfigError, match="needs a pattern of blocks"):
        GroupLasso(element | {"pattern": "2:4"}, {}, None, 1)
    assert get_reg_type({"group_lasso": 0.1}) == "group_lasso"
    assert get_reg_type({}) is None

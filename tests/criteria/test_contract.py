"""What holds for every registered criterion, and what each of them computes."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import secateur
from secateur.config import PruningConfig
from secateur.criteria import CRITERIA, BaseCriterion, get_criterion, register_criterion
from secateur.errors import ConfigError, UnknownNameError
from secateur.masking.scores import AccumulatedScores
from secateur.patterns import get_pattern
from training.models import CONFIG, begin, pruned_units

Floats = npt.NDArray[np.floating[Any]]

DTYPES = {"float32": (torch.float32, np.float32), "float64": (torch.float64, np.float64)}


def criterion(name: str, layer: str = "fc", **config: Any) -> BaseCriterion:
    return get_criterion(PruningConfig(criterion=name, **config), layer)


def draws(seed: int, dtype: Any = np.float32) -> Floats:
    return np.random.default_rng(seed).standard_normal((8, 3, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CRITERIA)
def test_frameworks_agree_to_the_bit(name: str, dtype: str) -> None:
    weight, gradient = draws(0, DTYPES[dtype][1]), draws(1, DTYPES[dtype][1])
    expected = criterion(name).score(weight, gradient)
    found = criterion(name).score(torch.from_numpy(weight), torch.from_numpy(gradient))
    assert found.shape == weight.shape
    assert found.numpy().dtype == expected.dtype
    assert found.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_dtype_is_kept(name: str, dtype: str) -> None:
    weight = torch.from_numpy(draws(0, DTYPES[dtype][1]))
    assert criterion(name).score(weight, weight).dtype == DTYPES[dtype][0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CRITERIA)
def test_gpu_agrees_to_the_bit(name: str) -> None:
    weight, gradient = torch.from_numpy(draws(0)), torch.from_numpy(draws(1))
    found = criterion(name).score(weight.cuda(), gradient.cuda())
    assert found.is_cuda
    assert torch.equal(found.cpu(), criterion(name).score(weight, gradient))


@pytest.mark.parametrize("name", CRITERIA)
def test_inputs_stay_and_scores_repeat(name: str) -> None:
    weight, gradient = draws(0), draws(1)
    first = criterion(name).score(weight, gradient)
    assert (first == criterion(name).score(weight, gradient)).all()
    assert (weight == draws(0)).all()
    assert (gradient == draws(1)).all()


@pytest.mark.parametrize("name", [name for name in CRITERIA if not CRITERIA[name].needs_gradient])
def test_no_gradient_is_needed(name: str) -> None:
    assert np.isfinite(criterion(name).score(draws(0), None)).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_traits_are_declared(name: str) -> None:
    kind = CRITERIA[name]
    assert isinstance(kind.needs_gradient, bool)
    assert 0.0 <= kind.decay <= 1.0
    assert kind.__doc__


# The formulas, gathered over steps, once more in plain NumPy: (w, g) of each step → one score per unit of 4x1.


def by_unit(values: Floats) -> Floats:
    return values.reshape(2, 4, 6).sum(axis=1).reshape(-1)


FORMULAS: dict[str, Callable[[list[tuple[Floats, Floats]]], Floats]] = {
    "magnitude": lambda steps: by_unit(abs(steps[-1][0])) / 4,
    "gradient": lambda steps: by_unit(abs(steps[-1][1])) / 4,
    "snip": lambda steps: by_unit(abs(steps[-1][0] * steps[-1][1])) / 4,
    "snip_momentum": lambda steps: sum(
        0.9**age * by_unit(abs(weight * gradient)) / 4 for age, (weight, gradient) in enumerate(reversed(steps))
    ),
    "movement": lambda steps: -sum(by_unit(weight * gradient) / 4 for weight, gradient in steps),
    "taylor": lambda steps: sum(
        0.9**age * by_unit(weight * gradient) ** 2 for age, (weight, gradient) in enumerate(reversed(steps))
    ),
    "mask_fisher": lambda steps: sum(by_unit(weight * gradient) ** 2 for weight, gradient in steps),
    "mask_gradient": lambda steps: sum(
        0.9**age * abs(by_unit(weight * gradient)) for age, (weight, gradient) in enumerate(reversed(steps))
    ),
}


def gathered(steps: list[tuple[Floats, Floats]], **config: Any) -> Floats:
    layer = nn.Linear(6, 8)
    pattern = get_pattern({"pattern": "4x1", "target_sparsity": 0.5, **config}, {"fc": layer})
    scores = AccumulatedScores(pattern, lambda name: pattern.views[name].to_canonical(layer.weight.detach()))
    for weight, gradient in steps:
        layer.weight.data.copy_(torch.from_numpy(weight))
        if scores.needs_gradient:
            scores.add("fc", {"fc": torch.from_numpy(gradient).reshape(8, 1, 6)})
    return np.concatenate([np.asarray(chunk) for chunk in scores.stream("fc", None).chunks()])


def steps_of(count: int) -> list[tuple[Floats, Floats]]:
    rng = np.random.default_rng(count)
    return [tuple(rng.standard_normal((2, 8, 6)).astype(np.float32)) for _ in range(count)]


def test_every_criterion_has_its_formula() -> None:
    assert {*FORMULAS, "random"} == set(CRITERIA)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, count: int) -> None:
    np.testing.assert_allclose(
        gathered(steps_of(count), criterion=name), FORMULAS[name](steps_of(count)), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("reduce_type", ["sum", "max", "l2"])
def test_reduction_of_what_was_gathered(reduce_type: str) -> None:
    steps = steps_of(5)
    total = sum(0.9**age * abs(weight * gradient) for age, (weight, gradient) in enumerate(reversed(steps)))
    units = total.reshape(2, 4, 6)
    expected = {"sum": units.sum(1), "max": units.max(1), "l2": (units**2).sum(1)}[reduce_type]
    found = gathered(steps, criterion="snip_momentum", criterion_reduce_type=reduce_type)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=2e-5)


def test_what_was_gathered_comes_in_whole_groups(limit_chunks: Callable[[int], None]) -> None:
    limit_chunks(4)
    pattern = get_pattern({"pattern": "1:3", "target_sparsity": 0.6}, {"fc": nn.Linear(6, 8)})
    scores = AccumulatedScores(pattern, lambda _: torch.ones(8, 1, 6))
    scores.totals = {"fc": torch.arange(48.0)}
    assert [chunk.tolist() for chunk in scores.stream("fc", None).chunks()][1] == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("name", ["taylor", "mask_gradient", "mask_fisher"])
@pytest.mark.parametrize("reduce_type", ["mean", "sum", "max", "l2"])
def test_taylor_sums_over_the_unit_whatever_the_config_says(reduce_type: str, name: str) -> None:
    found = gathered(steps_of(3), criterion=name, criterion_reduce_type=reduce_type)
    np.testing.assert_allclose(found, FORMULAS[name](steps_of(3)), rtol=2e-5, atol=1e-6)


def test_mask_gradient_accumulates_absolute_sums() -> None:
    layer = nn.Linear(2, 2)
    pattern = get_pattern({"pattern": "1xchannel", "criterion": "mask_gradient"}, {"fc": layer})
    scores = AccumulatedScores(pattern, lambda _: torch.tensor([[[1.0, 2.0]], [[3.0, -4.0]]]))
    scores.add("fc", {"fc": torch.tensor([[[1.0, 1.0]], [[1.0, 2.0]]])})  # 1 + 2 = 3; 3 - 8 = -5
    scores.add("fc", {"fc": torch.tensor([[[-4.0, 1.0]], [[4.0, 3.0]]])})  # -4 + 2 = -2; 12 - 12 = 0
    assert scores.totals["fc"].tolist() == pytest.approx([0.9 * 3 + 2, 0.9 * 5 + 0])


def test_mask_gradient_is_the_gradient_of_a_mask() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(6, 8), torch.randn(5, 6)
    mask = torch.ones(8, 1, requires_grad=True)
    nn.functional.linear(inputs, layer.weight * mask, layer.bias).pow(2).sum().backward()
    product = criterion("mask_gradient").score(layer.weight.detach(), layer.weight.grad)
    found = criterion("mask_gradient").unit_score(product.sum(1))
    np.testing.assert_allclose(found, abs(mask.grad.reshape(-1)), rtol=1e-4)


def test_scores_in_bfloat16_are_rounded_scores() -> None:
    found = gathered(steps_of(3), criterion="snip_momentum", score_dtype="bfloat16")
    np.testing.assert_allclose(found, FORMULAS["snip_momentum"](steps_of(3)), rtol=3 * 2**-8)


def test_random_is_set_by_seed_and_layer() -> None:
    def scores(layer: str, seed: int) -> bytes:
        return criterion("random", layer, seed=seed).score(draws(0), None).tobytes()

    assert scores("a", 1) == scores("a", 1)
    assert len({scores(layer, seed) for layer in ("a", "b") for seed in (0, 1)}) == 4


def test_elementwise_scores_do_not_depend_on_the_shape() -> None:
    weight, gradient = draws(0), draws(1)
    marked = [name for name in CRITERIA if criterion(name).is_elementwise]
    assert set(marked) == set(CRITERIA) - {"random"}
    for name in marked:
        turned = criterion(name).score(weight.T, gradient.T)
        np.testing.assert_array_equal(turned.T, criterion(name).score(weight, gradient))


def test_what_overrides_an_elementwise_score_is_not_taken_for_one() -> None:
    class ByRow(secateur.criteria.MagnitudeCriterion):
        def score(self, weight: Any, gradient: Any) -> Any:
            return weight * gradient / weight.sum(-1, keepdims=True)

    assert not ByRow(PruningConfig(), "fc").is_elementwise


def test_random_is_uniform() -> None:
    found = criterion("random").score(np.zeros((100, 1, 100)), None)
    assert found.min() >= 0
    assert found.max() < 1
    np.testing.assert_allclose(np.histogram(found, 10)[0], 1000, atol=120)


@pytest.mark.parametrize("module", [secateur.criteria, secateur.criteria.magnitude])
def test_the_old_name_of_the_magnitude_criterion_still_works(module: ModuleType) -> None:
    with pytest.deprecated_call(match=r"Magnitude is deprecated\. Use secateur\.criteria\.MagnitudeCriterion\."):
        assert module.Magnitude is secateur.criteria.MagnitudeCriterion


# The registry.


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown criterion 'magnitud'\. Did you mean 'magnitude'\? Known: .*snip"
    ):
        criterion("magnitud")


def test_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="criterion name 'snip' is taken"):
        register_criterion("snip")(CRITERIA["magnitude"])


class LargestFirst(BaseCriterion):
    """Somebody's own: prunes the largest weights."""

    needs_gradient: ClassVar[bool] = False

    def score(self, weight: Any, gradient: Any) -> Any:  # noqa: ARG002
        return -abs(weight)


class Running(LargestFirst):
    """Somebody's own: the size of the weights, summed over the steps."""

    decay: ClassVar[float] = 1.0

    def score(self, weight: Any, gradient: Any) -> Any:  # noqa: ARG002
        return abs(weight)


class BareGradient(BaseCriterion):
    """Somebody's own: hands out the very array it was given."""

    needs_gradient: ClassVar[bool] = True
    decay: ClassVar[float] = 0.5

    def score(self, weight: Any, gradient: Any) -> Any:  # noqa: ARG002
        return gradient


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Criteria of a user, registered for one test."""
    for kind in (LargestFirst, Running, BareGradient):
        monkeypatch.setitem(CRITERIA, kind.__name__, kind)


@pytest.mark.usefixtures("own")
def test_own_criterion_in_a_run() -> None:
    trial = begin({**CONFIG, "criterion": "LargestFirst", "end_step": 1}, optimizer="sgd")
    weights = {name: trial.model.get_submodule(name).weight.detach().clone() for name in trial.pruner.masks}
    trial.optimizer.step()
    sizes = torch.cat([weight.abs().reshape(-1, 4, weight.shape[1]).mean(1).reshape(-1) for weight in weights.values()])
    kept = torch.cat([mask[::4].reshape(-1) for mask in trial.pruner.masks.values()])
    assert pruned_units(trial.pruner) == 192
    assert sizes[kept].max() < sizes[~kept].min()


@pytest.mark.usefixtures("own")
def test_weights_can_be_gathered_without_gradients() -> None:
    model = nn.Linear(1, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"pattern": "1x1", "target_sparsity": 0.25, "criterion": "Running", "start_step": 3}
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    for sizes in ([9.0, 1, 1, 1], [1.0, 1, 2, 1], [1.0, 3, 3, 5]):
        model.weight.data.copy_(torch.tensor(sizes)[:, None])
        optimizer.step()
    assert pruner.masks[""].flatten().tolist() == [True, False, True, True]


@pytest.mark.parametrize(("sees_every_step", "calls"), [(False, [1, 3, 5, 7, 9]), (True, list(range(1, 10)))])
def test_a_criterion_can_see_every_step(
    monkeypatch: pytest.MonkeyPatch,
    sees_every_step: bool,
    calls: list[int],
) -> None:
    seen: list[int] = []
    step = 0

    class Seen(LargestFirst):
        needs_gradient: ClassVar[bool] = True

        def score(self, weight: Any, gradient: Any) -> Any:
            if self.layer == "0":
                seen.append(step)
            return super().score(weight, gradient)

    Seen.sees_every_step = sees_every_step
    monkeypatch.setitem(CRITERIA, "seen", Seen)
    trial = begin({**CONFIG, "criterion": "seen"})
    for step in range(1, 12):
        trial.train([step])
    assert seen == calls
    assert trial.pruner.finalize().sparsity == 0.75


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("reduce_type", ["mean", "l2"])
def test_gathered_scores_do_not_share_memory_with_gradients(reduce_type: str) -> None:
    config = {**CONFIG, "pattern": "1x1", "criterion": "BareGradient", "criterion_reduce_type": reduce_type}
    trial = begin({**config, "start_step": 3}).train([0])
    saved = trial.pruner.state_dict()["runs"][0]["scores"]["0"]
    before = saved.clone()
    trial.model.zero_grad(set_to_none=False)
    assert torch.equal(saved, before)

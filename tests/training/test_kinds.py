"""What each kind of run does when."""

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError, LayerError, ScoreError
from tiny_models import bits, mlp
from training.models import CONFIG, PROGRESSIVE, NeverRevived, begin, equal_states, pruned_units, revived

SPARSE_WARNING = "of the weights to be pruned are already zero and may become nonzero"


def sparse_mlp(seed: int = 0, share: float = 0.5) -> nn.Sequential:
    """A model in which single weights are zero, those of the first layer only."""
    model = mlp(seed)
    weight = model[0].weight.data
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(7)) < share] = 0
    return model


def zeros(mask: torch.Tensor) -> int:
    return int((~mask).sum())


def is_structured(mask: torch.Tensor) -> bool:
    """Whether a mask is made of whole units of 4x1."""
    return torch.equal(mask, mask[::4].repeat_interleave(4, 0))


# At once.


@pytest.mark.parametrize("config", [{"end_step": None}, {"end_step": 30, "sparsity_decay_type": "one_shot"}])
@pytest.mark.parametrize("start", [1, 4])
def test_at_once(start: int, config: dict[str, Any]) -> None:
    trial = begin({**CONFIG, "start_step": start, **config})
    found: list[int] = []
    trial.train(range(6), lambda step: found.append(pruned_units(trial.pruner)))  # noqa: ARG005
    assert found == [0] * (start - 1) + [192] * (7 - start)
    assert trial.pruner.finalize().is_complete


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_before_the_first_step(criterion: str) -> None:
    trial = begin({**CONFIG, "start_step": 0, "end_step": None, "criterion": criterion})
    assert pruned_units(trial.pruner) == 192
    assert revived(trial.pruner) == []
    assert trial.train(range(3), NeverRevived(trial.pruner)).pruner.finalize().step == 3


def test_magnitude_keeps_the_largest_units() -> None:
    weights = [mlp()[index].weight.detach().abs() for index in (0, 2)]
    norms = torch.cat([weight.reshape(-1, 4, weight.shape[1]).mean(1).flatten() for weight in weights])
    masks = begin({**CONFIG, "start_step": 0, "end_step": None, "criterion": "magnitude"}).pruner.masks
    kept = torch.cat([mask[::4].flatten() for mask in masks.values()])
    assert norms[kept].min() > norms[~kept].max()


# Progressive.


@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_progressive(parts: int, pattern: str) -> None:
    config = {"pattern": pattern, "kind": "progressive", "end_step": 13, "pruning_frequency": 4, "target_sparsity": 0.5}
    trial = begin({**config, "criterion": "snip_momentum", "progressive_steps": parts})
    masks = {0: trial.pruner.masks}
    trial.train(range(15), lambda step: masks.update({step: trial.pruner.masks}))
    assert trial.pruner.finalize().sparsity == 0.5
    found = {step: sum(zeros(mask) for mask in masks[step].values()) for step in (1, 5, 9, 13, 15)}
    assert found == {1: 0, 5: 360, 9: 492 if pattern == "4x1" else 494, 13: 512, 15: 512}
    for now, then in ((1, 5), (5, 9), (9, 13)):
        for name in ("0", "2"):
            first, last = zeros(masks[now][name]), zeros(masks[then][name])
            counts = [zeros(masks[step][name]) for step in range(now, then + 1)]
            assert counts == sorted(counts)
            assert set(counts) <= {first + part * (last - first) // parts for part in range(parts + 1)}
            assert len(set(counts)) == parts + 1
            assert all((masks[then][name] <= masks[step][name]).all() for step in range(now, then)), "uncondemned"
    if pattern == "4x1":
        assert all(is_structured(mask) for step in found for mask in masks[step].values())


def test_progressive_masks_tear_units_on_the_way() -> None:
    masks = begin({**CONFIG, "kind": "progressive", "pruning_frequency": 4}).train(range(3)).pruner.masks
    assert not any(is_structured(mask) for mask in masks.values())


@pytest.mark.parametrize("strength", [0.03, 0.2, 0.5])
def test_faded_weights_stay_pruned_where_others_become_zero(strength: float) -> None:
    config = {**CONFIG, "kind": "progressive", "pruning_frequency": 8, "progressive_steps": 8}
    trial = begin({**config, "reg_type": "group_lasso", "reg_coeff": strength}, optimizer="sgd")
    trial.train(range(9), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().is_complete


# Locked.


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_lock_keeps_the_zeros_that_are_there(pattern: str) -> None:
    model = sparse_mlp()
    before = {name: model.get_submodule(name).weight != 0 for name in ("0", "2", "4")}
    trial = begin({"pattern": pattern, "kind": "pattern_lock"}, model=model, optimizer="sgd")
    trial.train(range(5), NeverRevived(trial.pruner))
    assert all(torch.equal(mask, before[name]) for name, mask in trial.pruner.masks.items())
    report = trial.pruner.finalize()
    assert report.is_complete
    assert report.layers[0].pruned_weights == int((~before["0"]).sum())
    assert report.layers[1].pruned_weights == 0


def test_lock_holds_the_zeros_of_layers_that_the_pattern_does_not_fit_and_of_the_output_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))
    for layer in (model[0], model[2]):
        layer.weight.data[:, ::2] = 0
    config = {"kind": "pattern_lock", "target_sparsity": 0.4, "min_sparsity_ratio_per_op": 0.35}
    trial = begin({**config, "max_sparsity_ratio_per_op": 0.45}, model=model, optimizer="sgd")
    trial.train(range(3), NeverRevived(trial.pruner))
    assert [layer.sparsity for layer in trial.pruner.finalize().layers] == [0.5, 0.5]


def test_lock_leaves_out_what_the_user_left_out() -> None:
    for config in ({"excluded_op_names": ["4"]}, {"layers": {"4": None}}, {"op_names": ["0", "2"]}):
        assert list(begin({"kind": "pattern_lock", **config}).pruner.masks) == ["0", "2"]
    assert list(begin({**CONFIG, "layers": {"4": {"kind": "pattern_lock"}}}).pruner.masks) == ["0", "2", "4"]


def test_lock_of_a_model_that_is_sparser_than_the_default_target() -> None:
    trial = begin({"kind": "pattern_lock"}, model=sparse_mlp(share=0.99))
    assert trial.train(range(2)).pruner.finalize().layers[0].sparsity > 0.95


# Going on with a sparse model.


def finished(config: dict[str, Any]) -> nn.Sequential:
    return begin(config).train(range(10)).model


@pytest.mark.parametrize("target", [0.3, 0.75, 0.9])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_kept_zeros_may_already_be_the_target(scope: str, target: float) -> None:
    config = {**CONFIG, "target_sparsity": target, "pruning_scope": scope}
    trial = begin({**config, "keep_zeros": True}, model=finished(config))
    before = trial.pruner.masks
    count = pruned_units(trial.pruner)
    trial.train(range(10), NeverRevived(trial.pruner))
    assert pruned_units(trial.pruner) == count
    assert all(torch.equal(mask, before[name]) for name, mask in trial.pruner.masks.items())


def test_kept_zeros_are_where_the_schedule_starts(caplog: pytest.LogCaptureFixture) -> None:
    model = finished({**CONFIG, "target_sparsity": 0.5})
    before = model[0].weight == 0
    config = {**CONFIG, "keep_zeros": True, "sparsity_decay_type": "linear"}
    trial = begin(config, model=model)
    found = [pruned_units(trial.pruner)]
    trial.train(range(9), lambda step: found.append(pruned_units(trial.pruner)))  # noqa: ARG005
    assert found == [128, 128, 128, 144, 144, 160, 160, 176, 176, 192]
    assert not trial.pruner.masks["0"][before].any()
    assert SPARSE_WARNING not in caplog.text


def test_kept_zeros_of_a_groups_pattern() -> None:
    config = {**CONFIG, "pattern": "2:4", "target_sparsity": 0.25}
    trial = begin({**config, "target_sparsity": 0.5, "keep_zeros": True}, model=finished(config))
    assert trial.pruner.sparsity == 0.25
    trial.train(range(9), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().sparsity == 0.5


def test_kept_zeros_that_no_groups_pattern_made() -> None:
    config = {**CONFIG, "pattern": "2:4", "target_sparsity": 0.25, "keep_zeros": True}
    trial = begin(config, model=sparse_mlp(share=0.1))
    trial.train(range(10), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().is_complete


def test_kept_zeros_of_a_group_with_one_more_zero() -> None:
    config = {**CONFIG, "pattern": "2:4", "target_sparsity": 0.5, "keep_zeros": True}
    model = finished({**config, "keep_zeros": False})
    model[0].weight.data[0, :4] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    model[0].weight.data[1, :4] = 0
    trial = begin(config, model=model)
    assert trial.pruner.masks["0"][:2, :4].tolist() == [[True, False, False, True], [True, True, False, False]]
    assert trial.pruner.sparsity == 0.5
    trial.train(range(10), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().sparsity == 0.5


EXCESS_WARNING = "75.7812 % of its units zero, slightly more than target_sparsity=0.75"


@pytest.mark.parametrize("base", [CONFIG, PROGRESSIVE])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_kept_zeros_slightly_beyond_the_target(
    scope: str, base: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = {**base, "pruning_scope": scope}
    model = finished(config)
    alive = model[0].weight.view(8, 4, 16).abs().sum(1).nonzero()[:2]
    for row, column in alive:
        model[0].weight.data[4 * row : 4 * row + 4, column] = 0
    trial = begin({**config, "keep_zeros": True}, model=model)
    assert pruned_units(trial.pruner) == 194
    trial.train(range(10), NeverRevived(trial.pruner))
    assert trial.pruner.finalize().unit_sparsity == 194 / 256
    assert caplog.text.count(EXCESS_WARNING) == 1


def test_layer_of_zeros_counts_as_dense() -> None:
    model = mlp()
    model[0].weight.data.zero_()
    trial = begin({**CONFIG, "keep_zeros": True}, model=model)
    assert pruned_units(trial.pruner) == 0


def test_kept_zeros_beyond_the_target() -> None:
    model = finished(CONFIG)
    before = bits(model)
    with pytest.raises(ConfigError, match=r"starts with 75.0000% of its units zero, more than target_sparsity=0.5"):
        begin({**CONFIG, "target_sparsity": 0.5, "keep_zeros": True}, model=model)
    assert bits(model) == before


@pytest.mark.parametrize(
    ("model", "config", "warns"),
    [
        (mlp, {}, False),
        (sparse_mlp, {}, True),
        (sparse_mlp, {"keep_zeros": True}, False),
        (sparse_mlp, {"kind": "pattern_lock"}, False),
    ],
)
def test_warning_about_zeros(model: Any, config: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "secateur"):
        begin({**CONFIG, **config}, model=model())
    assert (SPARSE_WARNING in caplog.text) == warns
    assert len(caplog.records) == warns


# Units of different sizes.


def test_report_says_where_units_and_weights_tell_different_shares() -> None:
    report = begin({**CONFIG, "pattern": "1xchannel"}, model=mlp()).train(range(10)).pruner.finalize()
    line = "Units differ in size: the target is a share of units, and 75.00% of them are pruned."
    assert (line in str(report)) == (abs(report.unit_sparsity - report.sparsity) > 0.005)
    assert line in str(replace(report, layers=(replace(report.layers[0], pruned_weights=0), *report.layers[1:])))
    assert "Units differ" not in str(begin(PROGRESSIVE).train(range(2)).pruner.report())


# Bounds and frozen masks.


@pytest.mark.parametrize("base", [CONFIG, PROGRESSIVE])
def test_bounds_hold_at_every_step(base: dict[str, Any]) -> None:
    bounds = {"min_sparsity_ratio_per_op": 0.55, "max_sparsity_ratio_per_op": 0.65}
    model = mlp()
    model[0].weight.data *= 100
    trial = begin({**base, "criterion": "magnitude", "target_sparsity": 0.6, **bounds}, model=model)

    def check(_: int) -> None:
        assert all(layer.pruned_units <= 83 for layer in trial.pruner.report().layers)

    report = trial.train(range(10), check).pruner.finalize()
    assert [layer.pruned_units for layer in report.layers] == [71, 83]
    assert trial.pruner.plan.patterns[0].keep_mask_layers == {"2": "reached max_sparsity_ratio_per_op"}


def test_mask_that_the_user_froze_stays() -> None:
    trial = begin({**CONFIG, "target_sparsity": 0.5}).train(range(3))
    trial.pruner.plan.patterns[0].keep_mask_layers["0"] = "good as it is"
    frozen = trial.pruner.masks["0"]
    trial.train(range(3, 10), NeverRevived(trial.pruner))
    assert torch.equal(trial.pruner.masks["0"], frozen)
    assert pruned_units(trial.pruner) == 128
    assert trial.pruner.finalize().is_complete


def test_frozen_progressive_layer_loses_what_was_condemned_and_no_more() -> None:
    trial = begin({**PROGRESSIVE, "target_sparsity": 0.5}).train(range(3))
    trial.pruner.plan.patterns[0].keep_mask_layers["0"] = "good as it is"
    frozen = trial.train(range(3, 5)).pruner.masks["0"]
    trial.train(range(5, 10), NeverRevived(trial.pruner))
    assert torch.equal(trial.pruner.masks["0"], frozen)
    assert pruned_units(trial.pruner) == 128
    assert trial.pruner.finalize().is_complete


def test_frozen_before_the_first_update_stays_dense() -> None:
    trial = begin({**CONFIG, "target_sparsity": 0.25})
    trial.pruner.plan.patterns[0].keep_mask_layers["2"] = "mine"
    trial.train(range(9))
    assert [layer.pruned_units for layer in trial.pruner.finalize().layers] == [64, 0]


def test_a_layer_without_a_gradient_can_be_left_out() -> None:
    model = mlp()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert list(secateur.prepare(model, CONFIG, optimizer=optimizer).masks) == ["0"]
    with pytest.raises(LayerError, match="'2' was named"):
        secateur.prepare(model, {**CONFIG, "op_names": ["2"]}, optimizer=optimizer)


def test_an_error_while_scheduling_units_leaves_a_progressive_run_as_it_was() -> None:
    trial = begin({**PROGRESSIVE, "criterion": "magnitude"}).train(range(2))
    before = copy.deepcopy(trial.pruner.state_dict())
    assert before["runs"][0]["progress"]["condemned_keep"] is not None
    with torch.no_grad():
        trial.model[2].weight[trial.pruner.masks["2"]] = torch.nan
    trial.model.zero_grad()
    with pytest.raises(ScoreError, match="layer '2'"):
        trial.optimizer.step()
    assert equal_states(trial.pruner.state_dict(), before)

"""Pruners that were written for Intel Neural Compressor, and the attributes of those that Secateur runs.

The numbers of zeros were measured with that package, at the last version with its pruner, with these classes.
"""

from typing import Any

import pytest
import torch

from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.pruners import (
    PRUNERS,
    get_pruner,
    parse_valid_pruner_types,
)
from secateur.compat.neural_compressor.compression.pruner.pruners.base import PytorchBasePruner, register_pruner
from secateur.compat.neural_compressor.compression.pruner.pruners.basic import PytorchBasicPruner
from secateur.errors import StateError, UnknownNameError, UnsupportedModelError
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


class RowsInTurn(PytorchBasePruner):
    """Prunes one more row of each layer at each update, without criterion and scheduler."""

    def _init(self) -> None:
        self.pattern = get_pattern(self.config, self.modules)
        self.calls = ""

    def on_train_begin(self, dataloader: Any = None) -> None:  # noqa: ARG002 - part of the interface
        self.calls += "<"

    def on_train_end(self) -> None:
        self.calls += ">"

    def on_epoch_begin(self, epoch: int) -> None:
        self.calls += f"({epoch}"

    def on_epoch_end(self) -> None:
        self.calls += ")"

    def on_step_end(self) -> None:
        self.calls += "."

    def on_before_optimizer_step(self) -> None:
        self.calls += "b"

    def update_masks(self, local_step: int) -> None:  # noqa: ARG002 - part of the interface
        if self.check_is_pruned_step(self.global_step):
            self.calls += "u"
            for name in self.modules:
                self.masks[name][self.completed_pruned_cnt] = False
            self.completed_pruned_cnt += 1
            self.mask_weights()


class EveryStep(PytorchBasicPruner):
    """Makes its updates in consecutive steps."""

    def check_is_pruned_step(self, step: int) -> bool:
        return self.start_step <= step <= self.end_step and self.completed_pruned_cnt <= self.total_prune_cnt


def run(callbacks: Any, model: Any, steps: int = STEPS) -> tuple[list[tuple[int, int]], float]:
    """Return the zeros of both layers before each step, and the sum of the first weight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    found = []
    for step in range(steps):
        callbacks.on_step_begin(step)
        found.append(tuple(int((model[index].weight == 0).sum()) for index in (0, 2)))
        backward(model, step)
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
        callbacks.on_step_end()
    callbacks.on_epoch_end()
    callbacks.on_train_end()
    return found, float(model[0].weight.detach().abs().sum())


def prepare(**settings: Any) -> tuple[Any, Any, Any]:
    model = mlp()
    manager = prepare_compression(model, WeightPruningConfig([{}], **{**SETTINGS, **settings}))
    return model, manager.callbacks, manager.callbacks.callbacks_list[0].pruners[0]


def compress(**settings: Any) -> tuple[list[tuple[int, int]], Any, float]:
    model, callbacks, pruner = prepare(**settings)
    found, total = run(callbacks, model)
    return found, pruner, total


@pytest.fixture(autouse=True)
def _register() -> None:
    register_pruner("pt_rows")(RowsInTurn)
    register_pruner("pt_every")(EveryStep)


@pytest.mark.parametrize(
    ("settings", "zeros", "total"),
    [
        ({"pruning_type": "rows"}, [(0, 0), (16, 32), (32, 64), (48, 96), (64, 128)], 57.0802),
        (
            {"pruning_type": "every", "criterion_type": "magnitude"},
            [(0, 0), (36, 220), (132, 380), (280, 488)],
            36.8750,
        ),
        ({"pruning_type": "every"}, [(0, 0), (104, 152), (236, 276), (356, 412)], 23.2173),
        (
            {"pruning_type": "every", "criterion_type": "magnitude", "pattern": "1xchannel"},
            [(0, 0), (48, 288), (144, 480), (336, 480)],
            25.7610,
        ),
    ],
    ids=["rows", "magnitude", "snip_momentum", "channels"],
)
def test_zeros_are_those_of_neural_compressor(
    settings: dict[str, Any], zeros: list[tuple[int, int]], total: float
) -> None:
    found, _, weight = compress(**settings)
    assert list(dict.fromkeys(found)) == zeros
    assert weight == pytest.approx(total, abs=2e-4)


def test_methods_are_called() -> None:
    model, callbacks, pruner = prepare(pruning_type="rows")
    assert isinstance(pruner, RowsInTurn)
    run(callbacks, model)
    assert pruner.calls == "<(0b." + "ub.b.b." * 4 + ")>"
    callbacks.on_train_end()
    callbacks.on_epoch_end()
    assert pruner.calls.endswith(")>")


def test_the_report_recognizes_what_was_pruned() -> None:
    model, callbacks, pruner = prepare(pruning_type="rows", end_step=28)
    run(callbacks, model, 31)
    report = callbacks.on_train_end()
    assert [(layer.pattern, layer.units, layer.pruned_units) for layer in report.layers] == [
        ("1xchannel", 32, 10),
        ("1xchannel", 16, 10),
    ]
    assert (report.step, report.last_step) == (31, 28)
    assert report.model_weights == sum(weight.numel() for weight in model.parameters())
    assert not pruner.masks["0"][:10].any()


@pytest.mark.parametrize("pruning_type", ["rows", "every"])
def test_with_an_optimizer_as_with_callbacks(pruning_type: str) -> None:
    expected, _, total = compress(pruning_type=pruning_type)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = prepare_pruning(model, WeightPruningConfig([{"pruning_type": pruning_type}], **SETTINGS), optimizer)
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    report = pruning.on_train_end()
    assert tuple(layer.pruned_weights for layer in report.layers) == expected[-1]
    assert float(model[0].weight.detach().abs().sum()) == pytest.approx(total, abs=2e-4)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_beside_a_pruner_of_secateur() -> None:
    model = mlp()
    elements = [{"op_names": ["^0"], "pruning_type": "rows"}, {"op_names": ["^2"], "pruning_type": "magnitude"}]
    manager = prepare_compression(model, WeightPruningConfig(elements, **SETTINGS))
    found, _ = run(manager.callbacks, model)
    assert found[-1] == (4 * 16, 0.75 * 512)
    assert [layer.name for layer in manager.report.layers] == ["0", "2"]


def test_registering_in_place_of_a_built_in_pruner() -> None:
    register_pruner("pt_basic")(RowsInTurn)
    assert compress(pruning_type="magnitude")[0][-1] == (64, 128)
    assert compress(pruning_type="magnitude_progressive")[0][-1] != (64, 128)


def test_weights_that_come_back_are_refused() -> None:
    @register_pruner("pt_forgetful")
    class Forgetful(RowsInTurn):
        def mask_weights(self) -> None:
            pass

    with pytest.raises(StateError, match="The masks or weights of 2 layers are invalid"):
        compress(pruning_type="forgetful")


def test_registered_pruners() -> None:
    assert parse_valid_pruner_types()[-1] == "pattern_lock"
    assert "snip_momentum_progressive" in parse_valid_pruner_types()
    modules = {"0": mlp()[0]}
    (element,) = WeightPruningConfig([{}]).complete_elements()
    for name in ("block_mask", "retrain_free", "magnitude_progressive", "sparse_gpt"):
        with pytest.raises(UnsupportedModelError, match=f"only exists in a run.*pruning_type='{name}'"):
            get_pruner(element | {"pruning_type": name}, modules)
    with pytest.raises(UnsupportedModelError, match="PythonMultiheadAttentionPruner only exists in a run"):
        get_pruner(element | {"pattern": "mha"}, modules)
    with pytest.raises(UnknownNameError, match=r"Unknown pruning_type 'evry'.*Registered pruners: .*pt_every"):
        get_pruner(element | {"pruning_type": "evry"}, modules)
    with pytest.raises(UnknownNameError, match="Unknown framework 'mxnet'"):
        get_pruner(element, modules, "mxnet")
    assert {"pt_basic", "keras_basic", "pt_progressive", "pt_pattern_lock", "pt_mha"} <= PRUNERS.keys()


def test_a_lock_on_its_own() -> None:
    layer = mlp()[0]
    with torch.no_grad():
        layer.weight[:4] = 0
    (element,) = WeightPruningConfig([{"pruning_type": "pattern_lock"}]).complete_elements()
    pruner = get_pruner(element, {"0": layer})
    pruner.on_step_begin(0)
    with torch.no_grad():
        layer.weight += 1
    pruner.on_after_optimizer_step()
    assert int((layer.weight == 0).sum()) == 4 * 16
    assert pruner.global_step == 1


def test_a_criterion_ranks_what_a_lock_leaves() -> None:
    layer = mlp()[0]
    with torch.no_grad():
        layer.weight[:4] = 0
    settings = {**SETTINGS, "pruning_type": "magnitude", "lock_init_sparsity": True, "start_step": 0}
    (element,) = WeightPruningConfig([{}], **settings).complete_elements()
    pruner = PytorchBasicPruner(element | {"criterion_type": "magnitude"}, {"0": layer})
    pruner.on_step_begin(0)
    assert pruner.init_sparsity_ratio == 0.125
    assert int((layer.weight == 0).sum()) == 4 * 16
    pruner.set_global_step(3)
    pruner.on_step_begin(3)
    pruner.on_step_begin(3)  # has no effect, as the step is the same
    assert pruner.completed_pruned_cnt == 2
    pruner.current_sparsity_ratio = 0.8
    pruner.set_global_step(6)
    pruner.on_step_begin(6)  # nothing more goes once there are more zeros than wanted
    assert pruner.completed_pruned_cnt == 2
    assert int((layer.weight == 0).sum()) < 0.75 * layer.weight.numel()


def test_a_criterion_without_scores_prunes_nothing() -> None:
    layer = mlp()[0]
    (element,) = WeightPruningConfig([{}], **SETTINGS).complete_elements()
    pruner = PytorchBasicPruner(element | {"criterion_type": "snip"}, {"0": layer})
    pruner.set_global_step(1)
    pruner.on_step_begin(1)
    assert bool(pruner.masks["0"].all())


def test_steps_can_be_set_before_the_run() -> None:
    model, callbacks, pruner = prepare(pruning_type="magnitude")
    pruner.start_step, pruner.end_step = 4, 7
    found, _ = run(callbacks, model)
    assert [step for step in range(1, STEPS) if found[step] != found[step - 1]] == [7]
    for name in ("start_step", "end_step", "global_step"):
        with pytest.raises(StateError, match=f"{name} must be set before the run starts"):
            setattr(pruner, name, 3)


@pytest.mark.parametrize("pruning_type", ["magnitude", "snip_momentum", "magnitude_progressive"])
def test_a_run_continues_at_a_step(pruning_type: str) -> None:
    model, callbacks, pruner = prepare(pruning_type=pruning_type)
    pruner.set_global_step(5)
    assert pruner.global_step == 5
    found, _ = run(callbacks, model, 8)
    zeros = [sum(pair) for pair in found]
    assert zeros[:2] == [0, 0]
    if pruning_type != "magnitude_progressive":
        # The updates after 7 and 10 of 13 steps have 2/3 and 3/3 of the target.
        assert zeros[2:] == [512] * 3 + [768] * 3
    assert (pruner.global_step, pruner.current_sparsity_ratio) == (13, 0.75)


def test_a_run_continues_at_an_update() -> None:
    model, callbacks, pruner = prepare(pruning_type="magnitude")
    pruner.global_step = 7
    assert [sum(pair) for pair in run(callbacks, model, 5)[0]] == [512] * 3 + [768] * 2


@pytest.mark.parametrize(("steps", "parts"), [(None, [24, 48, 72, 96]), (2, [48, 48, 96, 96])])
def test_progressive_steps(steps: int | None, parts: list[int]) -> None:
    settings = {"pattern": "channelx1", "target_sparsity": 0.25, "end_step": 9, "pruning_frequency": 4}
    model, callbacks, pruner = prepare(pruning_type="magnitude_progressive", sparsity_decay_type="linear", **settings)
    if steps is not None:
        pruner.progressive_configs["progressive_steps"] = steps
    zeros = [sum(pair) for pair in run(callbacks, model)[0]]
    assert zeros[:5] == [0] * 5
    assert zeros[5:9] == parts  # 6 input channels of 16 weights


def test_attributes_before_and_after_the_run() -> None:
    model, callbacks, pruner = prepare(pruning_type="snip_momentum", reg_type="group_lasso", reg_coeff=0.01)
    assert (pruner.target_sparsity_ratio, pruner.max_sparsity_ratio_per_op) == (0.75, 0.98)
    assert repr(pruner) == "PresentedPruner(snip_momentum, 4x1, ['0', '2'])"
    assert (pruner.pattern.pattern, list(pruner.pattern.views)) == ("4x1", ["0", "2"])
    assert type(pruner.criterion).__name__ == "ModuleSnipMomentum"
    assert type(pruner.reg).__name__ == "GroupLasso"
    assert pruner.scheduler.update_sparsity_ratio(0.75, 1, 3, pruner.masks) == 0.25
    found, _ = run(callbacks, model)
    assert sum(found[-1]) == 768
    assert pruner.pattern.pattern == "4x1"


@pytest.mark.parametrize("pattern", ["4x1", "1xchannel", "1x1", "2:4"])
@pytest.mark.parametrize("pruning_type", ["magnitude", "snip_momentum"])
def test_scores_of_built_in_criteria(pruning_type: str, pattern: str) -> None:
    model, callbacks, pruner = prepare(pruning_type=pruning_type, pattern=pattern, target_sparsity=0.3)
    if pruning_type == "snip_momentum":
        assert pruner.criterion.scores == {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    expected = torch.zeros_like(model[0].weight)
    for step in range(3):
        backward(model, step)
        weight = model[0].weight.detach()
        expected = 0.9 * expected + (weight * model[0].weight.grad).abs()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
    if pruning_type == "magnitude":
        expected = model[0].weight.detach().abs()
    blocks = {"4x1": expected.reshape(8, 4, 16).mean(1), "1xchannel": expected.mean(1, keepdim=True)}
    assert torch.allclose(pruner.criterion.scores["0"], blocks.get(pattern, expected), atol=1e-6)
    assert set(pruner.criterion.scores) == {"0", "2"}

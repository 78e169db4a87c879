"""Gradients of masks of units and of outputs, compared with masks that are really multiplied."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from oneshot.unit_cases import CASES
from secateur.errors import CalibrationError
from secateur.oneshot.magnitude import drop_schedule
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, read_batches
from secateur.oneshot.pytorch.calibration.calibration_loss import compute_loss
from secateur.oneshot.pytorch.units.mask_gradients import measure_gradients
from secateur.oneshot.pytorch.units.unit_groups import Reader, UnitGroup, build_groups
from secateur.oneshot.pytorch.units.unit_problems import LossGradients
from secateur.planning.pytorch import plan

CPU = torch.device("cpu")


def loss_per_row(outputs: Any) -> torch.Tensor:
    outputs = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    return outputs.flatten(1).float().square().mean(dim=1)


def mean_loss(outputs: Any, _: Any) -> torch.Tensor:
    return loss_per_row(outputs).mean()


def measure(model: nn.Module, groups: list[UnitGroup], given: Any, loss: Any) -> LossGradients:
    with calibration_mode(model):
        return measure_gradients(model, groups, (read_batches(model, given), given), loss, CPU)


def find_groups(name: str) -> tuple[nn.Module, list[UnitGroup], Any]:
    case = CASES[name]
    model, given = case.create(), case.batches()
    return model, build_groups(model, plan(model, drop_schedule(case.config), example_inputs=case.graph)), given


def multiply(reader: Reader, mask_U: torch.Tensor) -> Callable[..., Any]:
    """A hook that multiplies the channels of a layer's input by the mask of their unit."""
    channels = reader.unit_of[: reader.pattern.views[reader.name].canonical_shape[2]]

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = args[0]
        flags = torch.where(channels < 0, torch.ones(()), mask_U[channels.clamp(min=0)])
        return (inputs * (flags[:, None, None] if inputs.ndim == 4 else flags), *args[1:]), kwargs

    return hook


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "llama", "bert", "gpt2"])
def test_gradients_are_those_of_a_mask(name: str) -> None:
    model, groups, given = find_groups(name)
    before = {key: (value.requires_grad, value.grad) for key, value in model.named_parameters()}
    found = measure(model, groups, given, mean_loss).units
    assert {key: (value.requires_grad, value.grad) for key, value in model.named_parameters()} == before
    for group in groups:
        mask_U = torch.ones(group.rule.units, requires_grad=True)
        expected = []
        handles = [
            reader.module.register_forward_pre_hook(multiply(reader, mask_U), with_kwargs=True)
            for reader in group.readers
        ]
        for batch in given:
            losses = loss_per_row(model(**batch) if isinstance(batch, dict) else model(batch))
            expected += [torch.autograd.grad(loss, mask_U, retain_graph=True)[0] for loss in losses]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found[group.name], torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_heads_of_torch_attention_by_finite_differences() -> None:
    """Its output projection never runs as a module, so masks are multiplied with its weight."""
    model, groups, given = find_groups("encoder")
    found = measure(model, groups, given, mean_loss)
    step = 1e-2
    for group in groups:
        (reader,) = group.readers
        weight = reader.module.weight
        for unit in range(group.rule.units):
            change = (reader.unit_of == unit).float() * step
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    kept = weight.clone()
                    weight *= 1 + sign * change
                    losses.append(torch.cat([loss_per_row(model(batch)) for batch in given]))
                    weight.copy_(kept)
            expected = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(found.units[group.name][:, unit], expected, rtol=2e-2, atol=2e-4)
        assert found.importance[reader.name].shape == (16,)


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "llama"])
def test_importance_is_the_mean_square_of_gradients_over_tokens(name: str) -> None:
    model, groups, given = find_groups(name)
    found = measure(model, groups, given, mean_loss).importance
    for reader in {reader.name: reader for group in groups for reader in group.readers}.values():
        seen: list[torch.Tensor] = []
        hook = reader.module.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        rows = []
        for batch in given:
            losses = loss_per_row(model(**batch) if isinstance(batch, dict) else model(batch))
            gradient = torch.autograd.grad(losses.sum(), seen.pop())[0]
            if gradient.ndim == 4:
                gradient = gradient.movedim(1, -1)
            if isinstance(batch, dict):
                gradient = gradient[batch["attention_mask"].bool()]
            rows.append(gradient.reshape(-1, gradient.shape[-1]))
        hook.remove()
        torch.testing.assert_close(found[reader.name], torch.cat(rows).square().mean(dim=0), rtol=1e-3, atol=1e-12)


def test_labels_are_sampled_from_the_predictions_of_tokens_that_count() -> None:
    """Over many samples, the mean square of the gradients of logits is the variance of a Bernoulli variable."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 4, generator=generator).expand(4000, 2, 4).clone().requires_grad_()
    keep = torch.tensor([[True, False]]).expand(4000, 2)
    batch = read_batches(nn.Identity(), [torch.zeros(4000, 2)])[0]
    batch = type(batch)(number=0, args=batch.args, keep=keep)
    (gradient,) = torch.autograd.grad(compute_loss(None, {"logits": logits}, batch, None), logits)
    assert (gradient[:, 1] == 0).all()
    share = logits[0, 0].softmax(dim=-1).detach()
    torch.testing.assert_close(gradient[:, 0].square().mean(dim=0), share * (1 - share), rtol=0.1, atol=0.01)
    again = torch.autograd.grad(compute_loss(None, {"logits": logits}, batch, None), logits)[0]
    assert torch.equal(again, gradient)


def test_outputs_without_logits_are_projected() -> None:
    """The mean of the squared gradients is the diagonal of the Gauss-Newton matrix: the identity."""
    outputs = torch.zeros(5000, 3, requires_grad=True)
    batch = read_batches(nn.Identity(), [torch.zeros(5000, 3)])[0]
    (gradient,) = torch.autograd.grad(compute_loss(None, outputs, batch, None), outputs)
    torch.testing.assert_close(gradient.T @ gradient / 5000, torch.eye(3), rtol=0.1, atol=0.1)


def test_the_loss_of_the_model_comes_before_sampled_labels() -> None:
    model, groups, given = find_groups("llama")
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in given]
    found = measure(model, groups, labelled, None).units[groups[0].name]
    sampled = measure(model, groups, given, None).units[groups[0].name]
    own = measure(model, groups, labelled, lambda outputs, _: outputs.loss).units[groups[0].name]
    torch.testing.assert_close(found, own)
    assert not torch.allclose(found, sampled)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.up(inputs).tanh() * 1.0
        outputs = self.down(hidden)
        hidden += 1.0
        return outputs


def test_inputs_that_change_in_place_are_refused() -> None:
    model = InPlace()
    inputs = torch.randn(3, 4)
    groups = build_groups(model, plan(model, drop_schedule("channels"), example_inputs=inputs))
    with pytest.raises(CalibrationError, match="'down': its inputs must stay as they are"):
        measure(model, groups, [inputs], None)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_gradients_is_refused() -> None:
    model, groups, given = find_groups("perceptron")
    with pytest.raises(CalibrationError, match="must return a loss, one number that depends on the weights"):
        measure(model, groups, given, lambda outputs, _: outputs.detach().sum())
    model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
    with pytest.raises(CalibrationError, match="do not disable gradients in the model"):
        measure(model, groups, given, None)


def test_logits_of_images_have_their_classes_second() -> None:
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    batch = read_batches(nn.Identity(), [torch.zeros(2, 3)])[0]
    (gradient,) = torch.autograd.grad(compute_loss(None, {"logits": logits}, batch, None), logits)
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(2, 3, 3), rtol=0, atol=1e-6)


class Deconvolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_layers_whose_inputs_are_no_features_have_gradients() -> None:
    torch.manual_seed(0)
    model, images = Deconvolution().eval(), torch.randn(3, 3, 8, 8)
    groups = build_groups(model, plan(model, drop_schedule("channels"), example_inputs=images))
    found = measure(model, groups, [images], mean_loss)
    group = next(group for group in groups if group.readers[0].name == "2")
    mask_U = torch.ones(6, requires_grad=True)
    handle = model[2].register_forward_pre_hook(multiply(group.readers[0], mask_U), with_kwargs=True)
    losses = loss_per_row(model(images))
    handle.remove()
    expected = torch.stack([torch.autograd.grad(loss, mask_U, retain_graph=True)[0] for loss in losses])
    torch.testing.assert_close(found.units[group.name], expected, rtol=1e-3, atol=1e-6)
    assert found.importance["2"].shape == (4,)


def test_what_the_loss_ignores_has_gradients_of_zero() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
            self.two = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(inputs), self.two(inputs)

    model, inputs = TwoHeads(), torch.randn(3, 4)
    groups = build_groups(model, plan(model, drop_schedule("channels"), example_inputs=inputs))
    found = measure(model, groups, [inputs], lambda outputs, _: outputs[0].square().mean())
    used, ignored = groups
    assert found.units[used.name].any()
    assert found.importance["one.2"].any()
    assert not found.units[ignored.name].any()
    assert found.units[ignored.name].shape[1] == 5
    assert found.importance["two.2"].tolist() == [0.0, 0.0]


def test_the_graphs_of_earlier_batches_are_freed() -> None:
    """Without the garbage collector, which does not know how large tensors are."""
    model, groups, given = find_groups(next(iter(CASES)))
    measure(model, groups, given, mean_loss)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        measure(model, groups, given, mean_loss)
        assert sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()) <= before
    finally:
        gc.enable()


class Tokens(nn.Module):
    """Two layers that read tokens row by row, or all of them as one matrix."""

    def __init__(self, *, joins_rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.joins_rows = joins_rows

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = inputs.flatten(0, 1) if self.joins_rows else inputs
        return self.down(self.up(hidden).tanh()).reshape(*inputs.shape[:2], 2) * attention_mask[..., None]


def test_joined_rows_are_told_apart_and_padding_is_left_out() -> None:
    given = {"inputs": torch.randn(3, 5, 4), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    given["attention_mask"][0, 2:] = 0
    found = []
    for joins_rows in (False, True):
        model = Tokens(joins_rows=joins_rows)
        groups = build_groups(model, plan(model, drop_schedule("channels"), example_inputs=given))
        found.append(measure(model, groups, [given], mean_loss))
    apart, joined = found
    (name,) = apart.units
    assert joined.units[name].shape == (3, 6)
    torch.testing.assert_close(joined.units[name], apart.units[name])
    torch.testing.assert_close(joined.importance["down"], apart.importance["down"])
    assert apart.importance["down"].any()

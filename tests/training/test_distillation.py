"""Train towards a teacher: the arithmetic against plain formulas, hidden states, devices of state, and bad input."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, LayerError, StateError
from secateur.training.distillation import Distillation, compute_hidden_loss, compute_logit_loss
from tiny_models import mlp


def make_pair() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return mlp(0), mlp(1).eval(), torch.randn(5, 16)


def test_loss_is_the_formula() -> None:
    student, teacher, inputs = make_pair()
    outputs, target = student(inputs), teacher(inputs)
    p, q = (target / 3).softmax(-1), (outputs / 3).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean() * 9
    loss = outputs.square().mean()
    found = Distillation(teacher, temperature=3.0, weight=0.25)(loss, outputs, inputs)
    torch.testing.assert_close(found, 0.75 * loss + 0.25 * divergence)
    assert torch.equal(Distillation(teacher, weight=0.0)(loss, outputs, inputs), loss)


def test_gradient_reaches_the_student_and_not_the_teacher() -> None:
    student, teacher, inputs = make_pair()
    outputs = student(inputs)
    Distillation(teacher, weight=1.0)(outputs.sum(), outputs, inputs).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hidden_states_are_compared() -> None:
    student, teacher, inputs = make_pair()
    left, right = student[1](student[0](inputs)), teacher[1](teacher[0](inputs))
    expected = (left - right).square().mean() / right.square().mean()
    with Distillation(teacher, student=student, weight=0.0, hidden_weight=2.0, layers=["1"]) as distillation:
        outputs = student(inputs)
        found = distillation(outputs.sum() * 0, outputs, inputs)
    torch.testing.assert_close(found, 2.0 * expected)
    found.backward()
    assert student[0].weight.grad is not None
    assert not student[1]._forward_hooks
    assert not teacher[1]._forward_hooks


def test_equal_models_have_no_distance() -> None:
    student, _, inputs = make_pair()
    with Distillation(copy.deepcopy(student), student=student, weight=1.0, hidden_weight=1.0, layers=["0"]) as same:
        assert same(torch.tensor(7.0), student(inputs), inputs).item() == 0


def test_masked_positions_do_not_count() -> None:
    logits, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    positions = mask.bool()
    expected = compute_logit_loss(logits[positions], target[positions], 2.0)
    torch.testing.assert_close(compute_logit_loss(logits, target, 2.0, positions), expected)
    seen: dict[str, Any] = {}

    class Teacher(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            seen.update(inputs)
            return {"logits": target}

    found = Distillation(Teacher(), weight=1.0)(
        torch.tensor(0.0), SimpleNamespace(logits=logits), attention_mask=mask, labels=mask
    )
    torch.testing.assert_close(found, expected)
    assert list(seen) == ["attention_mask"]


def test_teacher_follows_the_student_to_its_device() -> None:
    student, teacher, inputs = make_pair()
    there = inputs.to("meta")
    outputs = student.to("meta")(there)
    assert Distillation(teacher)(outputs.sum(), outputs, there).is_meta
    assert next(teacher.parameters()).is_meta


def test_nothing_to_compare_is_zero() -> None:
    assert compute_logit_loss(torch.ones(1, 2), torch.zeros(1, 2), 1.0, torch.tensor([False])).item() == 0
    assert compute_hidden_loss(torch.zeros(2), torch.zeros(2)).item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be greater than 0, found 0.0"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\], found 1.5"),
        ({"hidden_weight": -1.0}, "hidden_weight must be at least 0"),
        ({"layers": ["0"]}, "student, layers and hidden_weight must be given together"),
        ({"hidden_weight": 1.0, "layers": ["0"]}, "student, layers and hidden_weight must be given together"),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation(mlp(), **arguments)


def test_missing_layers_are_refused_and_leave_no_hooks() -> None:
    student, teacher, _ = make_pair()
    with pytest.raises(LayerError, match=r"The student must have the layers.*Sequential does not have 'encoder'"):
        Distillation(teacher, student=student, hidden_weight=1.0, layers=["0", "encoder"])
    with pytest.raises(LayerError, match=r"The teacher must have the layers.*'0'"):
        Distillation(nn.Linear(2, 2), student=student, hidden_weight=1.0, layers=["0"])
    assert not student[0]._forward_hooks


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    student, teacher, inputs = make_pair()
    outputs = student(inputs)
    distillation = Distillation(teacher)
    with pytest.raises(StateError, match=r"outputs of the student must be logits.*found tuple"):
        distillation(outputs.sum(), (outputs,), inputs)
    with pytest.raises(StateError, match=r"logits of student and teacher must have the same shape, found \(5, 3\)"):
        distillation(outputs.sum(), outputs[:, :3], inputs)
    hidden = Distillation(teacher, student=student, hidden_weight=1.0, layers=["0"])
    hidden._outputs.clear()
    with pytest.raises(StateError, match=r"layer '0' must be called by both student and teacher"):
        hidden(outputs.sum(), outputs, inputs)
    hidden.close()

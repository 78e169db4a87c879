"""Distillation under Neural Compressor's interface, alone and with pruning."""

import copy
import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.compat.neural_compressor.compression.callbacks import DistillationCallbacks
from secateur.compat.neural_compressor.compression.distillation.criterions import build_criterion
from secateur.compat.neural_compressor.config import (
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
    WeightPruningConfig,
)
from secateur.compat.neural_compressor.training import prepare_compression
from secateur.errors import ConfigError, StateError, UnknownNameError, UnsupportedModelError


def make_model(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 8), nn.Linear(8, 4))


@pytest.fixture
def student() -> nn.Sequential:
    torch.manual_seed(0)
    return make_model()


@pytest.fixture
def teacher() -> nn.Sequential:
    torch.manual_seed(1)
    return make_model(32)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


def count_hooks(*models: nn.Module) -> int:
    return sum(len(module._forward_hooks) for model in models for module in model.modules())


def compute_teacher_loss(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The losses, written out."""
    log_p, q = student.log_softmax(-1), teacher.softmax(-1)
    return {
        "CE": -(q * log_p).sum(-1).mean(),
        "KL": (q * (q.log() - log_p)).mean(),
        "MSE": (student - teacher).square().mean(),
    }[name]


@pytest.mark.parametrize("name", ["CE", "KL", "MSE"])
@pytest.mark.parametrize(("temperature", "weights"), [(1.0, [0.5, 0.5]), (3.0, [0.8, 0.2]), (2.0, [0.0, 1.0])])
def test_knowledge_distillation(
    name: str, temperature: float, weights: list[float], student: nn.Module, teacher: nn.Module, inputs: torch.Tensor
) -> None:
    config = KnowledgeDistillationLossConfig(temperature, ["CE", name], weights)
    manager = prepare_compression(student, DistillationConfig(teacher, config))
    output = student(inputs)
    own_loss = functional.cross_entropy(output, torch.arange(6) % 4)
    loss = manager.callbacks.on_after_compute_loss(inputs, output, own_loss)
    assert teacher.training
    target = teacher.eval()(inputs).detach()
    expected = compute_teacher_loss(name, output / temperature, target / temperature) * temperature**2
    torch.testing.assert_close(loss, weights[0] * own_loss + weights[1] * expected)
    loss.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(weight.grad is not None for weight in student.parameters())


def test_outputs_of_every_token_count() -> None:
    student, teacher = torch.randn(2, 2, 5, 7)
    for name in ("CE", "KL"):
        criterion = build_criterion(KnowledgeDistillationLossConfig(2.0, ["CE", name], [0.0, 1.0]).config, nn.ReLU())
        loss = criterion.loss_cal_sloss(student, teacher, torch.tensor(0.0))
        torch.testing.assert_close(loss, 4 * compute_teacher_loss(name, student / 2, teacher / 2))


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "mapping"])
def test_the_teacher_takes_the_inputs_of_the_student(form: str, student: nn.Module, inputs: torch.Tensor) -> None:
    class Teacher(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
            assert not self.training
            return SimpleNamespace(logits=x[:, :4] * scale)

    batch = {"tensor": inputs, "tuple": (inputs, 2.0), "list": [inputs, 2.0], "mapping": {"x": inputs, "scale": 2.0}}
    scale = 1.0 if form == "tensor" else 2.0
    config = KnowledgeDistillationLossConfig(loss_types=["CE", "MSE"], loss_weights=[0.0, 1.0])
    manager = prepare_compression(student, DistillationConfig(Teacher(), config))
    output = student(inputs)
    loss = manager.callbacks.on_after_compute_loss(batch[form], output, torch.tensor(1.0))
    torch.testing.assert_close(loss, functional.mse_loss(output, inputs[:, :4] * scale))


def test_given_outputs_replace_the_teacher(student: nn.Module, inputs: torch.Tensor) -> None:
    manager = prepare_compression(student, DistillationConfig())
    output, target = student(inputs), torch.randn(6, 4)
    loss = manager.callbacks.on_after_compute_loss(inputs, output, torch.tensor(2.0), teacher_output=target)
    torch.testing.assert_close(loss, 1.0 + 0.5 * functional.cross_entropy(output, target.softmax(-1)))
    with pytest.raises(StateError, match="found no teacher_model"):
        manager.callbacks.on_after_compute_loss(inputs, output, torch.tensor(2.0))


def test_without_weight_the_teacher_does_not_run(student: nn.Module, inputs: torch.Tensor) -> None:
    config = KnowledgeDistillationLossConfig(loss_weights=[1.0, 0.0])
    manager = prepare_compression(student, DistillationConfig(nn.Linear(1, 1), config))
    assert manager.callbacks.on_after_compute_loss(inputs, student(inputs), torch.tensor(2.0)) == 2.0


def test_the_loss_for_labels() -> None:
    config = KnowledgeDistillationLossConfig(loss_types=["MSE", "CE"])
    assert build_criterion(config.config, nn.ReLU())(torch.ones(2), torch.zeros(2)) == 1.0


def make_hint_config(**settings: Any) -> IntermediateLayersKnowledgeDistillationLossConfig:
    mappings = [["4"], [["3", ""], ["3", lambda x: 2 * x]], [["4", ""], ["4", ""]]]
    return IntermediateLayersKnowledgeDistillationLossConfig(mappings, ["MSE", "L1", "KL"], [0.5, 0.3, 0.2], **settings)


@pytest.mark.parametrize("add_origin_loss", [False, True])
def test_intermediate_layers(
    add_origin_loss: bool, student: nn.Sequential, teacher: nn.Sequential, inputs: torch.Tensor
) -> None:
    config = make_hint_config(add_origin_loss=add_origin_loss)
    manager = prepare_compression(student, DistillationConfig(teacher, config))
    manager.callbacks.on_train_begin()
    for step in range(2):
        manager.callbacks.on_step_begin(step)
        torch.manual_seed(5)
        output = student(inputs)
        loss = manager.callbacks.on_after_compute_loss(inputs, output, torch.tensor(7.0))
        torch.manual_seed(5)
        hidden = student[:4](inputs)
        with torch.no_grad():
            target = copy.deepcopy(teacher).eval()[:4](inputs)
            final = teacher[4](target)
        expected = (
            0.5 * (output - final).square().mean()
            + 0.3 * (hidden - 2 * target).abs().mean()
            + 0.2 * compute_teacher_loss("KL", output, final)
            + (7.0 if add_origin_loss else 0.0)
        )
        torch.testing.assert_close(loss, expected)


def test_intermediate_layers_of_other_sizes(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> None:
    config = IntermediateLayersKnowledgeDistillationLossConfig([["0"], ["0"], ["4"]], ["MSE", "KL", "KL"])
    manager = prepare_compression(student, DistillationConfig(teacher, config))
    criterion = manager.callbacks.callbacks_list[0].criterion
    losses = []
    for _ in range(2):
        student(inputs)
        losses.append(manager.callbacks.on_after_compute_loss(inputs, None, None))
    matchers = criterion.feature_matchers
    assert {index: matcher.weight.shape for index, matcher in matchers.items()} == {0: (32, 16), 1: (32, 16)}
    target = teacher[0](inputs)
    expected = (matchers[0](student[0](inputs)) - target).square().mean()
    expected = expected + compute_teacher_loss("KL", matchers[1](student[0](inputs)), target)
    with torch.no_grad():
        torch.manual_seed(0)
        student(inputs)
        torch.manual_seed(0)
        last = student(inputs)
        student.train()
        remaining = criterion.loss_weights[2] * compute_teacher_loss("KL", last, teacher.eval()(inputs))
        torch.manual_seed(0)
        student(inputs)
        loss = manager.callbacks.on_after_compute_loss(inputs, None, None)
    torch.testing.assert_close(loss, (expected / 3 + remaining).detach(), rtol=1e-4, atol=1e-5)


def test_processes_select_outputs(inputs: torch.Tensor) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.split = nn.Identity()
            self.named = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = self.split((x, self.layer(x)))
            return self.named({"last": outputs[1]})["last"]

    student, teacher = Pair(), Pair()
    config = IntermediateLayersKnowledgeDistillationLossConfig([[("split", "1"), ("named", "last")]])
    manager = prepare_compression(student, DistillationConfig(teacher, config))
    output = student(inputs)
    loss = manager.callbacks.on_after_compute_loss(inputs, output, None)
    torch.testing.assert_close(loss, functional.mse_loss(output, teacher(inputs)))
    config = IntermediateLayersKnowledgeDistillationLossConfig([[("split", "2"), ("named", "last")]])
    prepare_compression(student, DistillationConfig(teacher, config))
    with pytest.raises(ConfigError, match=r"The process '2' must be .* of type tuple"):
        student(inputs)


def test_hooks_are_removed(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> None:
    manager = prepare_compression(student, DistillationConfig(teacher, make_hint_config()))
    assert count_hooks(student, teacher) == 6
    manager.callbacks.on_train_begin()
    assert count_hooks(student, teacher) == 6
    manager.callbacks.on_train_end()
    assert count_hooks(student, teacher) == 0
    student(inputs)
    with pytest.raises(StateError, match=r"outputs of \('4', '4'\).*after on_train_begin"):
        manager.callbacks.on_after_compute_loss(inputs, None, None)
    manager.callbacks.on_train_begin()
    assert count_hooks(student, teacher) == 6
    del manager
    gc.collect()
    assert count_hooks(student, teacher) == 0


def test_only_training_records_the_student(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> None:
    manager = prepare_compression(student, DistillationConfig(teacher, make_hint_config()))
    student.eval()(inputs)
    with pytest.raises(StateError, match="Call the student in training mode"):
        manager.callbacks.on_after_compute_loss(inputs, None, None)


def test_self_distillation() -> None:
    config = SelfKnowledgeDistillationLossConfig(
        [[["a", "c"], ["b", "c"]], [["a", "c"]], [["b", "c"]]],
        temperature=3.0,
        loss_types=["L2", "KL", "CE"],
        loss_weights=[0.5, 0.05, 0.02],
        add_origin_loss=True,
    )
    model = nn.Linear(2, 2)
    manager = prepare_compression(model, DistillationConfig(model, config))
    a, b, c = torch.randn(3, 6, 4)
    loss = manager.callbacks.on_after_compute_loss(None, {"a": a, "b": b, "c": c}, torch.tensor(2.0))
    expected = (
        2.0
        + 0.5 * ((a - c).square().sum().sqrt() + (b - c).square().sum().sqrt())
        + 0.05 * compute_teacher_loss("KL", a / 3, c / 3)
        + 0.02 * compute_teacher_loss("CE", b, c)
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kind", ["outputs", "layers"])
def test_pruning_with_distillation(
    kind: str, order: int, student: nn.Module, teacher: nn.Module, inputs: torch.Tensor
) -> None:
    pruning = WeightPruningConfig(
        [{"op_names": ["0", "3"], "pattern": "1x1"}], target_sparsity=0.75, start_step=1, end_step=8
    )
    criterion = KnowledgeDistillationLossConfig() if kind == "outputs" else make_hint_config()
    distillation = DistillationConfig(teacher, criterion)
    manager = prepare_compression(student, [pruning, distillation][::order])
    assert manager.conf.pruning is pruning
    assert manager.conf.distillation is distillation
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    manager.callbacks.on_train_begin()
    for step in range(10):
        manager.callbacks.on_step_begin(step)
        output = student(inputs)
        loss = functional.cross_entropy(output, torch.arange(6) % 4)
        loss = manager.callbacks.on_after_compute_loss(inputs, output, loss)
        optimizer.zero_grad()
        loss.backward()
        manager.callbacks.on_before_optimizer_step()
        optimizer.step()
        manager.callbacks.on_after_optimizer_step()
        manager.callbacks.on_step_end()
    report = manager.callbacks.on_train_end()
    zeros = [int((student[index].weight == 0).sum()) for index in (0, 3, 4)]
    assert sum(zeros) == 192
    assert zeros[2] == 0
    assert report.sparsity == 0.75
    assert count_hooks(student, teacher) == 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_criterion_of_the_user(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> None:
    class Doubled:
        def teacher_model_forward(self, input: Any, teacher_model: Any) -> Any:  # noqa: A002
            return teacher_model(input)

        def loss_cal_sloss(self, student_outputs: Any, teacher_outputs: Any, student_loss: Any) -> Any:
            return student_loss + (student_outputs - teacher_outputs).sum()

    callbacks = DistillationCallbacks(DistillationConfig(teacher), student)
    callbacks.criterion = Doubled()
    callbacks.on_train_begin()
    assert callbacks.on_after_compute_loss(inputs, teacher(inputs) + 1, torch.tensor(3.0)).isfinite()
    assert callbacks.student_model is student
    assert repr(callbacks) == "Distillation Callbacks"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (KnowledgeDistillationLossConfig(0.0), r"temperature must be positive, found 0\.0"),
        (KnowledgeDistillationLossConfig(loss_types=["CE"]), "loss_types must have two items"),
        (KnowledgeDistillationLossConfig(loss_types=["KL", "CE"]), "Unknown loss type 'KL'. Known here: CE, MSE"),
        (KnowledgeDistillationLossConfig(loss_types=["CE", "L1"]), "Unknown loss type 'L1'. Known here: CE, KL, MSE"),
        (KnowledgeDistillationLossConfig(loss_weights=[0.5, 0.6]), "sum of loss_weights must be 1"),
        (KnowledgeDistillationLossConfig(loss_weights=[-1, 2]), r"must be 2 numbers in \[0, 1\]"),
        (IntermediateLayersKnowledgeDistillationLossConfig(), "at least one, found 0 and 0"),
        (IntermediateLayersKnowledgeDistillationLossConfig([["0"]], ["L2"]), "Unknown loss type 'L2'"),
        (IntermediateLayersKnowledgeDistillationLossConfig([["0"]], ["L1", "KL"]), "found 1 and 2"),
        (IntermediateLayersKnowledgeDistillationLossConfig([["0", "1", "2"]]), "one or two layers"),
        (IntermediateLayersKnowledgeDistillationLossConfig([[("0", "", "")]]), r"\(name,\) or \(name, process\)"),
        (IntermediateLayersKnowledgeDistillationLossConfig([["x.y"]]), "names 'x.y', which Sequential does not have"),
        (SelfKnowledgeDistillationLossConfig([["a", "b"]]), "groups of pairs"),
        (SelfKnowledgeDistillationLossConfig([[["a", "b"]]], loss_types=["MSE"]), "Unknown loss type 'MSE'"),
    ],
)
def test_invalid_settings(config: Any, message: str, student: nn.Module, teacher: nn.Module) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_compression(student, DistillationConfig(teacher, config))
    assert count_hooks(student, teacher) == 0


def test_invalid_models(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="needs student_model and teacher_model"):
        prepare_compression(student, DistillationConfig(None, make_hint_config()))
    config = IntermediateLayersKnowledgeDistillationLossConfig([["0", "4"]])
    manager = prepare_compression(student, DistillationConfig(nn.Sequential(*teacher, nn.Flatten(0)), config))
    student(inputs)
    manager.callbacks.on_after_compute_loss(inputs, None, None)
    config = IntermediateLayersKnowledgeDistillationLossConfig([["0", "5"]])
    manager = prepare_compression(student, DistillationConfig(nn.Sequential(*teacher, nn.Flatten(0)), config))
    student(inputs)
    with pytest.raises(ConfigError, match=r"except for one axis, found \(6, 16\) and \(24,\)"):
        manager.callbacks.on_after_compute_loss(inputs, None, None)
    with pytest.raises(UnknownNameError, match=r"Unknown distillation loss 'X'\. Known: KnowledgeDistillationLoss"):
        build_criterion({"X": {}}, student)
    with pytest.raises(ConfigError, match="must be one loss, found 0: none"):
        build_criterion({}, student)
    import keras

    with pytest.raises(UnsupportedModelError, match="Distillation needs a torch module"):
        build_criterion({"KnowledgeDistillationLoss": {}}, keras.Sequential([keras.layers.Dense(1)]))

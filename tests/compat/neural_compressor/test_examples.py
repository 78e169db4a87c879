"""The training loops of the examples of Intel Neural Compressor, on tiny models, with exact numbers of zeros."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur.compat.neural_compressor.compression.hpo import SearchSpace, prepare_hpo
from secateur.compat.neural_compressor.compression.pruner import model_slim, parse_auto_slim_config, prepare_pruning
from secateur.compat.neural_compressor.config import (
    DistillationConfig,
    HPOConfig,
    KnowledgeDistillationLossConfig,
)
from secateur.compat.neural_compressor.training import WeightPruningConfig, prepare_compression
from tiny_transformers import VOCABULARY, bert, opt

pytestmark = pytest.mark.usefixtures("registries_restored")

BATCHES, WARMUP, EPOCHS, COOLDOWN = 8, 4, 3, 1
TOTAL = BATCHES * (EPOCHS - COOLDOWN)
FREQUENCY = 3
COMMON = {"pruning_type": "snip_momentum", "pruning_scope": "global", "sparsity_decay_type": "exp"}


class Block(nn.Module):
    """A residual block, with the names of torchvision."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.conv2(self.conv1(images).relu()) + self.downsample(images)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16))
        self.fc = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(self.conv1(images))).mean((2, 3)))


def images() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        yield torch.randn(4, 3, 6, 6, generator=generator), torch.randint(4, (4,), generator=generator)


def texts(**labels: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a data loader of transformers: tokens, and labels below the given bounds."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        tokens = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
        yield {"input_ids": tokens} | {
            name: torch.randint(bound, (2,), generator=generator) for name, bound in labels.items()
        }


def zeros(model: nn.Module, names: Iterable[str]) -> int:
    return sum(int((model.get_parameter(f"{name}.weight") == 0).sum()) for name in names)


def sizes(model: nn.Module, names: Iterable[str]) -> int:
    return sum(model.get_parameter(f"{name}.weight").numel() for name in names)


def linears(model: nn.Module, *, without: tuple[str, ...] = ()) -> list[str]:
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in names if not any(part in name for part in without)]


def steps(*, do_prune: bool = True) -> dict[str, int]:
    """The steps of a run; without pruning, the examples set them after the end of training."""
    start, end = (WARMUP, TOTAL) if do_prune else (BATCHES * EPOCHS + 1, BATCHES * EPOCHS + 1)
    return {"start_step": start, "end_step": end, "pruning_frequency": FREQUENCY}


def train_with_callbacks(model: nn.Module, config: WeightPruningConfig, batches: list[dict[str, Any]]) -> None:
    """The loop of the examples for question answering, translation and block masks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    manager = prepare_compression(model=model, confs=config)
    manager.callbacks.on_train_begin()
    model = manager.model
    for _ in range(EPOCHS):
        model.train()
        for step, batch in enumerate(batches):
            manager.callbacks.on_step_begin(step)
            model(**batch).loss.backward()
            manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            manager.callbacks.on_after_optimizer_step()
            optimizer.zero_grad()
    manager.callbacks.on_train_end()


def train_with_optimizer(model: nn.Module, config: WeightPruningConfig, batches: list[dict[str, Any]]) -> None:
    """The loop of the examples for GLUE: only `prepare_pruning` is added."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prepare_pruning(model, config, optimizer)
    for _ in range(EPOCHS):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def question_answering() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForQuestionAnswering(bert().config)


def test_image_classification() -> None:
    model = ResNet()
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    elements = [
        COMMON
        | {
            "op_names": ["layer"],
            "excluded_op_names": ["head", "fc", ".downsample"],
            "pruning_op_types": ["Conv2d"],
            "max_sparsity_ratio_per_op": 0.98,
        }
    ]
    manager = prepare_compression(
        model=model, confs=WeightPruningConfig(elements, target_sparsity=0.75, pattern="1x1", **steps())
    )
    manager.callbacks.on_train_begin()
    wrapped = manager.model
    for _ in range(EPOCHS):
        for index, (batch, targets) in enumerate(images()):
            manager.callbacks.on_step_begin(batch_id=index)
            criterion(wrapped(batch), targets).backward()
            manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            manager.callbacks.on_after_optimizer_step()
            optimizer.zero_grad()

    pruned = [f"layer{index}.0.conv{conv}" for index in (1, 2) for conv in (1, 2)]
    assert zeros(model, pruned) == 0.75 * sizes(model, pruned)
    assert zeros(model, ["conv1", "layer1.0.downsample.0", "layer2.0.downsample.0", "fc"]) == 0


def test_object_detection_with_accumulated_gradients() -> None:
    model = ResNet()
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    elements = [COMMON | {"pruning_op_types": ["Conv2d"], "excluded_op_names": [], "max_sparsity_ratio_per_op": 0.98}]
    settings = {"start_step": 2, "end_step": 8, "pruning_frequency": 2}
    manager = prepare_compression(
        model=model, confs=WeightPruningConfig(elements, target_sparsity=0.5, pattern="4x1", **settings)
    )
    manager.callbacks.on_train_begin()
    count = 0
    for _ in range(EPOCHS):
        for batch, targets in images():
            manager.callbacks.on_step_begin(count)
            criterion(model(batch), targets).backward()
            count += 1
            if count % 2 == 0:
                manager.callbacks.on_before_optimizer_step()
                optimizer.step()
                manager.callbacks.on_after_optimizer_step()
                optimizer.zero_grad()

    pruned = [name for name, module in model.named_modules() if type(module) is nn.Conv2d]
    assert zeros(model, pruned) == 0.5 * sizes(model, pruned)
    assert zeros(model, ["fc"]) == 0


@pytest.mark.parametrize(("pattern", "target"), [("4x1", 0.75), ("2:4", 0.5)])
def test_question_answering(pattern: str, target: float) -> None:
    model = question_answering()
    elements = [
        COMMON | {"excluded_op_names": ["pooler"], "pruning_op_types": ["Linear"], "max_sparsity_ratio_per_op": 0.98}
    ]
    config = WeightPruningConfig(elements, target_sparsity=target, pattern=pattern, **steps())
    train_with_callbacks(model, config, list(texts(start_positions=8, end_positions=8)))

    pruned = linears(model, without=("qa_outputs",))
    assert zeros(model, pruned) == target * sizes(model, pruned)
    assert zeros(model, ["qa_outputs"]) == 0


def test_question_answering_with_block_masks() -> None:
    model = question_answering()
    elements = [
        {
            "pruning_type": "block_mask",
            "pruning_scope": "global",
            "criterion_type": "snip_momentum_block",
            "excluded_op_names": ["qa_outputs", "pooler", ".*embeddings*"],
            "sparsity_decay_type": "exp",
            "pruning_op_types": ["Linear"],
            "max_sparsity_ratio_per_op": 0.98,
        }
    ]
    config = WeightPruningConfig(elements, target_sparsity=0.5, pattern="4x4", **steps())
    train_with_callbacks(model, config, list(texts(start_positions=8, end_positions=8)))

    pruned = linears(model, without=("qa_outputs",))
    assert zeros(model, pruned) == 0.5 * sizes(model, pruned)


@pytest.mark.parametrize("do_prune", [True, False])
def test_text_classification(do_prune: bool) -> None:
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert().config)
    elements = [
        COMMON
        | {
            "excluded_op_names": ["classifier", "pooler", ".*embeddings*"],
            "pruning_op_types": ["Linear"],
            "max_sparsity_ratio_per_op": 0.98,
        }
    ]
    config = WeightPruningConfig(
        elements, target_sparsity=0.75, pattern="4x1", pruning_type="snip_momentum", **steps(do_prune=do_prune)
    )
    train_with_optimizer(model, config, list(texts(labels=2)))

    pruned = linears(model, without=("pooler", "classifier"))
    assert zeros(model, pruned) == (0.75 * sizes(model, pruned) if do_prune else 0)
    assert zeros(model, ["classifier", "bert.pooler.dense"]) == 0


def test_text_classification_with_two_patterns() -> None:
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert().config)
    common = {"pruning_type": "snip_momentum", "sparsity_decay_type": "exp", "pruning_op_types": ["Linear"]}
    elements = [
        common | {"op_names": [".*output", ".*intermediate"], "pattern": "1x1", "pruning_scope": "local"},
        common
        | {
            "op_names": [".*query", ".*key", ".*value"],
            "pattern": "4x1",
            "pruning_scope": "global",
            "max_sparsity_ratio_per_op": 0.98,
            "min_sparsity_ratio_per_op": 0.5,
        },
    ]
    config = WeightPruningConfig(elements, target_sparsity=0.75, **steps())
    train_with_optimizer(model, config, list(texts(labels=2)))

    local = [name for name in linears(model) if "output" in name or "intermediate" in name]
    for name in local:
        assert zeros(model, [name]) == 0.75 * sizes(model, [name])
    ranked = [name for name in linears(model) if name.endswith(("query", "key", "value"))]
    assert zeros(model, ranked) == 0.75 * sizes(model, ranked)
    assert min(zeros(model, [name]) / sizes(model, [name]) for name in ranked) >= 0.5


def test_translation() -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0
        )
    )
    elements = [COMMON | {"pruning_op_types": ["Linear"], "excluded_op_names": ["lm_head", "pooler"]}]
    config = WeightPruningConfig(elements, target_sparsity=0.5, pattern="4x1", **steps())
    train_with_callbacks(model, config, [batch | {"labels": batch["input_ids"]} for batch in texts()])

    pruned = linears(model, without=("lm_head",))
    assert zeros(model, pruned) == 0.5 * sizes(model, pruned)


@pytest.mark.parametrize("pattern", ["1x1", "2:4"])
def test_language_model_with_sparsegpt(pattern: str) -> None:
    torch.manual_seed(0)
    model = opt()
    elements = [{"pruning_type": "sparse_gpt", "op_names": [".*"], "excluded_op_names": ["lm_head", "embed_out"]}]
    config = WeightPruningConfig(elements, target_sparsity=0.5, pattern=pattern)
    prepare_pruning(model, config, dataloader=list(texts()), device="cpu")

    for name in linears(model, without=("lm_head",)):
        assert zeros(model, [name]) == 0.5 * sizes(model, [name])


@pytest.mark.parametrize("auto_config", [True, False])
def test_language_model_without_retraining(auto_config: bool) -> None:
    torch.manual_seed(0)
    model = opt()
    if auto_config:
        elements = parse_auto_slim_config(
            model, ffn2_sparsity=0.25, mha_sparsity=0, pruning_scope="global", pruning_type="retrain_free"
        )
    else:
        elements = [
            {
                "pruning_type": "retrain_free",
                "pruning_scope": "global",
                "op_names": [".fc2"],
                "excluded_op_names": [".attn"],
                "pattern": "channelx1",
                "pruning_op_types": ["Linear"],
            }
        ]
    config = WeightPruningConfig(elements, target_sparsity=0.25, pattern="channelx1", start_step=1, end_step=7)
    prepare_pruning(model, config, dataloader=[batch | {"labels": batch["input_ids"]} for batch in texts()])

    pruned = [name for name in linears(model) if name.endswith("fc2")]
    assert zeros(model, pruned) == 0.25 * sizes(model, pruned)


def test_the_loss_of_a_model_without_labels_among_its_inputs() -> None:
    """The loss gets the outputs of the model and the second part of each batch."""
    model, labels = ResNet(), []

    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels.append(target)
        return torch.nn.functional.cross_entropy(outputs, target)

    element = {"pruning_type": "retrain_free", "pattern": "1xchannel", "op_names": ["layer2"]}
    element["pruning_scope"] = "local"
    batches = list(images())
    prepare_pruning(model, WeightPruningConfig([element], target_sparsity=0.5), dataloader=batches, loss_func=loss)
    assert labels
    assert all(target is batch[1] for target, batch in zip(labels, batches, strict=False))
    names = [f"layer2.0.{name}" for name in ("conv1", "conv2", "downsample.0")]
    assert zeros(model, names) == 0.5 * sizes(model, names)


@pytest.mark.parametrize(("heads", "removed"), [(0.0, 0), (0.5, 3 * 4 * 2)])
def test_auto_slim(heads: float, removed: int) -> None:
    """Half of each network, and a share of all heads of the model, of 4 rows each."""
    torch.manual_seed(0)
    model = transformers.BertForQuestionAnswering(bert().config)
    elements = parse_auto_slim_config(model, ffn2_sparsity=0.5, mha_sparsity=heads, pruning_scope="local")
    train_with_callbacks(
        model, WeightPruningConfig(elements, **steps()), list(texts(start_positions=8, end_positions=8))
    )
    networks = [(layer.intermediate.dense, layer.output.dense) for layer in model.bert.encoder.layer]
    assert [int((down.weight == 0).all(0).sum()) for _, down in networks] == [16, 16, 16]
    batch = next(texts())
    with torch.no_grad():
        masked = model.eval()(**batch).start_logits

    model = model_slim(model, round_multiplier=16)
    assert [(up.out_features, down.in_features) for up, down in networks] == [(16, 16)] * 3
    queries = [layer.attention.self.query.out_features for layer in model.bert.encoder.layer]
    assert 3 * 16 - sum(queries) == removed
    assert zeros(model, linears(model)) == 0
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).start_logits, masked, rtol=0, atol=1e-5)


def classify(args: Any) -> float:
    """The main function of the example for the search of hyperparameters; returns the accuracy."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert().config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    batches = list(texts(labels=2))
    config = WeightPruningConfig(
        [COMMON | {"excluded_op_names": ["pooler"], "pruning_op_types": ["Linear"]}],
        target_sparsity=0.75,
        pattern="4x1",
        pruning_frequency=FREQUENCY,
        start_step=BATCHES * args.sparsity_warm_epochs,
        end_step=BATCHES * (args.num_train_epochs - args.cooldown_epochs),
    )
    prepare_pruning(model, config, optimizer)
    for _ in range(args.num_train_epochs):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    pruned = linears(model, without=("pooler", "classifier"))
    assert zeros(model, pruned) == 0.75 * sizes(model, pruned)
    with torch.no_grad():
        right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float().mean() for batch in batches]
    return float(torch.stack(right).mean())


@pytest.mark.parametrize("name", ["random", "xgb"])
def test_search_of_hyperparameters(name: str) -> None:
    if name == "xgb":
        pytest.importorskip("sklearn")
    space = {
        "learning_rate": SearchSpace((0.0001, 0.001)),
        "num_train_epochs": SearchSpace(bound=(2, 4), interval=1),
        "weight_decay": SearchSpace((0.0001, 0.001)),
        "cooldown_epochs": SearchSpace(bound=(0, 1), interval=1),
        "sparsity_warm_epochs": SearchSpace(bound=(0, 1), interval=1),
    }
    searcher = prepare_hpo(HPOConfig(search_space=space, searcher=name, higher_is_better=True, min_train_samples=2))
    found = []
    for _ in range(4):
        params = searcher.suggest()
        args = SimpleNamespace(
            **{key: value if key in ("learning_rate", "weight_decay") else int(value) for key, value in params.items()}
        )
        found.append(classify(args))
        searcher.get_feedback(found[-1])
    assert searcher.best[1] == max(found)


def test_prune_once_for_all() -> None:
    """A sparse pre-trained model is fine-tuned with its zeros locked, by distillation."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert().config)
    pruned = linears(model, without=("pooler", "classifier"))
    secateur.prune(model, {"pattern": "1x1", "target_sparsity": 0.875, "op_names": pruned})
    assert zeros(model, pruned) == (expected := 0.875 * sizes(model, pruned))
    before = {name: model.get_parameter(f"{name}.weight") == 0 for name in pruned}

    teacher, batches = transformers.BertForSequenceClassification(bert().config).eval(), list(texts(labels=2))
    with torch.no_grad():
        for batch in batches:
            batch["teacher_logits"] = teacher(**batch).logits
    criterion = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.5, 0.5])
    distillation = DistillationConfig(teacher_model=teacher, criterion=criterion)
    manager = prepare_compression(model, [WeightPruningConfig(pruning_type="pattern_lock"), distillation])
    manager.callbacks.on_train_begin()
    student = manager.model
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        student.train()
        manager.callbacks.on_epoch_begin(epoch)
        for step, batch in enumerate(batches):
            manager.callbacks.on_step_begin(step)
            logits = batch["teacher_logits"]
            inputs = {name: value for name, value in batch.items() if name != "teacher_logits"}
            outputs = student(**inputs)
            loss = manager.callbacks.on_after_compute_loss(inputs, outputs["logits"], outputs["loss"], logits)
            assert loss != outputs["loss"]
            loss.backward()
            manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            optimizer.zero_grad()
            manager.callbacks.on_after_optimizer_step()
            manager.callbacks.on_step_end()
        manager.callbacks.on_epoch_end()
    manager.callbacks.on_train_end()

    assert zeros(model, pruned) == expected
    assert all(torch.equal(model.get_parameter(f"{name}.weight") == 0, mask) for name, mask in before.items())

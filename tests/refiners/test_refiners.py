"""Test refiners: they reduce the error, keep the masks, and change only kept weights, norms and biases."""

import copy
import itertools
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
from oneshot.problems import batches
from secateur.errors import CalibrationError, ConfigError
from secateur.oneshot.pytorch.calibration.batches import read_batches
from secateur.refiners import Block, Distill
from secateur.refiners.base import BlockRefiner, BlockTask, ModelTask
from secateur.refiners.block import _compute_loss
from secateur.refiners.distill import _compute_batch_loss
from secateur.refiners.tuning import MIN_SCALE, MaskedAdam, shuffle_batches
from tiny_models import bits, deep_mlp
from tiny_transformers import family


def tokens(count: int = 6, length: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [{"input_ids": torch.randint(1, 64, (2, length), generator=generator)} for _ in range(count)]


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return family("llama").to(dtype).eval()


def prune(model: nn.Module, refine: Any, **options: Any) -> Any:
    return secateur.prune(model, {"pattern": "2:4"}, calibration=tokens(), solver="sparsegpt", refine=refine, **options)


def block_error(model: nn.Module, dense: nn.Module) -> float:
    """Return the error of the first block on equal inputs, relative to what the dense block adds to each token."""
    lost = []
    with torch.no_grad():
        for batch in tokens():
            inputs = dense.model.embed_tokens(batch["input_ids"])
            positions = torch.arange(inputs.shape[1])[None]
            call = {"position_embeddings": dense.model.rotary_emb(inputs, positions), "attention_mask": None}
            expected, actual = (member.model.layers[0](inputs, **call) for member in (dense, model))
            lost.append(((actual - expected).square().sum(-1) / (expected - inputs).square().sum(-1)).mean())
    return float(torch.stack(lost).mean())


def divergence(model: nn.Module, dense: nn.Module) -> float:
    """Return the mean Kullback-Leibler divergence from the predictions of the dense model, over all classes."""
    divergences = []
    with torch.no_grad():
        for batch in tokens():
            logs, expected = (member(**batch).logits.log_softmax(-1) for member in (model, dense))
            divergences.append((expected.exp() * (expected - logs)).sum(-1).mean())
    return float(torch.stack(divergences).mean())


@dataclass(frozen=True)
class Recorder(BlockRefiner):
    """Keeps what blocks are compared with."""

    found: list[list[torch.Tensor]] = field(default_factory=list, repr=False)

    def refine(self, block: BlockTask) -> None:
        states = block.inputs, block.outputs, block.shifted_outputs
        self.found.append([torch.cat([found[number] for number in range(len(block.keeps))]) for found in states])


def record_dense_blocks(pruned: nn.Module) -> list[list[torch.Tensor]]:
    """Return the inputs and outputs of each dense block, and its outputs for the inputs in the pruned model."""
    dense, found = llama(), []
    data = torch.cat([batch["input_ids"] for batch in tokens()])
    for model in (dense, pruned):
        for block, reference in zip(model.model.layers, dense.model.layers, strict=True):
            call = partial(record_call, reference.forward, found)
            block.register_forward_hook(call, with_kwargs=True)
        with torch.no_grad():
            model(data, use_cache=False)
    half = len(found) // 2
    return [[*first, second[1]] for first, second in zip(found[:half], found[half:], strict=True)]


def record_call(run: Any, found: list[Any], _: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
    del output
    found.append([args[0], run(*args, **kwargs)])


@pytest.mark.parametrize("config", [{"pattern": "2:4"}, {"pattern": "channels", "target_sparsity": 0.5}], ids=str)
@pytest.mark.parametrize("is_resumed", [False, True])
def test_blocks_are_compared_with_those_of_the_dense_model(
    config: dict[str, Any], is_resumed: bool, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "calibration": tokens(),
        "solver": "sparsegpt" if config["pattern"] == "2:4" else "ziplm",
    }
    recorder, model = Recorder(), llama()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    if is_resumed:
        execution = secateur.Execution(folder=tmp_path, progress=stop)
        refine = [Recorder(), Block(steps=2)]
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(llama(), config, refine=refine, execution=execution, **arguments)
    execution = secateur.Execution(folder=tmp_path)
    secateur.prune(model, config, refine=[recorder, Block(steps=2)], execution=execution, **arguments)
    expected = record_dense_blocks(model)
    assert len(recorder.found) == len(expected) - is_resumed
    torch.testing.assert_close(recorder.found, expected[is_resumed:])


def test_block_reduces_the_error_of_a_block() -> None:
    plain, tuned, dense = llama(), llama(), llama()
    prune(plain, ())
    prune(tuned, Block(steps=30))
    assert block_error(tuned, dense) < 0.8 * block_error(plain, dense)


def test_distill_reduces_the_divergence_of_a_model() -> None:
    plain, tuned, dense = llama(), llama(), llama()
    prune(plain, ())
    prune(tuned, Distill(steps=30, rate=0.01))
    assert divergence(tuned, dense) < 0.5 * divergence(plain, dense)


def test_distill_moves_an_encoder_towards_its_dense_states() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    dense = transformers.BertModel(transformers.BertConfig(vocab_size=40, initializer_range=0.3, **sizes)).eval()
    data = [{"input_ids": torch.randint(40, (16, 12))} for _ in range(4)]
    errors = {}
    for refine in ("nothing", "distill"):
        model = copy.deepcopy(dense)
        refiners = [Distill(steps=30, rate=0.01)] if refine == "distill" else []
        secateur.prune(model, {"pattern": "2:4"}, calibration=data, solver="wanda", refine=refiners)
        with torch.no_grad():
            errors[refine] = float((model(**data[0])[0] - dense(**data[0])[0]).square().mean())
    assert errors["distill"] < 0.5 * errors["nothing"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("refiner", [Block(steps=3), Distill(steps=3)], ids=lambda refiner: type(refiner).__name__)
def test_only_kept_weights_norms_and_biases_change(refiner: Any, dtype: torch.dtype) -> None:
    plain, tuned = llama(dtype), llama(dtype)
    report = prune(plain, ())
    prune(tuned, refiner)
    layers = {f"{layer.name}.weight" for layer in report.layers}
    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), tuned.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    for name, weight in plain.named_parameters():
        after = tuned.get_parameter(name)
        assert after.dtype == dtype
        assert after.grad is None
        assert after.requires_grad
        if name in layers and name.startswith("model.layers.0"):  # later blocks read other inputs, and have other masks
            assert not after[weight == 0].any()
    assert changed <= layers | {name for name, weight in plain.named_parameters() if weight.ndim < 2}
    assert changed & layers
    assert all((tuned.get_parameter(name).reshape(-1, 4) != 0).sum(-1).max() <= 2 for name in layers)


@pytest.mark.parametrize("refiner", [Block(steps=2), Distill(steps=2)], ids=lambda refiner: type(refiner).__name__)
def test_equal_runs_end_with_identical_weights(refiner: Any) -> None:
    first, second = llama(), llama()
    prune(first, refiner)
    prune(second, refiner)
    assert bits(first) == bits(second)


def test_frozen_parameters_stay_frozen() -> None:
    model = llama().requires_grad_(requires_grad=False)
    prune(model, [Block(steps=1), Distill(steps=1)])
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dense_share", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_of_a_block_is_relative_to_what_it_adds(dense_share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    read, dense, shifted, output = (torch.randn(2, 3, 4, generator=generator) for _ in range(4))
    keep = torch.tensor([[True, True, False], [True, False, True]])
    target = dense_share * dense + (1 - dense_share) * shifted
    losses = [
        float((output[index] - target[index]).square().sum() / (dense[index] - read[index]).square().sum())
        for index in ((0, 0), (0, 1), (1, 0), (1, 2))
    ]
    task = BlockTask(
        block=nn.Identity(),
        masks={},
        forward=lambda _: output,
        inputs={0: read},
        outputs={0: dense},
        shifted_outputs={0: shifted},
        keeps={0: keep},
    )
    assert float(_compute_loss(task, 0, dense_share)) == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_padding_does_not_count() -> None:
    model = llama()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    read = read_batches(model, [batch | {"attention_mask": mask} for batch in tokens()])
    targets = Distill().targets(model, read, torch.device("cpu"))
    task = ModelTask(model=model, masks={}, batches=read, device=torch.device("cpu"), targets=targets)
    before = float(_compute_batch_loss(task, 0).detach())
    for target in targets:
        padding = ~read[0].keep
        target.logs[padding] = torch.randn_like(target.logs[padding]).log_softmax(-1)
    assert before == float(_compute_batch_loss(task, 0).detach()) == pytest.approx(0, abs=1e-5)


def test_the_divergence_is_exact_when_all_classes_are_compared() -> None:
    dense, other = llama(), llama()
    prune(other, ())
    read = read_batches(dense, tokens())
    for classes, exact in ((64, True), (8, False)):
        targets = Distill(classes=classes).targets(dense, read, torch.device("cpu"))
        task = ModelTask(model=other, masks={}, batches=read, device=torch.device("cpu"), targets=targets)
        mean = sum(float(_compute_batch_loss(task, number).detach()) for number in range(len(read))) / len(read)
        if exact:
            assert mean == pytest.approx(divergence(other, dense), rel=1e-4)
        else:  # combining classes can only reduce the divergence
            assert 0 < mean <= divergence(other, dense)


def test_distillation_stops_after_its_time_limit() -> None:
    model = llama()
    start = time.process_time()  # CPU time, because the machine may be busy
    prune(model, Distill(steps=10**6, minutes=0.01))
    assert time.process_time() - start < 20


def test_every_epoch_uses_every_batch() -> None:
    steps = list(itertools.islice(shuffle_batches(6, 2, seed=0), 6))
    assert sorted(itertools.chain(*steps[:3])) == sorted(itertools.chain(*steps[3:])) == list(range(6))
    assert steps[:3] != steps[3:]
    assert sorted(next(shuffle_batches(3, 8, seed=0))) == [0, 1, 2]


def test_a_step_is_relative_to_the_parameter() -> None:
    """Adam's first step has the size of its learning rate."""
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[0].bias.zero_()
    tuner = MaskedAdam(model, {"0.weight": torch.ones(4, 4, dtype=torch.bool)}, 0.1)
    with tuner.enable_gradients():
        model(torch.ones(1, 4)).sum().backward()
        tuner.step(1.0)
    torch.testing.assert_close(model[0].weight, torch.full((4, 4), 3.0 - 0.1 * 3.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(model[0].bias, torch.full((4,), -0.1 * MIN_SCALE), rtol=1e-4, atol=0)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    model = nn.Linear(4, 4)
    tuner = MaskedAdam(model, {"weight": torch.ones(4, 4, dtype=torch.bool)}, 0.1)
    with tuner.enable_gradients():
        (model(torch.ones(1, 4)).sum() * torch.inf).backward()
        with pytest.raises(CalibrationError, match=r"The gradient of '(weight|bias)' is not finite\. Lower the"):
            tuner.step(1.0)


def test_block_needs_a_stack_of_blocks() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(x)

    model = Forked()
    before = copy.deepcopy(model.state_dict())
    config = {"pattern": "2:4", "op_names": ["left", "right"]}
    with pytest.raises(ConfigError, match=r"refine='block' needs a model with a stack of blocks .* Forked has none"):
        secateur.prune(model, config, calibration=batches(features=8), solver="wanda", refine="block")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_distill_needs_logits_or_hidden_states() -> None:
    class WithoutLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = deep_mlp()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.body(x)}

    model = WithoutLogits()
    with pytest.raises(CalibrationError, match="a model that returns logits or a last_hidden_state, found dict"):
        secateur.prune(model, {"pattern": "1x1"}, calibration=batches(), solver="wanda", refine="distill")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Block, {"steps": 0}, "steps and batches_per_step must be at least 1 and rate above 0, found 0, 4 and 0.01"),
        (Block, {"rate": 0.0}, "found 48, 4 and 0.0"),
        (Distill, {"classes": 0}, "classes must be at least 1, found 0"),
        (Distill, {"minutes": 0.0}, "minutes must be above 0, found 0.0"),
        (Distill, {"rate": float("nan")}, "rate must be above 0, found nan"),
    ],
)
def test_settings_out_of_range(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)

"""Prune in a loop with accelerate: accumulation, skipped steps, save_state and load_state, and clear errors."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from secateur.errors import StateError, UnsupportedModelError
from secateur.integrations.accelerate import prepare
from tiny_models import mlp
from training.models import CONFIG, backward, equal_states

pytestmark = pytest.mark.filterwarnings("ignore")


def start(seed: int = 0, config: dict[str, Any] = CONFIG, **settings: Any) -> tuple[Any, ...]:
    accelerator = Accelerator(cpu=True, **settings)
    model = mlp(seed)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    return accelerator, model, optimizer, prepare(accelerator, model, config, optimizer)


def train(accelerator: Any, model: Any, optimizer: Any, batches: Iterable[int]) -> None:
    for batch in batches:
        with accelerator.accumulate(model):
            backward(model, batch, 1.0 if accelerator.scaler is None else accelerator.scaler.scale(torch.tensor(1e6)))
            optimizer.step()
            optimizer.zero_grad()


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    *run, pruner = start(gradient_accumulation_steps=2)
    train(*run, range(10))
    assert pruner.step == 5
    run[0].save_state(str(tmp_path))
    train(*run, range(10, 24))
    *other, resumed = start(seed=1, gradient_accumulation_steps=2)
    other[0].load_state(str(tmp_path))
    train(*other, range(10, 24))
    assert equal_states(other[1].state_dict(), run[1].state_dict())
    assert resumed.finalize() == pruner.finalize()

    *other, _ = start(config=CONFIG | {"end_step": 11})
    with pytest.raises(StateError, match="another configuration: end_step was 9, is 11"):
        other[0].load_state(str(tmp_path))


def test_skipped_steps_do_not_count() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-63)
    model = mlp()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    pruner = prepare(accelerator, model, CONFIG, optimizer)
    train(accelerator, model, optimizer, range(1))
    assert optimizer.step_was_skipped
    assert pruner.step == 0
    train(accelerator, model, optimizer, range(12))
    assert 9 <= pruner.step <= 12
    assert pruner.finalize().sparsity == 0.75


def test_objects_must_be_prepared_first() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(StateError, match=r"what accelerator.prepare returned, found AdamW"):
        prepare(Accelerator(cpu=True), model, CONFIG, optimizer)


def test_second_pruner_is_refused() -> None:
    accelerator, model, optimizer, _pruner = start()
    with pytest.raises(StateError, match="Another pruner already prunes '0', '2'"):
        prepare(accelerator, model, CONFIG, optimizer)
    assert len(accelerator._custom_objects) == 1


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (DistributedType.DEEPSPEED, "DeepSpeed cannot be used with pruning: it trains copies"),
        (DistributedType.MEGATRON_LM, "Megatron-LM cannot be used with pruning: it trains copies"),
        (DistributedType.FSDP, "FullyShardedDataParallelPlugin version 1 cannot be used with pruning"),
    ],
)
def test_sharding_of_other_kinds_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: DistributedType, problem: str
) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    monkeypatch.setattr(accelerator.state, "fsdp_plugin", SimpleNamespace(fsdp_version=1), raising=False)
    with pytest.raises(UnsupportedModelError, match=problem):
        prepare(accelerator, mlp(), CONFIG, None)

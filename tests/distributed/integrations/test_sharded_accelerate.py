"""Prune a model that FSDP2 shards in a loop with accelerate: save_state and load_state in either form of checkpoint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from distributed.models import CONFIG, Trained, begin, check_equal, describe, make_model
from distributed.models import train as train_whole
from distributed.processes import run_ranks
from secateur.integrations.accelerate import prepare

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG_4X1 = CONFIG | {"pattern": "4x1", "target_sparsity": 0.7}
FORMS = ("SHARDED_STATE_DICT", "FULL_STATE_DICT")
BREAK, END = 2, 4
LIMIT = 300.0


def start(form: str, *, seed: int = 0) -> tuple[Accelerator, Trained]:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    # accelerate ignores FSDP on CPUs, where all of its code works: let it think of GPUs.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=100, state_dict_type=form
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
    model = make_model()
    for weight in model.parameters():
        weight.data += seed
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    return accelerator, Trained(model, optimizer, prepare(accelerator, model, CONFIG_4X1, optimizer))


def train(accelerator: Accelerator, trained: Trained, steps: Iterable[int]) -> None:
    """Train on the batches of `distributed.models.train`, two of which are one step, with clipped gradients."""
    for batch in (2 * step + part for step in steps for part in range(2)):
        with accelerator.accumulate(trained.model):
            generator = torch.Generator().manual_seed(batch)
            inputs, targets = torch.randn(8, 8, generator=generator), torch.randn(8, 2, generator=generator)
            accelerator.backward((trained.model(inputs) - targets).square().mean() * 2)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained.model.parameters(), 0.5)
            trained.optimizer.step()
            trained.optimizer.zero_grad()


def save(folder: Path) -> dict[str, Any]:
    ends = {}
    for form in FORMS:
        accelerator, trained = start(form)
        train(accelerator, trained, range(BREAK))
        accelerator.save_state(str(folder / form))
        train(accelerator, trained, range(BREAK, END))
        ends[form] = describe(trained)
    return ends


def resume(folder: Path) -> dict[str, Any]:
    ends = {}
    for form in FORMS:
        accelerator, trained = start(form, seed=1)
        accelerator.load_state(str(folder / form))
        assert trained.pruner.step == BREAK
        train(accelerator, trained, range(BREAK, END))
        ends[form] = describe(trained)
    return ends


def save_and_resume(folder: Path) -> tuple[Any, Any]:
    return save(folder), resume(folder)


def test_state_of_a_sharded_run_is_saved_and_resumed(tmp_path: Path) -> None:
    whole = begin(CONFIG_4X1, "whole")
    train_whole(whole.model, whole.optimizer, range(END), careful=True)
    expected = describe(whole)
    for saved, resumed in run_ranks(save_and_resume, 2, tmp_path, limit=LIMIT):
        for form in FORMS:
            # Gradients are clipped by norms that are added up in another order.
            check_equal(saved[form], expected, 1e-6)
            check_equal(resumed[form], saved[form])
    for ends in run_ranks(resume, 4, tmp_path, limit=LIMIT):
        check_equal(ends[FORMS[0]], expected, 1e-6)

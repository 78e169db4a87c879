"""Prune a model that FSDP2 shards in the Trainer of transformers: as in one process, also after a resume."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from distributed.models import to_whole
from distributed.processes import run_ranks
from integrations.schedule import CONFIG
from integrations.text_task import load_sentences, make_bert
from secateur.errors import StateError
from secateur.integrations.pytorch.checkpoint_file import read_pruner
from secateur.integrations.transformers import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # packages warn about each other

BATCH = 4
SETTINGS: dict[str, Any] = {
    "max_steps": 10,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": BATCH,
    "learning_rate": 1e-3,
    "average_tokens_across_devices": False,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
ACCUMULATED: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.1,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 5,
    "save_steps": 5,
    "logging_steps": 2,
}
BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
}
SCORES = (9.0, 8.0, 5.0, 4.0, 6.0)  # at steps 2, 4, …: the best are those from before the target
LIMIT = 300.0
EARLY = CONFIG | {"criterion": "magnitude", "end_step": 6}
BLOCKS = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}


class OrderedTrainer(Trainer):
    """Trains on batches in order, and notes whether pushed checkpoints have the state of the pruner."""

    pushed: list[bool]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset or self.train_dataset)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.pushed.append((Path(checkpoint_folder) / "pruner.pt").is_file())


def make_trainer(folder: Path, callback: PruningCallback, *, seed: int = 0, **settings: Any) -> OrderedTrainer:
    arguments = TrainingArguments(str(folder), **(SETTINGS | settings))
    if arguments.fsdp:  # accelerate ignores it on CPUs, where all of its code works: let it think of GPUs
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rows, scores = load_sentences(), iter(SCORES)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    data = [row for batch in batches for row in batch * arguments.world_size]  # the same batches for each process
    trainer = OrderedTrainer(
        make_bert(seed),
        arguments,
        train_dataset=data,
        eval_dataset=rows[:8],
        callbacks=[callback],
        compute_metrics=lambda _: {"score": next(scores)},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.pushed = []
    return trainer


def train(folder: Path, *, resume: Path | None = None, config: dict[str, Any] = CONFIG, **settings: Any) -> Any:
    """Return what training ends with: weights, masks, the report, and what was logged."""
    callback = PruningCallback(config)
    trainer = make_trainer(folder, callback, seed=0 if resume is None else 1, **settings)
    trainer.args.push_to_hub = "fsdp" in settings
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    assert callback.pruner is not None
    return {
        "weights": {name: to_whole(weight).detach() for name, weight in trainer.model.named_parameters()},
        "masks": {name: to_whole(mask) for name, mask in callback.pruner.masks.items()},
        "report": callback.report,
        "logs": [(entry["step"], entry["sparsity"]) for entry in trainer.state.log_history],
        "pushed": trainer.pushed,
    }


def fail_to_resume(folder: Path) -> Iterator[str]:
    """Yield why training does not resume without a file, with that of other weights, and with one that is damaged."""
    checkpoint = folder / "checkpoint-5"
    file, other = checkpoint / "pruner.pt", folder / "checkpoint-10" / "pruner.pt"
    for content in (None, other.read_bytes(), b"nothing"):
        dist.barrier()
        if dist.get_rank() == 0:
            file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        dist.barrier()
        with pytest.raises(StateError) as caught:
            train(folder, resume=checkpoint, **ACCUMULATED, fsdp=True, fsdp_config=BLOCKS)
        yield str(caught.value)


def train_sharded(folder: Path) -> dict[str, Any]:
    ends, fsdp = {}, {"fsdp": True, "fsdp_config": BLOCKS}
    ends["whole"] = train(folder, **ACCUMULATED, **fsdp)
    ends["resumed"] = train(folder, resume=folder / "checkpoint-5", **ACCUMULATED, **fsdp)
    ends["best"] = train(folder / "best", **BEST, **fsdp, config=EARLY)
    return {**ends, "failed": list(fail_to_resume(folder))}


def count_revived(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> int:
    return sum(int(weights[f"{name}.weight"][~mask].count_nonzero()) for name, mask in masks.items())


def test_sharded_training_is_training_in_one_process(tmp_path: Path) -> None:
    results = run_ranks(train_sharded, 2, tmp_path / "sharded", limit=LIMIT)
    expected = train(tmp_path / "alone", **ACCUMULATED)
    best = train(tmp_path / "best", **BEST, config=EARLY)
    for rank, found in enumerate(results):
        for name, end in (("whole", expected), ("resumed", found["whole"]), ("best", best)):
            torch.testing.assert_close(found[name]["masks"], end["masks"])
            assert found[name]["report"] == end["report"]
            # Gradients are clipped by norms that are added up in another order.
            torch.testing.assert_close(found[name]["weights"], end["weights"], rtol=0, atol=1e-6 * (name == "whole"))
            assert found[name]["logs"] == end["logs"]
        assert found["whole"]["pushed"] == ([True, True] if rank == 0 else [])
        missing, other, damaged = found["failed"]
        assert "must have a file pruner.pt, the state of its pruner" in missing
        assert "checkpoint-5/pruner.pt belongs to other weights than those that were loaded: 'bert.encoder" in other
        assert "checkpoint-5/pruner.pt cannot be read" in damaged
    folder = tmp_path / "sharded" / "checkpoint-10"
    masks = read_pruner(folder / "pruner.pt").state["runs"][0]["masks"]
    torch.testing.assert_close(masks, expected["masks"])
    assert count_revived(load_file(folder / "model.safetensors"), masks) == 0

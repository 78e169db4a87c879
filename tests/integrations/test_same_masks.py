"""A small BERT on a text task ends with the same masks and weights in Trainer, in Lightning and in a plain loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments, default_data_collator

import secateur
from integrations.text_task import load_sentences, make_bert
from secateur.integrations.lightning import PruningCallback as LightningCallback
from secateur.integrations.transformers import PruningCallback as TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS: dict[str, dict[str, Any]] = {
    "4x1": {"pattern": "4x1", "target_sparsity": 0.7, "criterion": "snip_momentum", "end_step": 14},
    "2:4": {"pattern": "2:4", "criterion": "magnitude", "start_step": 3, "end_step": 12, "pruning_frequency": 3},
}
EPOCHS, BATCH, RATE, CLIP = 2, 8, 2e-3, 0.5

Result = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""The masks and the weights at the end."""


def make_loader() -> DataLoader[Any]:
    return DataLoader(load_sentences(), batch_size=BATCH, collate_fn=default_data_collator)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)


def run_plain_loop(config: dict[str, Any], folder: Path) -> Result:  # noqa: ARG001
    model = make_bert()
    optimizer = make_optimizer(model)
    pruner = secateur.prepare(model, config, optimizer)
    for _ in range(EPOCHS):
        for batch in make_loader():
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    pruner.finalize()
    return pruner.masks, model.state_dict()


def run_trainer(config: dict[str, Any], folder: Path) -> Result:
    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset or self.train_dataset)

    model, callback = make_bert(), TrainerCallback(config)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        optim="adamw_torch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    OrderedTrainer(model, arguments, train_dataset=load_sentences(), callbacks=[callback]).train()
    assert callback.pruner is not None
    return callback.pruner.masks, model.state_dict()


def run_lightning(config: dict[str, Any], folder: Path) -> Result:
    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_bert()

        def training_step(self, batch: Any) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return make_optimizer(self)

    module, callback = Classifier(), LightningCallback(config, submodule="model")
    module.train()
    lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[callback],
        gradient_clip_val=CLIP,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, make_loader())
    assert callback.pruner is not None
    return callback.pruner.masks, module.model.state_dict()


def list_differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> Iterator[str]:
    assert left.keys() == right.keys()
    return (name for name, value in left.items() if not torch.equal(value, right[name]))


@pytest.mark.parametrize("config", CONFIGS)
def test_masks_and_weights_are_the_same_bit_for_bit(config: str, tmp_path: Path) -> None:
    masks, weights = run_plain_loop(CONFIGS[config], tmp_path)
    assert 0.4 < sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values()) < 0.8
    for run in (run_trainer, run_lightning):
        found_masks, found_weights = run(CONFIGS[config], tmp_path)
        assert list(list_differences(found_masks, masks)) == []
        assert list(list_differences(found_weights, weights)) == []

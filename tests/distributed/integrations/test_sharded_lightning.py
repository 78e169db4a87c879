"""Prune a module that FSDP2 shards with Lightning: as in one process, with either form of checkpoint."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, TensorDataset

from distributed.models import make_model, shard, to_whole
from distributed.processes import run_ranks
from integrations.schedule import CONFIG
from secateur.integrations.lightning import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")

RANKS = 2
LIMIT = 300.0


class Net(lightning.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = make_model()
        for weight in self.layers.parameters():
            weight.data += seed

    def training_step(self, batch: Any) -> Any:
        inputs, targets = batch
        return (self.layers(inputs) - targets).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class ShardedNet(Net):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        shard(self.layers, mesh=self.device_mesh["data_parallel"])


def make_loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 8, generator=generator), torch.randn(24, 2, generator=generator))
    return DataLoader(data, batch_size=4)


def fit(net: Net, *callbacks: Any, path: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Return what `fit` ends with; all processes get the same batches."""
    callback = PruningCallback(CONFIG)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback, *callbacks],
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(net, make_loader(), ckpt_path=path)
    assert callback.pruner is not None
    return {
        "weights": {name: to_whole(weight).detach() for name, weight in net.named_parameters()},
        "masks": {name: to_whole(mask) for name, mask in callback.pruner.masks.items()},
        "report": callback.report,
        "sparsity": float(trainer.callback_metrics["sparsity"]),
    }


def fit_sharded(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    ends = []
    for is_divided in (True, False):
        saver = ModelCheckpoint(folder / str(is_divided), filename="{epoch}", save_top_k=-1)
        options: dict[str, Any] = {"data_parallel_size": RANKS, "tensor_parallel_size": 1}
        options["save_distributed_checkpoint"] = is_divided
        whole = fit(ShardedNet(), saver, strategy=ModelParallelStrategy(**options), devices=RANKS)
        path = folder / str(is_divided) / "epoch=0.ckpt"
        resumed = fit(ShardedNet(1), path=path, strategy=ModelParallelStrategy(**options), devices=RANKS)
        ends.append((whole, resumed))
    return ends


def test_sharded_module_is_pruned_as_in_one_process(tmp_path: Path) -> None:
    results = run_ranks(fit_sharded, RANKS, tmp_path, limit=LIMIT)
    expected = fit(Net())
    for whole, resumed in (pair for pairs in results for pair in pairs):
        for found, end, tolerance in ((whole, expected, 1e-6), (resumed, whole, 0.0)):
            torch.testing.assert_close(found["masks"], end["masks"])
            torch.testing.assert_close(found["weights"], end["weights"], rtol=0, atol=tolerance)  # of clipped gradients
            assert found["report"] == end["report"]
            assert found["sparsity"] == end["sparsity"] == 0.5
    saved = torch.load(tmp_path / "False" / "epoch=1.ckpt", weights_only=True)
    masks = saved["callbacks"]["PruningCallback"]["pruner"]["runs"][0]["masks"]
    torch.testing.assert_close(masks, expected["masks"])
    assert all(int(saved["state_dict"][f"{name}.weight"][~mask].count_nonzero()) == 0 for name, mask in masks.items())

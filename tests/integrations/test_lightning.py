"""Prune with Lightning: automatic and manual optimization, several calls of fit, checkpoints, and clear errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from integrations.schedule import CONFIG
from secateur.errors import ConfigError, StateError, UnsupportedModelError
from secateur.integrations.lightning import PruningCallback
from tiny_models import mlp

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns about small loaders

BATCHES = 6


class Net(lightning.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = mlp(seed)
        self.scores: Iterator[float] = iter(())

    def training_step(self, batch: Any) -> Any:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layers(inputs), labels)

    def validation_step(self, batch: Any) -> None:  # noqa: ARG002
        self.log("score", next(self.scores))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class ManualNet(Net):
    """Two optimizers with pruned weights each; the second one makes every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.batches = 0

    def training_step(self, batch: Any) -> None:
        loss = super().training_step(batch)
        first, second = self.optimizers()
        self.manual_backward(loss)
        self.batches += 1
        for optimizer in (first, second) if self.batches % 2 else (first,):
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        parts = [self.layers[0].parameters(), [*self.layers[2].parameters(), *self.layers[4].parameters()]]
        return [torch.optim.SGD(parameters, lr=0.1, momentum=0.9) for parameters in parts]


def make_loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 16, generator=generator), torch.randint(4, (24,), generator=generator))
    return DataLoader(data, batch_size=4)


def make_trainer(folder: Path, *callbacks: Any, **settings: Any) -> lightning.Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(callbacks=list(callbacks), **(defaults | settings))


def count_revived(net: Net, callback: PruningCallback) -> int:
    assert callback.pruner is not None
    return sum(
        int(net.get_submodule(name).weight[~mask].count_nonzero()) for name, mask in callback.pruner.masks.items()
    )


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"gradient_clip_val": 0.1, "max_epochs": 4}
    callback, net = PruningCallback(CONFIG), Net()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(tmp_path, callback, saver, **settings)
    trainer.fit(net, make_loader())
    report = callback.report
    assert report is not None
    assert (report.step, report.sparsity, report.is_complete) == (4 * BATCHES, 0.5, True)
    assert list(report.dense) == ["layers.4"]
    assert count_revived(net, callback) == 0
    assert trainer.callback_metrics["sparsity"] == 0.5

    path = tmp_path / "epoch=0.ckpt"
    saved = torch.load(path, weights_only=True)
    masks = saved["callbacks"]["PruningCallback"]["pruner"]["runs"][0]["masks"]
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    assert all(int(saved["state_dict"][f"{name}.weight"][~mask].count_nonzero()) == 0 for name, mask in masks.items())

    resumed, other = PruningCallback(CONFIG), Net(seed=1)
    trainer = make_trainer(tmp_path, resumed, **settings)
    trainer.fit(other, make_loader(), ckpt_path=path)
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))
    assert resumed.report == report

    other_config = PruningCallback(CONFIG | {"target_sparsity": 0.75})
    with pytest.raises(StateError, match=r"another configuration: target_sparsity was 0.5, is 0.75"):
        make_trainer(tmp_path, other_config, **settings).fit(Net(), make_loader(), ckpt_path=path)
    del saved["callbacks"]["PruningCallback"]
    torch.save(saved, path)
    with pytest.raises(StateError, match=r"must have the state of a PruningCallback, and has none"):
        make_trainer(tmp_path, PruningCallback(CONFIG), **settings).fit(Net(), make_loader(), ckpt_path=path)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback, net = PruningCallback(CONFIG, submodule="layers"), Net()
    make_trainer(tmp_path, callback, accumulate_grad_batches=2).fit(net, make_loader())
    assert callback.report is not None
    assert (callback.report.step, callback.report.sparsity) == (9, 0.5)
    assert list(callback.report.dense) == ["4"]


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    callback, net = PruningCallback(CONFIG | {"criterion": "magnitude"}), ManualNet()
    make_trainer(tmp_path, callback, max_epochs=3).fit(net, make_loader())
    assert callback.report is not None
    assert (callback.report.step, callback.report.sparsity) == (9, 0.5)  # of 18 batches
    assert count_revived(net, callback) == 0


def test_three_successive_calls(tmp_path: Path) -> None:
    whole, expected = PruningCallback(CONFIG | {"criterion": "magnitude"}), Net()
    make_trainer(tmp_path, whole).fit(expected, make_loader())
    callback, net = PruningCallback(CONFIG | {"criterion": "magnitude"}, finalize=False), Net()
    trainer = make_trainer(tmp_path, callback)
    steps = []
    for epochs in (1, 2, 3):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(net, make_loader())
        assert callback.pruner is not None
        assert callback.report is None
        steps.append(callback.pruner.step)
        assert count_revived(net, callback) == 0
    assert steps == [6, 12, 18]
    report = callback.finalize()
    assert report.sparsity == 0.5
    assert whole.report is not None
    assert report.layers != ()
    assert report.is_complete


def test_fit_after_the_end_is_refused(tmp_path: Path) -> None:
    callback, net = PruningCallback(CONFIG), Net()
    trainer = make_trainer(tmp_path, callback)
    trainer.fit(net, make_loader())
    trainer.fit_loop.max_epochs = 4
    with pytest.raises(StateError, match=r"finalized after step 18, and fit\(\) was called again"):
        trainer.fit(net, make_loader())


def test_interrupted_fit_is_continued(tmp_path: Path) -> None:
    class Interrupted(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1 and self.is_first:
                self.is_first = False
                raise ValueError("interrupted")

    net = Interrupted()
    net.is_first = True
    callback = PruningCallback(CONFIG)
    trainer = make_trainer(tmp_path, callback)
    with pytest.raises(ValueError, match="interrupted"):
        trainer.fit(net, make_loader())
    trainer.fit(net, make_loader())
    assert callback.report is not None
    assert (callback.report.step, callback.report.sparsity) == (18, 0.5)


def test_best_checkpoint_has_reached_the_target(tmp_path: Path) -> None:
    callback, net = PruningCallback(CONFIG), Net()
    net.scores = iter([9.0, 5.0, 6.0, 4.0])
    saver = ModelCheckpoint(tmp_path, monitor="score", mode="max", filename="{epoch}")
    settings = {"max_epochs": 4, "limit_val_batches": 1}
    make_trainer(tmp_path, callback, saver, **settings).fit(net, make_loader(), make_loader())
    assert Path(saver.best_model_path).name == "epoch=2.ckpt"
    best = Net()
    best.load_state_dict(torch.load(saver.best_model_path, weights_only=True)["state_dict"])
    assert count_revived(best, callback) == 0


def test_schedule_must_fit_into_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"within the 6 optimizer steps of fit\(\).*step 8.*max_epochs"):
        make_trainer(tmp_path, PruningCallback(CONFIG), max_epochs=1).fit(Net(), make_loader())
    make_trainer(tmp_path, PruningCallback(CONFIG), fast_dev_run=True).fit(Net(), make_loader())


def test_unknown_number_of_steps_is_no_error(tmp_path: Path) -> None:
    callback = PruningCallback(CONFIG)
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2})
    make_trainer(tmp_path, callback, accumulation, max_epochs=2).fit(Net(), make_loader())
    assert callback.report is not None
    assert (callback.report.step, callback.report.sparsity) == (9, 0.5)


def test_state_that_is_loaded_to_validate_is_ignored(tmp_path: Path) -> None:
    callback, trainer = PruningCallback(CONFIG), make_trainer(tmp_path)
    assert callback.state_dict() == {}
    state = {"pruner": {}, "first_step": 3}
    for stage, expected in (("validate", {}), ("fit", state)):
        callback.setup(trainer, Net(), stage)
        callback.load_state_dict(state)
        assert callback.state_dict() == expected


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"more than one stateful callback of type `PruningCallback`"):
        make_trainer(tmp_path, PruningCallback(CONFIG), PruningCallback(CONFIG))


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy"])
def test_strategies_that_do_not_keep_each_weight_are_refused_at_once(tmp_path: Path, name: str) -> None:
    kind = type(name, (lightning.pytorch.strategies.SingleDeviceStrategy,), {})
    trainer = make_trainer(tmp_path, PruningCallback(CONFIG), strategy=kind("cpu"), accelerator="auto")
    with pytest.raises(UnsupportedModelError, match=f"{name} cannot be used with PruningCallback"):
        trainer.fit(Net(), make_loader())

"""Prune with the Trainer of transformers: exact zeros in checkpoints, the same bits after a resume, clear errors."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, default_data_collator

from integrations.schedule import CONFIG
from integrations.text_task import load_sentences, make_bert
from secateur.errors import ConfigError, LayerError, StateError, UnsupportedModelError
from secateur.integrations.pytorch.checkpoint_file import read_pruner
from secateur.integrations.transformers import DistillationMixin, PruningCallback
from secateur.training.distillation import Distillation

pytestmark = pytest.mark.filterwarnings("ignore")  # packages warn about each other

STEPS = 12


def make_trainer(folder: Path, *callbacks: PruningCallback, **arguments: Any) -> Trainer:
    model = arguments.pop("model", None) or make_bert()
    optimizers = arguments.pop("optimizers", (None, None))
    compute_metrics = arguments.pop("compute_metrics", None)
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model,
        TrainingArguments(str(folder), **(settings | arguments)),
        train_dataset=load_sentences(),
        eval_dataset=load_sentences()[:8],
        optimizers=optimizers,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )


def count_revived(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> int:
    return sum(int(weights[f"{name}.weight"][~mask].count_nonzero()) for name, mask in masks.items())


def equal_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    return all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def test_checkpoints_hold_exact_zeros_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 6, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    settings |= {"eval_strategy": "steps", "eval_steps": 5, "logging_steps": 1, "lr_scheduler_type": "linear"}
    callback = PruningCallback(CONFIG)
    trainer = make_trainer(tmp_path, callback, **settings)
    trainer.train()
    report = callback.report
    assert report is not None
    assert callback.pruner is not None
    assert (report.sparsity, report.step, report.is_complete) == (0.5, STEPS, True)
    assert count_revived(trainer.model.state_dict(), callback.pruner.masks) == 0
    logged = {entry["step"]: entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry}
    assert [logged[step] > 0 for step in (1, 3, 4)] == [False, False, True]
    assert logged[7] < logged[8] == logged[12] == 0.5

    folder = tmp_path / "checkpoint-6"
    masks = read_pruner(folder / "pruner.pt").state["runs"][0]["masks"]
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    assert count_revived(load_file(folder / "model.safetensors"), masks) == 0

    resumed = PruningCallback(CONFIG)
    other = make_trainer(tmp_path, resumed, model=make_bert(seed=1), **settings)
    other.train(resume_from_checkpoint=str(folder))
    assert equal_weights(other.model, trainer.model)
    assert resumed.report == report

    moved = shutil.copytree(folder, tmp_path / "moved" / "checkpoint-6")
    shutil.copytree(tmp_path / "checkpoint-12", folder, dirs_exist_ok=True)  # of the same name, with other weights
    other = make_trainer(tmp_path, PruningCallback(CONFIG), **settings)
    with pytest.raises(StateError, match=r"checkpoint-6.*belongs to other weights.*differ"):
        other.train(resume_from_checkpoint=str(moved))
    resumed = PruningCallback(CONFIG, resume_from_checkpoint=moved)
    other = make_trainer(tmp_path, resumed, **settings)
    other.train(resume_from_checkpoint=str(moved))
    assert equal_weights(other.model, trainer.model)

    other = make_trainer(tmp_path, PruningCallback(CONFIG | {"end_step": 9}, resume_from_checkpoint=moved))
    with pytest.raises(StateError, match=r"another configuration: end_step was 8, is 9"):
        other.train(resume_from_checkpoint=str(moved))
    other = make_trainer(tmp_path, PruningCallback(CONFIG), resume_from_checkpoint=str(moved))
    (moved / "pruner.pt").write_bytes(b"nothing")
    with pytest.raises(StateError, match=r"pruner.pt cannot be read"):
        other.train(resume_from_checkpoint=str(moved))
    torch.save({"state": 1}, moved / "pruner.pt")
    with pytest.raises(StateError, match=r"must be a file that a PruningCallback saved, found something else"):
        other.train(resume_from_checkpoint=str(moved))
    (folder / "pruner.pt").unlink()
    (moved / "pruner.pt").unlink()
    with pytest.raises(StateError, match=r"must have a file pruner.pt.*does not exist"):
        other.train(resume_from_checkpoint=str(moved))


def test_best_model_has_reached_the_target_and_its_own_masks(tmp_path: Path) -> None:
    scores = iter([9.0, 8.0, 5.0, 6.0, 4.0, 3.0])  # at steps 2, 4, …: the best are those from before the target
    callback = PruningCallback(CONFIG | {"end_step": 6, "criterion": "magnitude"})
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trainer = make_trainer(
        tmp_path,
        callback,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=lambda _: {"score": next(scores)},
        **settings,
    )
    trainer.train()
    assert trainer.state.best_global_step == 8
    assert callback.report is not None
    assert callback.pruner is not None
    assert (callback.report.step, callback.report.sparsity) == (8, 0.5)
    assert count_revived(trainer.model.state_dict(), callback.pruner.masks) == 0
    saved = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in saved.items())


def test_skipped_steps_do_not_count(tmp_path: Path) -> None:
    callback = PruningCallback(CONFIG)
    trainer = make_trainer(tmp_path, callback, max_grad_norm=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-63)
    trainer.accelerator.scaler = scaler
    trainer.train()
    assert callback.report is not None
    assert callback.report.sparsity == 0.5
    assert 0 < STEPS - callback.report.step < 4


def test_run_over_several_calls(tmp_path: Path) -> None:
    callback = PruningCallback(CONFIG, finalize=False)
    with pytest.raises(StateError, match=r"no run to finalize. Call train\(\)"):
        callback.finalize()
    trainer = make_trainer(tmp_path, callback, max_steps=5)
    trainer.train()
    assert callback.pruner is not None
    assert callback.report is None
    before = callback.pruner.masks
    trainer.train()
    report = callback.finalize()
    assert (report.step, report.sparsity) == (10, 0.5)
    assert not any((mask & ~before[name]).any() for name, mask in callback.pruner.masks.items())


def test_second_call_after_the_end_is_refused(tmp_path: Path) -> None:
    callback = PruningCallback({"target_sparsity": 0.5, "end_step": 1})
    trainer = make_trainer(tmp_path, callback, max_steps=1)
    trainer.train()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(StateError, match=r"finalized after step 1, and train\(\) was called again.*finalize=False"):
        trainer.train()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_call_after_an_interrupted_one_starts_over(tmp_path: Path) -> None:
    callback = PruningCallback(CONFIG)
    trainer = make_trainer(tmp_path, callback)
    step = trainer.training_step

    def interrupt(*arguments: Any, **named: Any) -> torch.Tensor:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    trainer.training_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.training_step = step
    trainer.train()
    assert callback.report is not None
    assert (callback.report.step, callback.report.sparsity) == (STEPS, 0.5)


@pytest.mark.parametrize("is_same", [True, False])
def test_two_callbacks_are_refused(tmp_path: Path, *, is_same: bool) -> None:
    first = PruningCallback(CONFIG)
    trainer = make_trainer(tmp_path, first, first if is_same else PruningCallback(CONFIG))
    with pytest.raises(StateError, match=r"one PruningCallback, found two"):
        trainer.train()


def test_schedule_must_fit_into_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PruningCallback(CONFIG), max_steps=7)
    with pytest.raises(
        ConfigError, match=r"within the 7 optimizer steps of train\(\).*ends at step 8. Lower end_step, or"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adamw_bnb_8bit", "in its own memory"),
        ("adalomo", "in the backward pass"),
        ("galore_adamw_layerwise", "in the backward pass"),
        ("schedule_free_adamw", "outside of its steps"),
    ],
)
def test_optimizers_that_cannot_be_followed_are_refused_at_once(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"optim='{name}' cannot be used with pruning.*{reason}"):
        make_trainer(tmp_path, PruningCallback(CONFIG), optim=name)


@pytest.mark.parametrize(
    ("name", "value", "config", "problem"),
    [
        ("deepspeed", "zero.json", None, "deepspeed cannot be used with pruning: it trains copies"),
        ("deepspeed_plugin", object(), None, "deepspeed cannot be used with pruning: it trains copies"),
        ("fsdp_plugin_args", {"fsdp_version": 1}, None, "fsdp version 1 cannot be used with pruning"),
        ("fsdp", True, {"xla": True}, "fsdp cannot be used with pruning on xla devices"),
    ],
)
def test_sharding_of_other_kinds_is_refused_at_once(
    tmp_path: Path, name: str, value: Any, config: dict[str, Any] | None, problem: str
) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    arguments.fsdp_config = config
    setattr(arguments, name, value)
    with pytest.raises(UnsupportedModelError, match=rf"(?i)^{problem}"):
        PruningCallback(CONFIG).on_init_end(arguments, None, None)  # type: ignore[arg-type]


def test_optimizer_without_the_weights_is_named(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(make_bert().parameters(), lr=0.1)  # of another model
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    trainer = make_trainer(tmp_path, PruningCallback(CONFIG), optimizers=(optimizer, scheduler))
    with pytest.raises(LayerError, match=r"does not have the weights of 13 of 13 layers") as caught:
        trainer.train()
    assert "for optim='adamw_torch" in caught.value.__notes__[0]


def test_optimizer_whose_steps_are_not_seen_is_refused(tmp_path: Path) -> None:
    model = make_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = lambda closure=None: None  # type: ignore[assignment,method-assign,misc]  # noqa: ARG005
    scheduler = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(model.parameters(), lr=0.1))
    trainer = make_trainer(tmp_path, PruningCallback(CONFIG), model=model, optimizers=(optimizer, scheduler))
    with pytest.raises(UnsupportedModelError, match=r"The step of the optimizer SGD must call the hooks"):
        trainer.train()


def test_file_is_there_before_a_checkpoint_is_pushed_also_of_a_search(tmp_path: Path) -> None:
    callback = PruningCallback(CONFIG, finalize=False)
    trainer = make_trainer(tmp_path, callback, max_steps=4)
    trainer.train()
    callback.on_push_begin(trainer.args, trainer.state, trainer.control)  # of the final model, without a checkpoint
    assert not list(tmp_path.rglob("pruner.pt"))
    folder = tmp_path / "run-1" / "checkpoint-4"
    folder.mkdir(parents=True)
    trainer.state.is_hyper_param_search = True
    callback.on_push_begin(trainer.args, trainer.state, trainer.control)
    assert read_pruner(folder / "pruner.pt").state["step"] == 4


def test_distillation_is_added_to_the_training_loss_only(tmp_path: Path) -> None:
    class DistillingTrainer(DistillationMixin, Trainer):
        pass

    model, teacher, batch = make_bert(), make_bert(seed=1).eval(), default_data_collator(load_sentences()[:6])
    distillation = Distillation(teacher, temperature=1.0, weight=0.5)
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, gradient_accumulation_steps=4)
    trainer = DistillingTrainer(model, arguments, distillation=distillation)
    own = model(**batch)
    expected = distillation(own.loss, own, **batch)
    found, outputs = trainer.compute_loss(model.train(), batch, return_outputs=True)
    assert torch.equal(outputs.logits, own.logits)
    torch.testing.assert_close(found, expected)
    # With a number of items, the loss is that of 4 accumulated batches in all, so the distance counts a quarter.
    trainer.current_gradient_accumulation_steps = 4
    shared = Trainer.compute_loss(trainer, model, batch, num_items_in_batch=torch.tensor(24))
    found = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(24))
    torch.testing.assert_close(found, shared / 2 + (expected - own.loss / 2) / 4)
    torch.testing.assert_close(trainer.compute_loss(model.eval(), batch), own.loss)

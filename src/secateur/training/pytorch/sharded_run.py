"""The run of one pattern whose weights are divided over processes, and its state for distributed checkpoints.

``torch.distributed.checkpoint`` loads only the entries that a state already has, so the state of a sharded run always
has the same tensors, also before the first update. Masks, and what is known of units, are DTensors; they can be loaded
with another number of processes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur._array import Array, to_numpy
from secateur.distributed.pytorch.lockstep import check_lockstep
from secateur.distributed.pytorch.shards import is_sharded
from secateur.errors import StateError
from secateur.masking.run_options import RunOptions
from secateur.patterns import BasePattern
from secateur.training.pytorch.run import PytorchRun
from secateur.training.pytorch.sharded_weight import ShardedLatentParameter, ShardedParameter, divide_pattern
from secateur.training.pytorch.weight import TrainedParameter
from secateur.training.resume import refuse_other_runs

__all__ = ["ShardedRun", "make_run", "unpack_state"]

UNIT_MASKS = ("keep", "condemned_keep")


class ShardedRun(PytorchRun):
    """The scores and masks of the layers of one pattern, some of which are divided over processes.

    All processes must call each method, because most of them communicate.
    """

    def __init__(
        self, pattern: BasePattern, weights: Mapping[str, TrainedParameter], options: RunOptions | None = None
    ) -> None:
        super().__init__(pattern, weights, options)
        sharded = {name: weight for name, weight in self.weights.items() if isinstance(weight, ShardedParameter)}
        for layer, weight in sharded.items():
            if weight.parts is not None:
                self.scores.criteria[layer].first_output = weight.parts.rows.start
                if self.growth is not None:
                    self.growth.first_outputs[layer] = weight.parts.rows.start
        self._ranks = dict.fromkeys(ranks for weight in sharded.values() for ranks in weight.layout.ranks)
        reads_steps = self.scores.is_accumulated or self.config.reg_type is not None or self.config.kind == "rigl"
        self._sends_in_steps = reads_steps and not all(weight.is_scored_alone for weight in sharded.values())

    def accumulate_scores(self, step: int, optimizer: Any) -> None:
        """See `PytorchRun.accumulate_scores`."""
        if self._sends_in_steps and step <= self.last_step:
            self._check_lockstep("a step of the optimizer", step - 1)
        super().accumulate_scores(step, optimizer)

    def masks_after(self, step: int) -> dict[str, Array]:
        """See `Run.masks_after`. A ranking reads scores several times, and collects the rows that they need once."""
        if self.updater.changes_masks(step):
            self._check_lockstep("a mask update", step)
        with self.scores.cache():
            return super().masks_after(step)

    def _check_lockstep(self, action: str, step: int) -> None:
        for ranks in self._ranks:
            check_lockstep(ranks, action, step)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, and plain values as text, for `load_state_dict`."""
        progress = self.updater.progress()
        plain = {
            **self.describe(),
            "progress": {"asked": progress["asked"], "initial": progress["initial"]},
            "keep_mask_layers": dict(self.pattern.keep_mask_layers),
            "has_masks": [name for name, weight in self.weights.items() if weight.mask is not None],
            "has_units": [key for key in UNIT_MASKS if progress[key] is not None],
            "has_scores": list(self.scores.totals),
            "score_shapes": {key: self._get_whole_shape(key) for key in self._totals},
        }
        latent = {name: weight for name, weight in self.weights.items() if isinstance(weight, ShardedLatentParameter)}
        if latent:
            plain["has_latent"] = [name for name, weight in latent.items() if weight.latent is not None]
        if self._grows_by_gradient:
            plain["has_gradients"] = [name for name, weight in self.weights.items() if weight.gradient_sum is not None]
        return {
            "plain": json.dumps(plain),
            **({"latent": {name: weight.show_latent() for name, weight in latent.items()}} if latent else {}),
            **({"gradients": self._show_gradient_sums()} if self._grows_by_gradient else {}),
            "masks": {name: weight.show_mask() for name, weight in self.weights.items()},
            "scores": {name: self._save(name, self._get_total(name), self._get_step(name)) for name in self._totals},
            **{key: self._save_units(progress[key]) for key in UNIT_MASKS[: 1 + (self.config.kind == "progressive")]},
        }

    def check_state(self, state: Mapping[str, Any], step: int) -> None:  # noqa: ARG002
        """See `PytorchRun.check_state`. Only names and shapes are compared, because each process has a part."""
        refuse_other_runs([state], [self.describe()])
        for name, mask in state["masks"].items():
            if name not in self.weights or tuple(mask.shape) != self.weights[name].shape:
                raise StateError(f"The state is damaged. The mask of {name!r} has shape {tuple(mask.shape)}.")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `check_state` accepted, of a sharded run or of one in a single process."""
        self.replace_maximum(state["config"].get("max_sparsity_ratio_per_op"))
        for name, weight in self.weights.items():
            weight.load_mask(state["masks"].get(name))
            if isinstance(weight, ShardedLatentParameter):
                weight.load_latent(state["latent"].get(name))
            weight.load_gradient_sum(state.get("gradients", {}).get(name))
        self.updater.restore({key: self._load_units(value) for key, value in state["progress"].items()})
        self.scores.totals = {
            key: self._load(key, total, self._get_step(key)).reshape(self.scores.shapes[key]).clone()
            for key, total in state["scores"].items()
        }
        self.pattern.keep_mask_layers = dict(state["keep_mask_layers"])

    def _show_gradient_sums(self) -> dict[str, torch.Tensor]:
        dtype = getattr(torch, self.config.score_dtype)
        return {name: weight.show_gradient_sum(dtype) for name, weight in self.weights.items()}

    @property
    def _totals(self) -> dict[str, tuple[int, ...]]:
        return self.scores.shapes if self.scores.is_accumulated and not self.updater.is_locked else {}

    def _get_whole_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of the scores with a key in a run in one process."""
        return (self.pattern.units[key].total,) if self.scores.is_per_unit else self.weights[key].view.canonical_shape

    def _get_step(self, key: str) -> int | None:
        """Return the number of rows of a weight for each row of the scores with a key."""
        weight = self.weights.get(key)
        if not isinstance(weight, ShardedParameter) or not weight.is_divided:
            return None
        return weight.step if self.scores.is_per_unit else 1

    def _get_total(self, key: str) -> torch.Tensor:
        if key in self.scores.totals:
            total: torch.Tensor = self.scores.totals[key]
            return total
        dtype = getattr(torch, self.config.score_dtype)
        return torch.zeros(self._totals[key], dtype=dtype, device=self._get_any_stored(key).device)

    def _save(self, key: str, values: torch.Tensor, step: int | None) -> torch.Tensor:
        weight = self.weights.get(key)
        return values if step is None or not isinstance(weight, ShardedParameter) else weight.save_rows(values, step)

    def _load(self, key: str, saved: torch.Tensor, step: int | None) -> torch.Tensor:
        weight = self.weights.get(key)
        loaded = saved if step is None or not isinstance(weight, ShardedParameter) else weight.load_rows(saved, step)
        return loaded.to(self._get_any_stored(key).device)

    def _get_unit_step(self, name: str) -> int | None:
        weight = self.weights.get(name)
        return weight.step if isinstance(weight, ShardedParameter) else None

    def _save_units(self, kept: Mapping[str, Array] | None) -> dict[str, torch.Tensor]:
        """Return one boolean per unit as tensors; ``None``: all are kept."""
        saved = {}
        for name, units in self.pattern.units.items():
            stored = self._get_any_stored(name)
            flags = (
                torch.ones(units.count, dtype=torch.bool, device=stored.device)
                if kept is None
                else self.pattern.framework.from_array(kept[name], stored)
            )
            saved[name] = self._save(name, flags, self._get_unit_step(name))
        return saved

    def _load_units(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        tensors = {name: self._load(name, kept, self._get_unit_step(name)) for name, kept in value.items()}
        return {
            name: self.pattern.framework.to_array(torch.from_numpy(to_numpy(kept).copy()).to(kept.device))
            for name, kept in tensors.items()
        }


def make_run(pattern: BasePattern, weights: Mapping[str, TrainedParameter], options: RunOptions | None) -> PytorchRun:
    """Make the run of a pattern, according to whether its weights are sharded."""
    kind = ShardedRun if any(isinstance(weights[name], ShardedParameter) for name in pattern.views) else PytorchRun
    return kind(divide_pattern(pattern, weights, options), weights, options)


def unpack_state(state: Any) -> Any:
    """Return the state of a pruner with the runs of `ShardedRun.state_dict` in the form of other runs.

    Examples:
        >>> unpack_state({"runs": []})
        {'runs': []}
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("runs"), list):
        return state
    return {**state, "runs": [_unpack_run(run) for run in state["runs"]]}


def _unpack_run(run: Any) -> Any:
    if not isinstance(run, Mapping) or not isinstance(run.get("plain"), str):
        return run
    plain = json.loads(run["plain"])
    shapes = plain.get("score_shapes", {})
    units = {
        key: {name: _restore_shape(flags, (-1,)) for name, flags in run[key].items()}
        if key in plain["has_units"]
        else None
        for key in UNIT_MASKS
    }
    return {
        "config": plain["config"],
        "shapes": plain["shapes"],
        **{
            key: {name: run[key][name] for name in plain[f"has_{key}"]}
            for key in ("latent", "gradients")
            if f"has_{key}" in plain
        },
        "masks": {name: run["masks"][name] for name in plain["has_masks"]},
        "progress": {**units, **plain["progress"]},
        "scores": {name: _restore_shape(run["scores"][name], shapes.get(name)) for name in plain["has_scores"]},
        "keep_mask_layers": plain["keep_mask_layers"],
    }


def _restore_shape(saved: Any, shape: Sequence[int] | None) -> Any:
    """Return a whole tensor of `ShardedParameter.save_rows` in the shape that it has in one process, if it fits."""
    if shape is None or not isinstance(saved, torch.Tensor) or is_sharded(saved):
        return saved
    return saved.reshape(tuple(shape)) if shape == (-1,) or math.prod(shape) == saved.numel() else saved

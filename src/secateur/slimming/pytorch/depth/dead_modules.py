"""Find modules that have no effect once branches are removed, such as the norm before one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._calls.pytorch.output_snapshot import OutputSnapshot, measure_difference
from secateur._resizing.pytorch import BranchLayout
from secateur.errors import CalibrationError
from secateur.slimming.pytorch.depth.branch_search import Branch, replace_branches
from secateur.slimming.pytorch.depth.constant_outputs import observe_outputs
from secateur.slimming.pytorch.journal import Journal

__all__ = ["find_dead_modules"]


def find_dead_modules(model: nn.Module, branches: Collection[Branch], example: ExampleRun) -> dict[str, BranchLayout]:
    """Return the outermost modules whose weights have no effect without some branches. The model is not modified.

    Weights that had no effect before are not considered, because gradients do not capture every effect.
    """
    journal = Journal()
    try:
        before = example.find_effective()
        replace_branches(model, branches, journal)
        dead = before - example.find_effective()
        names = [name for name, module in model.named_modules() if name and _is_dead(module, dead)]
        outputs = observe_outputs(model, names, example)
        expected = example.run()
    except CalibrationError:
        return {}
    finally:
        journal.roll_back()
    found: dict[str, BranchLayout] = {}
    for name in names:
        if name in outputs and not any(name.startswith(f"{other}.") for other in found):
            found[name] = replace(outputs[name].layout, bias=None)
    if _is_equal_without(model, branches, found, example, expected):
        return found
    accepted: dict[str, BranchLayout] = {}
    for name, layout in found.items():
        if _is_equal_without(model, branches, accepted | {name: layout}, example, expected):
            accepted[name] = layout
    return accepted


def _is_dead(module: nn.Module, dead: Collection[int]) -> bool:
    own = [id(weight) for weight in module.parameters()]
    return bool(own) and all(weight in dead for weight in own)


def _is_equal_without(
    model: nn.Module,
    branches: Collection[Branch],
    dead: dict[str, BranchLayout],
    example: ExampleRun,
    expected: OutputSnapshot,
) -> bool:
    journal = Journal()
    try:
        replace_branches(model, branches, journal, dead)
        return measure_difference(expected, example.run(), min_size=1.0) <= example.tolerance
    except CalibrationError:
        return False
    finally:
        journal.roll_back()

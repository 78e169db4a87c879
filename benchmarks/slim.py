"""Compare the removal of channels and heads with Torch-Pruning and torch-kirigami.

Each library cuts the same units out of the small models of ``tests/zoo.py``. Run ``pip install -e ".[benchmark]"`` and
``python benchmarks/slim.py``. Other outputs mean a wrong cut, or other units than those that are zero.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import secateur
from secateur.graph import Graph, Role, trace

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from graph.probing import prunable, run
from zoo import ZOO, Exhibit

Cut = Callable[[nn.Module, Exhibit, Graph], None]

TOLERANCE = 1e-4


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    libraries: dict[str, Cut] = {"Secateur": cut_with_secateur}
    if importlib.util.find_spec("torch_pruning") is not None:
        libraries["Torch-Pruning"] = cut_with_torch_pruning
    if importlib.util.find_spec("torch_kirigami") is not None:
        libraries["torch-kirigami"] = cut_with_kirigami
    print(f"{'model':24}" + "".join(f"{name:>24}" for name in libraries))
    totals: dict[str, Counter[str]] = {name: Counter() for name in libraries}
    seconds = dict.fromkeys(libraries, 0.0)
    for name, exhibit in ZOO.items():
        if not exhibit.channels | exhibit.heads:
            continue
        cells = []
        for library, cut in libraries.items():
            start = time.perf_counter()
            outcome = try_cut(exhibit, cut)
            seconds[library] += time.perf_counter() - start
            totals[library][outcome] += 1
            cells.append(outcome)
        print(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells))
    for library, counts in totals.items():
        print(f"{library}: {', '.join(f'{n} {what}' for what, n in counts.most_common())}; {seconds[library]:.1f} s")


def try_cut(exhibit: Exhibit, cut: Cut) -> str:
    """Set half of the units of each group to zero, cut them out, and compare the outputs."""
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
    set_units_to_zero(model, graph)
    expected, size = run(model, exhibit.inputs), count_weights(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cut(model, exhibit, graph)
    except secateur.errors.SecateurError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        is_refusal = type(error).__module__.startswith("torch_kirigami")
        return "refused" if is_refusal else f"crashed ({type(error).__name__})"
    try:
        outputs = run(model, exhibit.inputs)
    except Exception as error:  # noqa: BLE001 - the model is broken
        return f"crashes ({type(error).__name__})"
    if count_weights(model) == size:
        return "nothing removed"
    is_same = outputs.shape == expected.shape and (outputs - expected).abs().max() <= TOLERANCE
    return "right" if is_same else "other outputs"


def set_units_to_zero(model: nn.Module, graph: Graph) -> None:
    """Set every second unit of each group that can be removed exactly to zero, in all its slices."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for group in prunable(graph):
            for member in group.members:
                indices = torch.as_tensor(member.index_map.indices()[::2].reshape(-1))
                tensors[member.parameter].index_fill_(member.axis, indices, 0.0)


def count_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cut_with_secateur(model: nn.Module, exhibit: Exhibit, _graph: Graph) -> None:
    secateur.slim(model, example_inputs=exhibit.inputs)


def cut_with_torch_pruning(model: nn.Module, exhibit: Exhibit, graph: Graph) -> None:
    """Prune half of all channels by magnitude. Layers that must keep their outputs, and heads, are declared to it."""
    import torch_pruning

    modules = dict(model.named_modules())
    owners = {
        member.parameter.rpartition(".")[0]: group
        for group in graph.groups
        for member in group.members
        if member.role is Role.PRODUCER
    }
    free = {id(group) for group in prunable(graph)}
    heads = {modules[name]: group.units for name, group in owners.items() if group.kind == "heads" and name}
    torch_pruning.pruner.MagnitudePruner(
        model,
        exhibit.inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None),
        pruning_ratio=0.5,
        ignored_layers=[modules[name] for name, group in owners.items() if name and id(group) not in free],
        num_heads=heads,
        prune_num_heads=bool(heads),
        head_pruning_ratio=0.5 if heads else 0.0,
    ).step()


def cut_with_kirigami(model: nn.Module, exhibit: Exhibit, graph: Graph) -> None:
    """Prune the least channels by magnitude, to the number of weights that remain when all zero units are gone."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

    smaller = exhibit.create()
    set_units_to_zero(smaller, graph)
    secateur.slim(smaller, example_inputs=exhibit.inputs)
    inputs = exhibit.inputs if isinstance(exhibit.inputs, tuple) else (exhibit.inputs,)
    pruner = Pruner(model, graph=DependencyGraph.build(model, args=inputs))
    budget = ParameterBudget(max_params=count_weights(smaller))
    pruner.prune(pruner.discover_candidates(), budget=budget, strategy=Greedy(GroupMagnitude(p=2)))


if __name__ == "__main__":
    main()

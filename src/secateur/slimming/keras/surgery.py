"""Remove units from a Keras model: select, probe, rebuild, verify."""

from __future__ import annotations

import math

import keras

from secateur.errors import CalibrationError, LayerError
from secateur.frameworks.keras import name_variables
from secateur.graph import Graph
from secateur.graph.keras.tracing import record
from secateur.graph.rules import run_rules
from secateur.slimming.keras.code_sizes import CodeSizes, summarize_error
from secateur.slimming.keras.example_run import KerasExampleRun
from secateur.slimming.keras.rebuilding import Attributes, rebuild_model
from secateur.slimming.keras.weights import add_noise, find_zero_units
from secateur.slimming.removal import Removal, find_culprits
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import check_members, describe_groups, explain_obstacle, select_removal

__all__ = ["KerasSurgery"]


class KerasSurgery:
    """Rebuilds a model without the removed units.

    Args:
        model: The model. It is not changed.
        graph: The dependencies between its weights.
        example: Runs models on the example inputs.

    Raises:
        LayerError: The graph belongs to another model.
    """

    def __init__(self, model: keras.Model, graph: Graph, example: KerasExampleRun) -> None:
        self._model, self._graph, self._example = model, graph, example
        self._variables = name_variables(model)
        self._program = record(model, example.inputs)
        self._tracer = run_rules(self._program)
        check_members(graph, {name: tuple(variable.shape) for name, variable in self._variables.items()})

    def perform(self, *, allow_inexact: bool = False, is_uniform: bool = False) -> SlimReport:
        """Remove all units that nothing reads; see `secateur.slim` for the arguments and the exceptions."""
        graph = self._graph
        zeros = find_zero_units(graph, self._variables)
        obstacles = [explain_obstacle(group, allow_inexact=allow_inexact) for group in graph.groups]
        removal = select_removal(graph, zeros, obstacles, is_uniform=is_uniform)
        exact = removal.restrict([number for number in removal.groups if graph.groups[number].inexact is None])
        probe = self._probe(exact) if exact.groups else 0.0
        model, attributes, proof = self._prove(exact)
        inexact = None
        if exact.groups != removal.groups:
            model, attributes = self._rebuild(removal)
            inexact = self._example.measure_change(model)
        return SlimReport(
            groups=tuple(describe_groups(removal, zeros, obstacles)),
            barriers=tuple(map(str, graph.barriers)),
            weights_before=self._model.count_params(),
            weights=model.count_params(),
            probe_difference=probe,
            proof_difference=proof,
            inexact_difference=inexact,
            attributes=attributes,
            config={},
            is_configured=None,
            model=model,
        )

    def _probe(self, removal: Removal) -> float:
        """Add noise to the units to remove, and measure how much the outputs change.

        Raises:
            LayerError: They change; the message names the group.
        """
        change = self._measure_noise(removal)
        if change <= self._example.tolerance:
            return change
        culprits = find_culprits(removal, lambda part: self._measure_noise(part) > self._example.tolerance)
        raise LayerError(
            f"{culprits.describe_groups()}: units that nothing should read change the outputs by {change:.1e}, with "
            f"noise in the weights that compute them. The graph misses a weight or an operation that reads them. "
            f"Nothing was removed; exclude the group from pruning, and report the model."
        )

    def _measure_noise(self, removal: Removal) -> float:
        with add_noise(removal, self._variables):
            return self._example.measure_change(self._model)

    def _rebuild(self, removal: Removal) -> tuple[keras.Model, Attributes]:
        return rebuild_model(self._model, removal, CodeSizes(self._program, self._tracer, removal))

    def _prove(self, removal: Removal) -> tuple[keras.Model, Attributes, float]:
        """Rebuild the model, and check that the outputs equal those of the masked model.

        Raises:
            LayerError: They differ, or the model cannot be rebuilt or fails; the message names the group.
        """
        try:
            return self._rebuild_and_compare(removal)
        except LayerError as error:
            if not removal.groups:
                raise
            culprits = find_culprits(removal, lambda part: self._find_failure(part) is not None)
            reason = self._find_failure(culprits) or error
            raise LayerError(f"{culprits.describe_groups()}: {reason}. Nothing was removed.") from error

    def _rebuild_and_compare(self, removal: Removal) -> tuple[keras.Model, Attributes, float]:
        model, attributes = self._rebuild(removal)
        try:
            change = self._example.measure_change(model)
        except CalibrationError as error:
            raise LayerError(f"without the units, the model fails: {summarize_error(error.__cause__)}") from error
        if not change <= self._example.tolerance or math.isnan(change):
            raise LayerError(f"without the units, the outputs change by {change:.1e}")
        return model, attributes, change

    def _find_failure(self, removal: Removal) -> LayerError | None:
        """Return why the removal of some groups fails; ``None``: it does not."""
        try:
            self._rebuild_and_compare(removal)
        except LayerError as error:
            return error
        return None

"""Resolve tied weights: layers that share a weight are pruned once, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.planning.layers import LayerDecision

__all__ = ["resolve_tied_weights"]


def resolve_tied_weights(decisions: Sequence[LayerDecision]) -> list[LayerDecision]:
    """Prune each shared weight in the first layer that uses it, or not at all if one of its layers must stay dense."""
    dense = {
        decision.candidate.weight_id: decision.candidate.name for decision in decisions if decision.is_requested_dense
    }
    owners: dict[int, str] = {}
    for decision in decisions:
        if decision.reason is None and decision.candidate.weight_id not in dense:
            owners.setdefault(decision.candidate.weight_id, decision.candidate.name)
    return [_resolve(decision, dense, owners) for decision in decisions]


def _resolve(decision: LayerDecision, dense: Mapping[int, str], owners: Mapping[int, str]) -> LayerDecision:
    name, weight = decision.candidate.name, decision.candidate.weight_id
    if decision.reason is None and weight in dense:
        return LayerDecision(decision.candidate, reason=f"shares its weight with {dense[weight]!r}, which stays dense")
    if owners.get(weight, name) != name:
        return LayerDecision(
            decision.candidate, reason=f"shares its weight with {owners[weight]!r} and is pruned there"
        )
    return decision

"""What ``prune`` can be told to use has a public home."""

from types import ModuleType

import pytest

import secateur
from secateur._registry import Registry

HOMES = [
    (secateur.solvers, secateur.solvers.SOLVERS),
    (secateur.refiners, secateur.refiners.REFINERS),
    (secateur.allocations, secateur.allocations.ALLOCATIONS),
]


@pytest.mark.parametrize(("home", "registry"), HOMES, ids=lambda one: getattr(one, "kind", ""))
def test_every_registered_class_can_be_imported(home: ModuleType, registry: Registry[type]) -> None:
    for kind in registry.values():
        assert kind.__name__ in home.__all__
        assert getattr(home, kind.__name__) is kind


@pytest.mark.parametrize(("home", "registry"), HOMES, ids=lambda one: getattr(one, "kind", ""))
def test_each_can_be_made_with_its_own_settings(home: ModuleType, registry: Registry[type]) -> None:  # noqa: ARG001
    for kind in registry.values():
        assert kind() == kind()

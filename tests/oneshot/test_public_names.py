"""Test that all registered solvers, refiners and allocations are public."""

from types import ModuleType

import pytest

import secateur
from secateur._registry import Registry

PACKAGES = [
    (secateur.solvers, secateur.solvers.SOLVERS),
    (secateur.refiners, secateur.refiners.REFINERS),
    (secateur.allocations, secateur.allocations.ALLOCATIONS),
]


@pytest.mark.parametrize(("package", "registry"), PACKAGES, ids=lambda value: getattr(value, "kind", ""))
def test_every_registered_class_can_be_imported(package: ModuleType, registry: Registry[type]) -> None:
    for kind in registry.values():
        assert kind.__name__ in package.__all__
        assert getattr(package, kind.__name__) is kind


@pytest.mark.parametrize(("package", "registry"), PACKAGES, ids=lambda value: getattr(value, "kind", ""))
def test_every_registered_class_has_default_settings(package: ModuleType, registry: Registry[type]) -> None:  # noqa: ARG001
    for kind in registry.values():
        assert kind() == kind()

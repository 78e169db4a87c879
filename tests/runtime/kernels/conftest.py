"""Processors to generate code for."""

from collections.abc import Callable

import pytest

from secateur.runtime.kernels.codegen import TargetMachine, target


@pytest.fixture
def use_processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[TargetMachine], None]:
    """Generate code for a processor whose instructions this one has too."""

    def use(machine: TargetMachine) -> None:
        monkeypatch.setattr(target, "get_host", lambda: machine)
        monkeypatch.setattr(target, "has_amx", target.has_amx.__wrapped__)  # not cached

    return use


@pytest.fixture
def without_amx(use_processor: Callable[[TargetMachine], None]) -> None:
    """The processor of this machine without AMX."""
    host = target.get_host()
    features = ",".join(feature for feature in host.features.split(",") if "amx" not in feature)
    use_processor(TargetMachine(host.triple, host.cpu, features))

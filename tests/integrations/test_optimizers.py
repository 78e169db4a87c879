"""Optimizers that cannot be followed, packages that are missing, and weights that are flattened."""

from importlib import import_module, reload

import pytest
import torch
from torch import nn

from installed_packages import hide_packages
from secateur.errors import MissingPackageError, UnsupportedModelError
from secateur.integrations.pytorch.optimizers import refuse_optimizers
from secateur.integrations.pytorch.sharding import refuse_flat_weights


@pytest.mark.parametrize(
    ("package", "reason"), [("bitsandbytes.optim", "in its own memory"), ("schedulefree", "outside of its steps")]
)
def test_optimizers_of_packages_are_refused_also_in_a_wrapper(package: str, reason: str) -> None:
    class Adam(torch.optim.Adam):
        pass

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    optimizer = Adam([torch.ones(1)])
    refuse_optimizers([Wrapper(optimizer)])
    Adam.__module__ = package
    with pytest.raises(UnsupportedModelError, match=rf"The optimizer Adam of {package[:8]}.*{reason}"):
        refuse_optimizers([torch.optim.SGD([torch.ones(1)], lr=1.0), Wrapper(optimizer)])


def test_flat_weights_are_refused_by_name() -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    refuse_flat_weights(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedModelError, match=r"FullyShardedDataParallel version 1 .*Use version 2"):
        refuse_flat_weights(nn.Sequential(FullyShardedDataParallel()))


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("transformers", "accelerate", "trainer"),
        ("transformers", "transformers", "trainer"),
        ("accelerate", "accelerate", "trainer"),
        ("lightning", "lightning", "lightning"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str
) -> None:
    integration = import_module(f"secateur.integrations.{module}")
    hide_packages(monkeypatch, package)
    with pytest.raises(MissingPackageError, match=rf"needs the package '{package}'.*\[{extra}\]"):
        reload(integration)

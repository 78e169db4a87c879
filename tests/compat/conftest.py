"""What holds for every test of another project's interface."""

import pytest


@pytest.fixture(autouse=True)
def _restore_registries(registries_restored: None) -> None:
    """Forget afterwards what a test registered."""

"""A finished search, which many tests look at."""

import pytest

from searching.nets import search_net
from secateur.searching import SearchReport


@pytest.fixture(scope="session")
def finished_search() -> SearchReport:
    pytest.importorskip("optuna")
    report: SearchReport = search_net(trials=40)
    return report

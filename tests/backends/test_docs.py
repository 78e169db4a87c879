"""What the README and the documentation show of Keras runs under the backend of this process."""

from pathlib import Path

import keras
import pytest

from docs_runner import PAGES, blocks, run_page

BACKEND = keras.backend.backend()
HERE = [page for page in PAGES if any(block.runs_under(BACKEND) for block in blocks(page))]


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("page", HERE, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, BACKEND)

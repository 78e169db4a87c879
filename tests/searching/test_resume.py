"""Tests of interrupted searches: what is kept, what follows, and which files are refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import StateError, StorageError
from secateur.searching import Range, SearchReport
from secateur.searching.study import SearchStudy

pytest.importorskip("optuna")

from searching.nets import Limited, build_net, search_net, similarity


def interrupt() -> None:
    raise KeyboardInterrupt


def list_outcomes(report: Any) -> list[Any]:
    return [(trial.number, trial.values, trial.state, trial.cost, trial.quality) for trial in report.trials]


def test_a_search_that_is_killed_resumes_and_ends_like_one_that_was_not(
    tmp_path: Path, finished_search: SearchReport
) -> None:
    storage, finished = tmp_path / "search.log", 25
    command = [sys.executable, str(Path(__file__).with_name("nets.py")), str(storage), str(finished + 2)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr

    calls = Limited(10**9, interrupt)
    resumed = search_net(calls, storage=storage, trials=len(finished_search.trials))
    fresh = [trial for trial in resumed.trials[finished:] if trial.repeats is None]
    assert 10**9 - calls.calls <= 2 + len(fresh)  # only the running trial was lost
    assert list_outcomes(resumed) == list_outcomes(finished_search)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_each_sampler_goes_on_where_it_was(tmp_path: Path, sampler: str) -> None:
    step = 0.1 if sampler == "grid" else None
    space = {"pattern": ["1x1", "4x1", "2:4"], "sparsity": Range(0.1, 0.9, step), "solver": ["magnitude", "wanda"]}
    options = {"sampler": sampler, "space": space, "trials": 16}
    for calls in (3, 12):
        with pytest.raises(KeyboardInterrupt):
            search_net(Limited(calls, interrupt), storage=tmp_path / "search.log", **options)
    resumed = search_net(storage=tmp_path / "search.log", **options)
    assert list_outcomes(resumed) == list_outcomes(search_net(**options))


def test_more_trials_extend_a_finished_search(tmp_path: Path) -> None:
    storage = tmp_path / "new" / "search.log"
    short = search_net(storage=storage, trials=14)
    calls = Limited(2, interrupt)
    assert list_outcomes(search_net(calls, storage=storage, trials=14)) == list_outcomes(short)
    assert calls.calls == 0  # the dense model, and nothing else
    longer = search_net(storage=storage, trials=18)
    assert list_outcomes(longer)[:14] == list_outcomes(short)
    assert len(longer.trials) == 18
    assert longer.storage == str(storage)


def test_a_record_that_was_not_written_to_its_end_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = tmp_path / "search.log"
    expected = list_outcomes(search_net(storage=storage, trials=6))
    content = storage.read_bytes()
    for end in (len(content) - 3, content.rfind(b"\n", 0, -1) + 1 + 20, 5):
        storage.write_bytes(content[:end])
        caplog.clear()
        assert list_outcomes(search_net(storage=storage, trials=6)) == expected
        assert "Removed an unfinished record" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"notes", b"one line\n", b'{"op_code":0}\nnot JSON\n{"op_code":1}\n', b'{"op_code":77,"worker_id":"a"}\n'],
)
def test_another_file_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    storage = tmp_path / "file.txt"
    storage.write_bytes(content)
    with pytest.raises(StateError, match=r"must be a new file or the journal of a search.*Choose another file"):
        search_net(storage=storage, trials=1)
    assert storage.read_bytes() == content


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be written: .*Choose another file"):
        search_net(storage=tmp_path, trials=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_file_in_use_is_refused(tmp_path: Path) -> None:
    storage = tmp_path / "search.log"

    def search_again() -> None:
        with pytest.raises(StateError, match="belongs to a search that another process is running"):
            search_net(storage=storage, trials=1)

    search_net(Limited(2, search_again), storage=storage, trials=1)


def scale(model: Any) -> float:
    return 2 * similarity(model) + 1


scale.__name__ = "similarity"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"space": {"pattern": "1x1", "sparsity": [0.5]}}, "another space"),
        ({"config": {"excluded_op_names": ["0"]}}, "another space"),
        ({"direction": "minimize"}, "another direction"),
        ({"cost": "bytes"}, "another cost"),
        (
            {"objective": lambda model: similarity(model)},
            "another objective: 'similarity', and this call has '<lambda>'",
        ),
        ({"objective": scale}, "another objective: the dense model had -?0.0, and now has 1.0"),
    ],
)
def test_a_search_of_something_else_is_refused(stored: Path, change: dict[str, Any], found: str) -> None:
    before = stored.read_bytes()
    with pytest.raises(StateError, match=rf"{found}.*To resume it, pass the same.*choose another"):
        search_net(**{"storage": stored, "trials": 2} | change)
    assert stored.read_bytes() == before


def test_a_search_of_another_model_is_refused(stored: Path) -> None:
    import secateur

    model = build_net()
    model[0].bias.data[3] += 1
    with pytest.raises(StateError, match="another model"):
        secateur.search(model, similarity, {"pattern": "2:4"}, storage=stored)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "search.log"
    search_net(storage=path, trials=2)
    return path


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = tmp_path / "search.log"
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="secateur", directions=["maximize", "minimize"])
    study.tell(study.ask(), [0.0, 1.0])
    optuna.logging.set_verbosity(verbosity)
    with pytest.raises(StateError, match="a study of another program"):
        search_net(storage=path, trials=1)


def test_a_trial_that_ends_the_process_again_and_again_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "search.log"
    monkeypatch.setattr(SearchStudy, "undo_start", lambda *_: None)  # as if the process were killed
    for calls in (4, 2, 2):
        with pytest.raises(KeyboardInterrupt):
            search_net(Limited(calls, interrupt), storage=storage, trials=6)
    report = search_net(storage=storage, trials=6)
    assert [trial.state for trial in report.trials] == ["complete"] * 2 + ["failed"] + ["complete"] * 3
    assert report.trials[2].reason == "the process ended during this trial 3 times"


def test_settings_of_the_library_are_restored() -> None:
    import optuna

    before = optuna.logging.get_verbosity(), os.environ.copy()
    search_net(trials=1)
    assert (optuna.logging.get_verbosity(), os.environ.copy()) == before

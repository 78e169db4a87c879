"""Tests of the report of a search: the table, the page, data, and picking a trial."""

import json
import re
from typing import Any

import pytest

from secateur.errors import ConfigError
from secateur.report import render_page
from secateur.report.sections import make_search_front
from secateur.searching import DenseResult, SearchReport, TrialResult
from secateur.searching.trial_result import find_front

pytest.importorskip("jinja2")


def make_trial(number: int, cost: float | None, quality: float | None, **more: Any) -> TrialResult:
    state = "failed" if cost is None or quality is None else "complete"
    return TrialResult(
        **{"number": number, "values": {"sparsity": 0.5}, "state": state} | more, cost=cost, quality=quality
    )


def make_report(*trials: TrialResult, direction: str = "maximize", **more: Any) -> SearchReport:
    settings: dict[str, Any] = {
        "objective": "accuracy",
        "cost": "bytes",
        "dense": DenseResult(quality=0.9, repeated_quality=0.9, cost=100.0),
        "sampler": "tpe",
        "seed": 0,
    }
    return SearchReport(trials=find_front(trials, direction), direction=direction, **settings | more)


TRIALS = (
    make_trial(0, 50.0, 0.8),
    make_trial(1, 20.0, 0.5),
    make_trial(2, 50.0, 0.8),
    make_trial(3, 60.0, 0.7),
    make_trial(4, None, None, reason="ValueError: <b>no</b>"),
    make_trial(5, 80.0, 0.85),
)


def test_the_front_has_no_ties_and_no_dominated_trials() -> None:
    assert [trial.number for trial in make_report(*TRIALS).front] == [1, 0, 5]
    assert [trial.number for trial in make_report(*TRIALS, direction="minimize").front] == [1]


def test_trials_are_picked_within_bounds() -> None:
    report = make_report(*TRIALS)
    assert report.best().number == 5
    assert report.best(max_cost=50).number == 0
    assert report.best(min_quality=0.6).number == 0
    assert report.best(max_cost=79.0, min_quality=0.5).number == 1
    with pytest.raises(ConfigError, match=r"max_cost=10 and min_quality=None. The front has .*0.5 at 20, 0.8 at 50"):
        report.best(max_cost=10)
    losses = make_report(make_trial(0, 10, 2.0), make_trial(1, 20, 1.0), direction="minimize")
    assert (losses.best().number, losses.best(min_quality=2.0).number, losses.best(min_quality=1.5).number) == (1, 0, 1)


def test_the_table_shows_the_front_first_and_says_why_others_have_no_result() -> None:
    text = str(make_report(*TRIALS))
    lines = [line.split() for line in text.splitlines()]
    numbers = [int(line[0]) for line in lines if line and line[0].isdigit() and len(line) > 2 and "=" in "".join(line)]
    assert numbers[:3] == [1, 0, 5]
    assert "failed: ValueError: <b>no</b>" in text
    assert "3 of 6 trials are on the front (1 failed)" in text
    assert "accuracy (maximized), 0.9 when dense; the cost is bytes as saved, 100 when dense" in re.sub(
        r"\s+", " ", text
    )


def test_the_page_shows_each_trial_and_no_code_from_it() -> None:
    page = render_page(make_report(*TRIALS, objective="<i>acc</i>").summarize())
    assert "<b>no" not in page
    assert "<i>acc" not in page
    assert "&lt;b&gt;no" in page
    section = page.split('<section id="search_front">')[1].split("</section>")[0]
    assert section.count("<circle") == 5 + 2  # measured trials, and two keys
    assert section.count("<tr") == 1 + 6
    assert "Size: not measured" not in page


def test_points_are_placed_by_cost_and_quality_and_outliers_at_the_edge() -> None:
    far = make_trial(6, 70.0, -1000.0)
    content = make_search_front(make_report(*TRIALS, far).summarize())
    assert content is not None
    chart = content["chart"]
    by_title = {point["title"].split(":")[0]: point for point in chart["points"]}
    assert by_title["trial 1"]["x"] < by_title["trial 0"]["x"] < by_title["trial 5"]["x"] < chart["dense"]["x"]
    assert by_title["trial 1"]["y"] > by_title["trial 0"]["y"] > by_title["trial 5"]["y"] > chart["dense"]["y"]
    assert by_title["trial 6"]["y"] == pytest.approx(252.0)
    corners = [by_title[f"trial {number}"] for number in (1, 0, 5)]
    steps = "".join(f"H{point['x']}V{point['y']}" for point in corners[1:])
    assert chart["path"] == f"M{corners[0]['x']} {corners[0]['y']}{steps}"


def test_a_search_with_one_result_or_none_has_a_page() -> None:
    same = make_report(make_trial(0, 100.0, 0.9)).summarize()
    assert "<circle" in render_page(same)
    none = make_report(make_trial(0, None, None, reason="OSError: no")).summarize()
    assert 'class="chart"' not in render_page(none)


def test_json_has_a_version_and_the_configurations(finished_search: SearchReport) -> None:
    plain = json.loads(json.dumps(finished_search.to_dict()))
    assert plain["format_version"] == 1
    assert len(plain["trials"]) == 40
    first = plain["trials"][0]
    assert first["configs"]["prune"]["config"]["pattern"] == first["values"]["pattern"]
    assert first["configs"]["prune"]["solver"] == "magnitude"
    assert [trial["number"] for trial in plain["trials"] if trial["is_on_front"]] == sorted(
        trial.number for trial in finished_search.front
    )
    json.dumps(finished_search.summarize().to_dict())


def test_notebooks_show_a_table(finished_search: SearchReport) -> None:
    html = finished_search._repr_html_()
    assert html.count("<tr") == 1 + 40
    assert "on the front" in repr(finished_search)


@pytest.mark.usefixtures("fake_pandas")
def test_trials_become_a_data_frame(finished_search: SearchReport) -> None:
    rows = finished_search.to_pandas().rows
    assert [row["number"] for row in rows] == list(range(40))
    assert rows[0]["pattern"] == finished_search.trials[0].values["pattern"]
    assert rows[0]["cost"] == finished_search.trials[0].cost


@pytest.mark.parametrize(
    ("cost", "scale", "labels"),
    [
        ("parameters", 1000, ["20,000", "40,000", "60,000", "80,000", "100,000"]),
        ("bytes", 1000, ["20.0 kB", "40.0 kB", "60.0 kB", "80.0 kB", "100.0 kB"]),
        ("latency", 1e-3, ["20 ms", "40 ms", "60 ms", "80 ms", "100 ms"]),
    ],
)
def test_labels_of_costs_have_units(cost: str, scale: float, labels: list[str]) -> None:
    trials = [make_trial(number, scale * value, 0.5) for number, value in enumerate((20.0, 80.0))]
    dense = DenseResult(quality=0.9, repeated_quality=0.9, cost=100 * scale)
    content = make_search_front(make_report(*trials, cost=cost, dense=dense).summarize())
    assert content is not None
    assert [tick.label for tick in content["chart"]["x_ticks"]] == labels

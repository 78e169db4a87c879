"""Tests of reports as HTML pages: what they show, what they leave out, and that nothing in them is code."""

import base64
import re
import struct
import zlib
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ConfigError, MissingPackageError
from secateur.report import Mask, render_page, write_page
from secateur.report.images import encode_png
from secateur.report.page import write_report
from secateur.report.quantities import format_amount, format_change, format_share
from secateur.report.sections import (
    make_dense_layers,
    make_error_profile,
    make_history,
    make_layer_table,
    make_measure_table,
    make_roofline,
    make_thumbnail,
    make_verdict,
)
from secateur.results import LayerRecord, LayerResult, Measure, PruningReport, Summary, UnitGroupRecord

pytest.importorskip("jinja2")

SIZE = Measure(quantity="size", name="tensors", unit="bytes", dense=270e6, present=135e6)
SPEED = Measure(quantity="speed", name="forward pass", unit="seconds", dense=0.036, present=0.024)
QUALITY = Measure(quantity="quality", name="perplexity", unit="", dense=20.0, present=25.0)

FULL = Summary(
    title="net",
    headlines=("Pruned 50%.",),
    facts={"Solver": "wanda"},
    configs=({"pattern": "2:4", "target_sparsity": None},),
    digests={"secateur.json": "0f" * 32},
    measures=(SIZE, SPEED, QUALITY),
    layers=(
        LayerRecord(
            name="fc.0",
            shape=(8, 4),
            pattern="2:4",
            weights=32,
            sparsity=0.5,
            error=0.25,
            rows=10,
            call_bytes=64,
            dense_seconds=4e-6,
            sparse_seconds=2e-6,
            kernel="2:4",
            kernel_reason="faster",
        ),
        LayerRecord(name="fc.1", shape=(4, 8), pattern="2:4", weights=32, sparsity=0.5, error=0.5),
        LayerRecord(name="head", dense_reason="output layer"),
    ),
    groups=(UnitGroupRecord(name="fc.channels", kind="channels", units=8, gone=2, reason="read elsewhere"),),
    history=((0, 0.0), (10, 0.25), (20, 0.5)),
    last_step=40,
    warnings=("Other programs used the processor.",),
    notes=("Units differ in size.",),
)
MASK = Mask(name="fc.0", pattern="2:4", keep=np.tile([True, False, False, True], (8, 1)))
LAYER = LayerResult(name="fc", pattern="2:4", shape=(1, 4), weights=4, pruned_weights=2, units=4, pruned_units=2)
REPORT = PruningReport(layers=(LAYER,), dense={}, step=0, last_step=0, model_weights=4)
VOID = {"meta", "img", "wbr"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def test_a_full_page_has_every_section() -> None:
    reader = Reader(render_page(FULL, [make_thumbnail(MASK)]))
    assert reader.sections == [
        "verdict",
        "run_description",
        "measure_table",
        "history",
        "layer_table",
        "unit_groups",
        "roofline",
        "mask_gallery",
        "dense_layers",
    ]
    assert {f"#{name}" for name in reader.sections} == {tag["href"] for name, tag in reader.tags if name == "a"}
    for text in (
        "Solver",
        "wanda",
        "Units differ in size.",
        "Other programs",
        "0f" * 32,
        "output layer",
        "read elsewhere",
        "faster",
    ):
        assert text in reader.text


def test_sections_without_data_are_left_out() -> None:
    assert Reader(render_page(Summary(title="net"))).sections == ["verdict"]
    plain = Summary(title="net", layers=(LayerRecord(name="fc", sparsity=0.5),))
    assert Reader(render_page(plain)).sections == ["verdict", "layer_table"]


def test_a_page_needs_nothing_else_and_one_script() -> None:
    page = render_page(FULL, [make_thumbnail(MASK)])
    reader = Reader(page)
    sources = [tag["src"] for name, tag in reader.tags if name == "img"]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|<link|@import|url\(", page)
    assert [name for name, _ in reader.tags].count("script") == 1
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;"


def make_evil(value: Any) -> Any:
    """Put markup into every text of a record."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, dict):
        return dict.fromkeys([EVIL], make_evil(next(iter(value.values()), "")))
    return tuple(map(make_evil, value)) if isinstance(value, tuple) else value


def fill_with_markup(record: Any) -> Any:
    names = [field.name for field in fields(record) if field.name != "quantity"]
    changes = {name: make_evil(getattr(record, name)) for name in names}
    return replace(record, **changes)


def test_markup_in_names_and_texts_is_shown_and_not_run() -> None:
    summary = replace(
        fill_with_markup(FULL),
        measures=tuple(map(fill_with_markup, FULL.measures)),
        layers=tuple(replace(fill_with_markup(layer), name=EVIL + str(i)) for i, layer in enumerate(FULL.layers)),
        groups=tuple(map(fill_with_markup, FULL.groups)),
        history=FULL.history,
        interruption=EVIL,
    )
    reader = Reader(render_page(summary, [make_thumbnail(replace(MASK, name=EVIL, pattern=EVIL))]))
    tags = [name for name, _ in reader.tags]
    assert len(reader.sections) == 9
    assert tags.count("script") == 1
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert reader.text.count("<script>alert(1)</script>") >= 20
    assert "&amp;" in reader.text  # it was not unescaped twice


def test_control_characters_in_names_are_escaped() -> None:
    layer = LayerRecord(name="a\x1b[2J\u202eb", sparsity=0.5)
    strange = {"\u202ekey": "\x1bvalue" + "\n" * 9_000}
    page = render_page(
        Summary(title="\u202enet", layers=(layer,), facts=strange, digests=strange, configs=(strange,), notes=("\x1b",))
    )
    assert "\x1b" not in page
    assert "shortened" not in page
    assert "\u202e" not in page
    assert r"a\x1b[2J\u202eb" in Reader(page).text


def test_an_interrupted_run_is_marked() -> None:
    assert "This run is not complete" in render_page(replace(FULL, interruption="It stopped at step 3 of 9."))
    assert "not complete" not in render_page(FULL)


def test_the_verdict_says_what_was_measured_and_nothing_else() -> None:
    assert make_verdict(FULL)["line"] == (
        "Size: 50.0% smaller (270.0 MB → 135.0 MB, tensors). Speed: 1.50× as fast (36 ms → 24 ms, forward pass). "
        "Quality: 20 → 25 (perplexity, +25.0%)."
    )
    only = replace(FULL, measures=(replace(SIZE, quantity="other"), QUALITY))
    assert make_verdict(only)["line"] == (
        "Size: not measured. Speed: not measured. Quality: 20 → 25 (perplexity, +25.0%)."
    )


@pytest.mark.parametrize(
    ("dense", "present", "headline", "detail"),
    [
        (-3.0, -2.0, "-3 → -2", "perplexity"),
        (20.0, float("inf"), "20 → inf", "perplexity"),
        (float("nan"), 0.5, "nan → 0.5", "perplexity"),
        (2e16, 1e16, "2e+16 → 1e+16", "perplexity, -50.0%"),
        (1234567.0, 1234567.0, "1,234,567 → 1,234,567", "perplexity, unchanged"),
    ],
)
def test_any_quality_can_be_shown(dense: float, present: float, headline: str, detail: str) -> None:
    summary = replace(FULL, measures=(SIZE, replace(QUALITY, dense=dense, present=present)))
    card = make_verdict(summary)["cards"][2]
    assert (card["headline"], card["detail"]) == (headline, detail)
    widths = [float(width) for width in re.findall(r'<rect width="([^"]*)"', render_page(summary))]
    assert all(0 <= width <= 100 for width in widths)


@pytest.mark.parametrize("quality", [{"accuracy": 0.9}, {"accuracy": (0.9, 0.8, 0.7)}, {"accuracy": ("high", "low")}])
def test_a_quality_without_two_numbers_is_refused(quality: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quality must be metric → \(before, after\).* found .* for 'accuracy'"):
        write_report(REPORT, tmp_path / "report.html", quality=quality)


def test_more_must_be_reports(tmp_path: Path) -> None:
    for more in (REPORT, [3]):
        with pytest.raises(ConfigError, match="more must be a list of reports, found"):
            write_report(REPORT, tmp_path / "report.html", more=more)  # type: ignore[arg-type]


def test_the_verdict_takes_the_first_measure_of_each_quantity() -> None:
    later = replace(SIZE, name="weights in memory", present=1.0)
    assert "tensors" in make_verdict(replace(FULL, measures=(SIZE, later)))["line"]


def test_layers_have_bars_sort_keys_and_no_empty_columns() -> None:
    table = make_layer_table(FULL)
    assert table is not None
    headings = [column.heading for column in table["columns"]]
    assert headings == [
        "shape",
        "pattern",
        "sparsity",
        "lost output energy",
        "dense ms",
        "sparse ms",
        "speed-up",
        "kernel",
        "reason",
    ]
    first, second = (dict(zip(headings, row["cells"], strict=True)) for row in table["rows"])
    assert (first["sparsity"]["bar"], first["lost output energy"]["bar"]) == (0.5, 0.5)
    assert (first["dense ms"]["bar"], first["sparse ms"]["bar"]) == (1.0, 0.5)  # on one scale
    assert (first["shape"]["text"], first["shape"]["key"]) == ("8×4", "32")
    assert (second["dense ms"]["text"], second["dense ms"]["bar"]) == ("", None)
    assert [row["name"] for row in table["rows"]] == ["fc.0", "fc.1"]


def test_errors_that_are_no_numbers_have_no_bar() -> None:
    errors = (0.5, float("nan"), float("inf"), 0.25, None)
    layers = tuple(LayerRecord(name=str(index), error=error) for index, error in enumerate(errors))
    table = make_layer_table(Summary(title="net", layers=layers))
    assert table is not None
    assert [row["cells"][0]["bar"] for row in table["rows"]] == [1.0, None, None, 0.5, None]
    assert [row["cells"][0]["text"] for row in table["rows"]] == ["0.5000", "nan", "inf", "0.2500", ""]


def test_dense_layers_are_grouped_by_their_reason() -> None:
    layers = [LayerRecord(name=name, dense_reason=reason) for name, reason in (("a", "x"), ("b", "y"), ("c", "x"))]
    content = make_dense_layers(Summary(title="net", layers=tuple(layers)))
    assert content == {"reasons": {"x": ["a", "c"], "y": ["b"]}, "count": 3}


def test_the_curve_holds_its_value_between_updates() -> None:
    content = make_history(FULL)
    assert content is not None
    xs, ys = ([point[axis] for point in content["points"]] for axis in "xy")
    assert xs == [64.0, 224.0, 384.0]  # of 0 to 40 on 64 to 704
    assert ys[0] == 252.0
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert content["path"] == f"M{xs[0]} {ys[0]}H{xs[1]}V{ys[1]}H{xs[2]}V{ys[2]}"
    assert content["end"] == 704.0


@pytest.mark.parametrize(
    ("history", "labels"),
    [
        (((0, 0.0), (10, 0.002)), ["0%", "0.05%", "0.1%", "0.15%", "0.2%"]),
        (((0, 0.0), (10, 1.0)), ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (((4, 0.0), (5, 0.0)), ["0%", "20%", "40%", "60%", "80%", "100%"]),
    ],
)
def test_ticks_of_the_curve_have_different_labels(history: Any, labels: list[str]) -> None:
    content = make_history(Summary(title="net", history=history))
    assert content is not None
    assert [tick.label for tick in content["y_ticks"]] == labels
    steps = [tick.label for tick in content["x_ticks"]]
    assert len(set(steps)) == len(steps)
    assert steps[0] == str(history[0][0])


def test_a_curve_needs_two_updates() -> None:
    """Runs that are sparse from the first step on have one."""
    assert make_history(Summary(title="net", history=((4, 0.5),))) is None


def test_a_verdict_does_not_repeat_the_unit() -> None:
    sizes = Measure(quantity="size", name="parameters", unit="parameters", dense=20, present=10)
    line = make_verdict(Summary(title="net", measures=(sizes,)))["line"]
    assert line.startswith("Size: 50.0% smaller (20 parameters → 10 parameters).")


def test_layers_lie_on_and_below_the_roof_of_the_dense_ones() -> None:
    slow = replace(FULL.layers[0], name="slow", dense_seconds=16e-6, sparse_seconds=None, kernel="dense")
    content = make_roofline(replace(FULL, layers=(FULL.layers[0], slow)))
    assert content is not None
    assert (content["peak"], content["bandwidth"]) == ("0.16", "0.016")  # 640 FLOP and 64 bytes in 4 µs
    fast, slow_point = content["points"]
    roof = [tuple(map(float, point.split(","))) for point in content["roof"].split()]
    assert any(fast["dense"] == pytest.approx(top, abs=0.2) for _, top in roof)
    assert slow_point["dense"] > fast["dense"] > fast["sparse"]  # up is less
    assert (slow_point["sparse"], fast["is_chosen"], slow_point["is_chosen"]) == (None, True, False)
    assert make_roofline(replace(FULL, layers=(replace(slow, rows=None),))) is None


def test_the_losses_of_many_layers_are_drawn_in_their_order() -> None:
    errors = [0.1 * number for number in range(10)]
    layers = [LayerRecord(name=f"fc<{number}>", error=error) for number, error in enumerate(errors)]
    layers.insert(3, LayerRecord(name="other", sparsity=0.5))
    layers.insert(5, LayerRecord(name="broken", error=float("nan")))
    summary = Summary(title="net", layers=tuple(layers))
    content = make_error_profile(summary)
    assert content is not None
    xs, heights = ([stem[axis] for stem in content["stems"]] for axis in "xy")
    assert np.diff(xs) == pytest.approx([640 / 11] * 9, abs=0.1)
    assert [252 - height for height in heights] == pytest.approx([236 * error / 0.945 for error in errors], abs=0.1)
    assert "error_profile" in Reader(render_page(summary)).sections
    few = Summary(title="net", layers=tuple(layer for layer in layers if layer.name < "fc<7"))
    assert make_error_profile(few) is None


def decode_png(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image that is not interlaced and whose lines have no filter."""
    position, pixels, header = 8, b"", b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0]
        header = body if kind == b"IHDR" else header
        pixels += body if kind == b"IDAT" else b""
        position += 12 + length
    width, height, bits, color = struct.unpack(">IIBB", header[:10])
    assert color == 0
    lines = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    planes = np.unpackbits(lines[:, 1:], axis=1)[:, : width * bits].reshape(height, width, bits)
    return planes @ (1 << np.arange(bits)[::-1]).astype(np.uint8)


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), bits=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 9))
def test_images_have_the_gray_levels_of_the_values(rows: int, cols: int, bits: int, seed: int) -> None:
    top = (1 << bits) - 1
    levels = np.random.default_rng(seed).integers(0, top + 1, (rows, cols))
    assert (decode_png(encode_png(1 - levels / top, bits)) == levels).all()


def read_image(uri: str | None) -> npt.NDArray[np.uint8]:
    assert uri is not None
    return decode_png(base64.b64decode(uri.removeprefix("data:image/png;base64,")))


def test_small_masks_are_drawn_weight_by_weight_and_large_ones_with_their_corner() -> None:
    small = make_thumbnail(MASK)
    assert small.corner is None
    assert (read_image(small.whole) == ~MASK.keep).all()  # kept is black, which is 0
    keep = np.random.default_rng(0).random((200, 400)) < 0.5
    large = make_thumbnail(Mask(name="fc", pattern=None, keep=keep))
    assert (read_image(large.corner) == ~keep[:32, :32]).all()
    assert read_image(large.whole).shape == (25, 34)  # pixels of 8 rows and 12 columns
    assert (large.width, large.height) == (96, 48)


def test_a_page_of_210_large_layers_has_less_than_a_megabyte(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [f"model.layers.{index // 7}.self_attn.projection_{index % 7}" for index in range(210)]
    layers = tuple(replace(FULL.layers[0], name=name, sha256="0f" * 32, stored_bytes=10**6) for name in names)
    keep = generator.random((576, 576)) < np.linspace(0, 1, 576)  # noise, which cannot be compressed
    masks = (Mask(name=name, pattern="1x1", keep=np.roll(keep, index, 0)) for index, name in enumerate(names))
    write_page(replace(FULL, layers=layers), tmp_path / "report.html", masks)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<img") == 420
    assert len(page.encode()) < 1_000_000


def test_a_file_that_cannot_be_written_is_reported_before_and_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"report '.*' cannot be written: it is a folder"):
        write_page(FULL, tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        write_page(FULL, tmp_path / "missing" / "report.html")


def test_a_missing_template_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur._packages.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"'jinja2', which is not installed.*\[report\]"):
        write_page(FULL, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_quantities() -> None:
    assert format_amount(999_949, "bytes") == "999.9 kB"
    assert format_amount(999_951, "bytes") == "1.0 MB"
    assert format_amount(12, "bytes") == "12 bytes"
    assert format_amount(2.5e-7, "seconds") == "0.25 µs"
    assert format_change(100, 150, "size") == "50.0% larger"
    assert format_change(100, 100, "size") == "unchanged"
    assert format_change(0, 1, "speed") == ""
    assert format_share(0.00001) == "0.001%"
    assert make_measure_table(replace(FULL, measures=(SIZE,))) is None

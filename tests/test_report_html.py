"""The report as an HTML page, and as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from graphopt.cli import _show
from graphopt.pipeline.record import PassRecord, PassStatus, Undone
from graphopt.report import FormTiming, Report, Verdict, Verification
from graphopt.report_html import render
from graphopt.rewrite import Numerics, Refusal


@pytest.fixture
def report() -> Report:
    """One of everything; names from the model hold markup."""
    undone = Undone("silu at 'b'", "output 'y' is off", "repros/silu")
    made = Report("net <b>", "models/net.onnx", 12, 26, "ort-cpu", nodes_before=20, nodes_after=8)
    made.ops_before, made.ops_after = {"Conv": 5, "Clip": 4, "<i>": 1}, {"Conv": 5, "HardSwish": 4}
    made.size_before, made.size_after = 10_900_000, 10_800_000
    made.passes = [
        PassRecord("cse", Numerics.EXACT, reason="nothing in the graph matches", nodes_before=20, nodes_after=20),
        PassRecord(
            "fuse", Numerics.REASSOCIATES, PassStatus.PARTLY_UNDONE, "1 undone", 20, 8, {"hardswish": 4},
            [Refusal("gelu", "a/<site>", "an inner value is read elsewhere")], [undone],
            seconds=0.5, error=2.1e-6, noise_floor=8e-6, identical=False,
        ),
    ]  # fmt: skip
    made.forms = [
        FormTiming("original", 20.6, 1.0, 1.0, 1.0, 40, True, original=True),
        FormTiming("optimized", 8.1, 2.54, 2.48, 2.61, 40, True),
        FormTiming("legalized", note="output 'y' differs"),
    ]
    made.chosen, made.output = "optimized", "net.gopt"
    made.verification = Verification(
        Verdict.VERIFIED, value=2.1e-6, noise_floor=8e-6, trials=[{"n": 1}, {"n": 3}], describe="within noise"
    )
    made.stages, made.seconds = {"capture": 1.0, "passes": 3.0}, 4.0
    made.warnings = ["no real data were seen"]
    return made


class Balance(HTMLParser):
    """Checks that every element is closed where it must be."""

    VOID = frozenset({"meta", "br", "link", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    """What a reader sees."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]).split())


def test_the_page_needs_nothing_else(report: Report) -> None:
    page = render(report)
    assert not re.search(r"<script|<link|<img|https?://|@import|url\(", page)
    assert page.startswith("<!doctype html>") and "prefers-color-scheme: dark" in page


def test_the_page_is_well_formed(report: Report) -> None:
    parser = Balance()
    parser.feed(render(report))
    parser.close()
    assert parser.open == []


def test_names_from_the_model_are_escaped(report: Report) -> None:
    page = render(report)
    assert "net <b>" not in page and "net &lt;b&gt;" in page
    assert "&lt;i&gt;" in page and "a/&lt;site&gt;" in page


def test_the_page_says_everything(report: Report) -> None:
    text = text_of(render(report))
    for words in (
        "2.54×", "20.6 → 8.10 ms", "verified", "20 → 8", "10.9 MB", "no real data were seen", "HardSwish",
        "hardswish ×4",
        "1 refused", "an inner value is read elsewhere", "silu at", "repros/silu", "2.48–2.61", "legalized",
        "output &#39;y&#39; differs", "n=3", "capture", "3.00 s",
    ):  # fmt: skip
        assert words in text, words


def test_the_page_of_a_report_with_nothing_measured(report: Report) -> None:
    report.forms, report.passes, report.warnings, report.stages = [], [], [], {}
    report.verification = Verification()
    report.source_opset = None
    text = text_of(render(report))
    assert "not timed" in text and "not verified" in text and "No pass ran" in text


def test_the_page_where_the_original_was_kept(report: Report) -> None:
    report.chosen = "original"
    assert "latency of the original, which is what was kept" in text_of(render(report))


def test_the_text_says_everything(report: Report) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(_show.lines(report)))
    for words in (
        "captured    net.onnx · opset 12 -> 26 · 20 nodes · 10.9 MB", "20 -> 8 nodes", "2.1e-06, noise floor 8.0e-06",
        "hardswish x4", "undone silu at 'b': output 'y' is off", "repro in repros/silu", "1 refused",
        "nothing to do: cse", "ort-cpu, optimized: fastest of 2 verified", "on 2 made-up inputs, reloaded from disk",
        "20.6 -> 8.10 ms   2.54x (95 % interval 2.48 to 2.61, 40 rounds)", "net.gopt   10.8 MB",
        "warning     no real data were seen",
    ):  # fmt: skip
        assert words in text, words


def test_the_text_where_the_original_was_kept(report: Report) -> None:
    report.chosen, report.output = "original", None
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(_show.lines(report)))
    assert "the original as it was" in text and "20.6 ms, unchanged" in text and "nothing was written" in text


def test_changed_operators_are_cut_to_the_largest() -> None:
    before = {f"op{index}": index for index in range(10)}
    rows = _show.changed_ops(before, {}, most=3)
    assert rows == [("op9", 9, 0), ("op8", 8, 0), ("7 others", 28, 0)]
    assert _show.changed_ops({"a": 1}, {"a": 1}) == []

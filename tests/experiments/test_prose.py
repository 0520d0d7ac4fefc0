"""Figures in prose: what a mark asks for, and what the records answer."""

import pytest
from examples import TABLE, record

from stn.experiments.command import ROOT
from stn.experiments.results import prose, records, tables

FOUND = [
    record(error=1.0),
    record("mnist_cnn", error=0.5),
    record(distortion="e", error=4.0),
    record(schedule="long", steps=900, error=3.0),
    record(schedule="long", steps=900, error=4.0, seed=1),
]


@pytest.mark.parametrize(
    ("words", "figure"),
    [
        ("example/mnist_fcn/r/short", "1.00"),
        ("example/mnist_fcn/r/long", "3.50"),
        ("example/mnist_fcn/r/best", "1.00"),
        ("example/mnist_*/r/short", "0.50 to 1.00"),
        ("example/mnist_fcn/*/short", "1.00 to 4.00"),
        ("example/mnist_fcn/r/short cell", "1.00 ± 0.20 (1)"),
        ("example/mnist_fcn/r/long cell", "3.50 ± 0.71 (2)"),
        ("example/mnist_fcn/*/short paper", "2.1 to 3.2"),
        ("example/mnist_fcn/r/long n", "2"),
        ("example/mnist_fcn/r/best schedule", "short"),
        ("example/mnist_fcn/r/long steps", "900"),
        ("example/*/*/short params", "987"),
        ("example/*/*/short hours", "1.5"),
        ("example/*/*/long hours", "0.5"),  # of one of its two seeds
        ("example/*/*/short minutes", "30"),
        ("example/*/*/best device", "a processor"),
        ("example/mnist_fcn/r/long test/error", "3.00 to 4.00"),
        ("example/mnist_fcn/r/short test/err*", "1.00"),
        ("example/mnist_fcn/r/short : example/mnist_cnn/r/short", "2.0"),
        ("example/mnist_fcn/e/short : example/*/r/short", "4.0 to 8.0"),
        ("example/mnist_fcn/r/short paper : example/mnist_cnn/r/short paper", "1.8"),
        ("example/mnist_cnn/e/short", "not run"),
        ("example/mnist_fcn/r/never", "not run"),
        ("example/mnist_fcn/r/short : example/mnist_cnn/e/short", "not run"),
        ("example/*/r/short : example/mnist_fcn/r/short", "0.5 to 1.0"),
        ("example/*/*/short : example/mnist_fcn/r/short", "not run"),  # of four cells one was not run
        ("example/*/r/short : example/*/e/short", "not run"),  # one by one, not two by the one that was run
    ],
)
def test_a_mark_is_answered_from_the_records(words, figure):
    page = f"It has <!-- = {words} -->old<!-- / --> %."
    filled = prose.fill(page, [TABLE], FOUND)
    assert filled == f"It has <!-- = {words} -->{figure}<!-- / --> %."
    assert prose.fill(filled, [TABLE], FOUND) == filled


def test_every_mark_of_a_page_is_filled_and_nothing_else():
    mark = "<!-- = example/mnist_fcn/r/{} -->?<!-- / -->"
    page = f"<!-- example -->\n{mark.format('short')}, {mark.format('long')} <!-- a note -->"
    assert prose.fill(page, [TABLE], FOUND) == page.replace("?", "1.00", 1).replace("?", "3.50", 1)
    assert prose.fill("No mark.", [TABLE], FOUND) == "No mark."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("other/mnist_fcn/r/short", "'other/mnist_fcn/r/short' is not a cell"),
        ("example/mnist_fcn/r", "'example/mnist_fcn/r' is not a cell"),
        ("example/fcn/r/short", "example has no such row or column; see conf/table/example.yaml"),
        ("example/mnist_fcn/rts/short", "example has no such row or column"),
        ("example/mnist_fcn/r/short sum", "unknown 'sum': choose one of mean, cell, "),
        ("example/mnist_fcn/r/short test/height", "none of these records has a metric 'test/height'"),
    ],
)
def test_a_mark_that_names_nothing_is_said_in_one_line(words, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        prose.fill(f"<!-- = {words} -->?<!-- / -->", [TABLE], FOUND)
    assert message in str(error.value)


# --- the pages

KNOWN = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "<!-- = " in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_figure_in_prose_is_the_records(page):
    text = page.read_text()
    assert prose.fill(text, KNOWN, records.read_kept(ROOT / "results")) == text, "make records fills them in"
    assert "-->not run<!--" not in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("<!-- =")], "ends the paragraph"
    assert text.count("<!-- = ") == text.count("<!-- / -->")

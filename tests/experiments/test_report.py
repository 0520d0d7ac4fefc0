"""The report: what it says of records, that it is one whole page, and what a browser makes of it."""

import html
import json
import random
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from examples import TABLE, record, save

from stn.experiments.command import ROOT
from stn.experiments.results import against, curves, records, report, tables
from stn.experiments.results.checks import checked

CURVE = [{"step": 10 * i, "train/loss": 2 / i, "train/error": 80 / i} for i in range(1, 301)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)


class Page(HTMLParser):
    """The cells of a page's tables, its attributes and its text, apart from style and pictures."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.attributes, self.tags, self.text = [], [], [], ""
        self.open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in ("td", "th"):
            self.open = len(self.cells)
            self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self.open is not None:
            self.cells[self.open] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells[self.open] = " ".join(self.cells[self.open].split())
            self.open = None


def page(*found, table=TABLE, not_run="", damaged=(), folder):
    (folder / "not_run.yaml").write_text(not_run)
    return report.page(list(found), [table], folder / "figures", folder / "not_run.yaml", list(damaged))


@pytest.fixture(scope="module")
def committed():
    """The report of the committed records, with the committed pictures."""
    found = records.read_kept(ROOT / "results", curves=True)
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    return report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", [])


# --- how a cell stands to the paper's


def cell(values, paper=2.0, failed=0, synthetic=False, images=10_000):
    return tables.Cell("a row", "a column", "short", 1000, 987, values, failed, paper, synthetic, images)


@pytest.mark.parametrize(
    ("ours", "errors", "hits"), [(1.0, "better", "worse"), (2.1, "level", "level"), (3.0, "worse", "better")]
)
def test_less_is_better_of_errors_and_more_of_hits(ours, errors, hits):
    assert report.standing(cell([ours]), errors=True) == errors
    assert report.standing(cell([ours]), errors=False) == hits


def test_a_cell_that_is_compared_with_nothing_says_why():
    assert report.standing(cell([1.0], synthetic=True), errors=True) == "synthetic data"
    assert report.standing(cell([1.0], paper=None), errors=True) == "no figure in the paper"
    assert report.standing(cell([1.0], images=None), errors=True) == "not compared"
    assert report.standing(cell([], failed=2), errors=True) == "failed"
    assert report.standing(cell([]), errors=True) == "not run"


# --- the page


def test_a_cell_shows_ours_the_papers_figure_and_the_difference(tmp_path):
    errors = [2.0, 2.5, 1.7]
    found = Page(page(*(record(seed=i, error=e) for i, e in enumerate(errors)), folder=tmp_path)).cells
    mean, std = statistics.fmean(errors), statistics.stdev(errors)
    assert f"{mean:.2f} ± {std:.2f} (3) paper 2.1, \N{MINUS SIGN}{2.1 - mean:.2f} level" in found
    assert "paper 1.2 not run" in found
    assert "paper: none not run" in found


def test_failed_runs_are_counted_and_their_reason_is_there(tmp_path):
    text = page(record(), record(seed=1, error=None), record("mnist_cnn", error=None), folder=tmp_path)
    found = Page(text).cells
    assert f"{cell([2.0])}, 1 failed paper 2.1, \N{MINUS SIGN}0.10 level" in found
    assert "paper 1.2 failed" in found
    assert sum("the loss became nan at step 3" in one for one in found) == 2


def test_synthetic_and_collected_data_are_never_in_one_table(tmp_path):
    found = record(error=1.0), record("mnist_cnn", error=3.0, synthetic=True)
    text = Page(page(*found, folder=tmp_path))
    assert f"{cell([1.0])} paper 2.1, \N{MINUS SIGN}1.10 better" in text.cells
    assert f"{cell([3.0])} paper 1.2 synthetic data" in text.cells
    assert "Synthetic data." in text.text
    parts = [cell for cell in text.cells if cell.startswith("An example, short")]
    assert parts == ["An example, short", "An example, short, synthetic data"]
    assert text.cells.count("paper 3.2 not run") == 2


def test_the_block_with_most_cells_is_open_and_the_others_folded(tmp_path):
    most = [record(distortion=d, schedule="whole") for d in ("r", "e")]
    text = page(record(schedule="partial", steps=900), *most, folder=tmp_path)
    assert '<h3 id="example-whole-1000">' in text
    assert '<details id="example-partial-1000"><summary>Schedule <code>partial</code>: 1 run</summary>' in text


def test_a_table_with_many_columns_is_turned(tmp_path):
    digits = {str(i): str(i) for i in range(10)}
    wide = tables.Table(**vars(TABLE) | {"column_key": "data.digit", "columns": digits, "paper": {}})
    one = record(
        config=record()["config"] | {"data": {"name": "mnist", "digit": 3}},
        overrides=["experiment=mnist_fcn", "data.digit=3"],
    )
    text = Page(report.page([one], [wide], tmp_path / "none", tmp_path / "none.yaml", []))
    start = text.cells.index("% error")
    assert text.cells[start : start + 6] == ["% error", "FCN", "CNN", "0", "paper: none not run", "paper: none not run"]
    three = text.cells.index("3", start)
    assert text.cells[three + 1].startswith(f"{cell([2.0])} paper: none")


def test_what_was_not_run_has_the_first_reason_that_fits(tmp_path):
    reasons = """
cells:
  - {table: example, row: CNN, column: R, why: the first}
  - {table: example, row: CNN, why: the second}
  - {table: other, why: of another table}
also:
  - {what: A thing, why: its reason}
"""
    text = Page(page(record(), not_run=reasons, folder=tmp_path))
    after = text.cells[text.cells.index("why") + 1 :]
    assert after[:12] == [
        "An example", "short", "FCN: E", "no reason is given in results/not_run.yaml",
        "An example", "short", "CNN: R", "the first",
        "An example", "short", "CNN: E", "the second",
    ]  # fmt: skip
    assert "its reason" in text.text


def test_a_table_without_a_record_says_so(tmp_path):
    empty = tables.Table(**vars(TABLE) | {"name": "empty", "rows": {"nothing": "Nothing"}})
    (tmp_path / "not_run.yaml").write_text("cells: [{table: empty, why: later}]")
    text = Page(report.page([record()], [TABLE, empty], tmp_path / "none", tmp_path / "not_run.yaml", []))
    assert "No record: see what was not run" in " ".join(text.text.split())
    assert "later" in text.cells


def test_what_a_record_says_is_text_never_markup(tmp_path):
    evil = "\"'><script>alert(1)</script>"
    curve = [entry | {evil: 1.0} for entry in CURVE]
    config = record()["config"] | {"data": {"name": evil, "distortion": {"name": "r"}, evil: evil}}
    changes = {"device": evil, "schedule": evil, "commit": evil, "precision": evil, "versions": {evil: evil},
               "data_sha256": {evil: evil}, "config": config, "curve": curve}  # fmt: skip
    failed = record(seed=1, error=None, failure=evil, extra=[f"seed={evil}"])
    text = page(record(**changes), failed, damaged=[evil], folder=tmp_path)
    assert "script" not in Page(text).tags
    assert not any("alert" in name for _, name, _ in Page(text).attributes)
    assert Page(text).text.count(evil) >= 8


def test_a_whole_record_of_any_content_is_reported(tmp_path):
    draw = random.Random(0)
    extremes = {int: [0, 1, 10**17], float: [0.0, 1e17, -1e17, 1e-300, float("nan")], str: ["", "\n", "<b>", "a b"],
                list: [[]], dict: [{}], bool: [True], type(None): [None, 1, "<b>"]}  # fmt: skip
    tried = 0
    for _ in range(120):
        one = json.loads(json.dumps(record(curve=CURVE[:2], samples_per_s=1.0, finished_at="2020-01-01")))
        for _ in range(draw.randint(1, 3)):
            node = one
            while True:
                key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
                if not (isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7):
                    break
                node = node[key]
            node[key] = draw.choice(extremes[type(node[key])])
        try:
            checked(one, "it", "delete it")
        except ValueError:
            continue
        tried += 1
        assert "<h1>" in page(one, record(seed=7), folder=tmp_path)
    assert tried > 30


def test_a_record_without_error_or_step_has_its_place(tmp_path):
    start = [{"step": 0, "train/error": 5.0}]
    text = Page(page(record(error=0.0, curve=start), folder=tmp_path))
    assert f"{cell([0.0])} paper 2.1, \N{MINUS SIGN}2.10 better" in text.cells


def test_what_a_record_does_not_know_is_not_recorded(tmp_path):
    text = Page(page(record(versions={}), folder=tmp_path))  # nor commit, speed, curve
    assert text.cells.count("not recorded") == 3
    assert "No learning curves: these records have none." in text.text


def test_the_same_records_give_the_same_bytes(committed):
    found = records.read_kept(ROOT / "results", curves=True)
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    assert committed == report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", [])


def test_every_cell_of_the_committed_report_says_something(committed):
    found = Page(committed).cells
    assert len(found) > 500
    assert "" not in found


def test_the_page_holds_all_that_it_shows(committed):
    text = Page(committed)
    assert "script" not in text.tags
    shown = [value for tag, name, value in text.attributes if name in ("src", "href") and tag != "a"]
    pictures = [p for p in (ROOT / "docs/figures").rglob("*") if p.suffix in report.PICTURES | report.FILMS]
    assert len(shown) == len(pictures) + 1  # and the icon
    assert all(value.startswith("data:") for value in shown)
    assert "url(" not in committed
    assert "@import" not in committed


def test_every_link_within_the_page_leads_somewhere(committed):
    text = Page(committed)
    anchors = [value for _, name, value in text.attributes if name == "id"]
    links = [value[1:] for tag, name, value in text.attributes if (tag, name) == ("a", "href") and value[0] == "#"]
    assert len(set(anchors)) == len(anchors)
    assert set(links) <= set(anchors)


# --- learning curves


def points(svg, number=0):
    paths = ElementTree.fromstring(svg).findall("path")
    path = [path.attrib["d"] for path in paths if path.attrib["class"].startswith("curve")][number]
    return [tuple(map(float, pair.split())) for pair in path[1:].split("L")]


def test_a_curve_falls_as_the_error_does_on_shared_axes():
    high = [entry | {"train/error": 10 * entry["train/error"]} for entry in CURVE]
    first, second = curves.panels(TABLE, [record(curve=CURVE), record(distortion="e", curve=high)], "train/error")
    (x0, y0), *_, (x1, y1) = points(first)
    assert x0 < x1
    assert y0 < y1  # y counts downwards
    shift = {round(a - b, 0) for (_, a), (_, b) in zip(points(first), points(second), strict=True)}
    assert len(shift) == 1  # ten times the error is the same distance everywhere on a log scale
    assert shift.pop() > 0
    assert x1 == curves.W - curves.RIGHT


def test_a_long_curve_is_averaged_and_keeps_its_last_step():
    thinned = records.thin([{"step": i, "train/loss": float(i % 7)} for i in range(1, 1501)])
    assert len(thinned) == 100
    assert thinned[0] == {"step": 15, "train/loss": statistics.fmean(i % 7 for i in range(1, 16))}
    assert thinned[-1]["step"] == 1500
    assert records.thin([{"step": 1, "a": 2.0}]) == [{"step": 1, "a": 2.0}]
    assert records.thin([]) == []


def test_a_curve_is_drawn_as_far_as_it_has_numbers():
    bad = [*CURVE[:3], {"step": 40, "train/loss": float("nan"), "train/error": 0.0}]
    (svg,) = curves.panels(TABLE, [record(curve=bad, error=None)], "train/loss")
    assert len(points(svg)) == 3
    (svg,) = curves.panels(TABLE, [record(curve=bad)], "train/error")
    assert len(points(svg)) == 4
    assert curves.panels(TABLE, [record(curve=[{"step": 1, "train/error": 0.0}])], "train/error") == []


def test_the_curve_is_of_the_tables_metric_where_all_have_it():
    loss = [{"step": 1, "train/loss": 1.0}]
    assert curves.quantity(TABLE, [record(curve=CURVE)]) == "train/error"
    assert curves.quantity(TABLE, [record(curve=CURVE), record(seed=1, curve=loss)]) == "train/loss"
    assert curves.quantity(TABLE, [record()]) is None


def test_a_curve_has_its_axes_named():
    (svg,) = curves.panels(TABLE, [record(curve=CURVE)], "train/error")
    texts = [text.text for text in ElementTree.fromstring(svg).findall("text")]
    assert {"R", "training step", "train/error, %", "3,000"} <= set(texts)


def test_no_two_rows_of_a_table_look_the_same():
    assert len({curves.style(row) for row in range(24)}) == 24


# --- ours against the paper's


def placed(svg):
    """Where the dots of the chart with the diagonal are, by what they say."""
    dots = ElementTree.fromstring(svg).findall("path[title]")
    return {dot.find("title").text: tuple(map(float, re.findall(r"[\d.]+", dot.attrib["transform"]))) for dot in dots}


def test_a_dot_on_the_diagonal_has_the_papers_error():
    found = [record(error=2.1), record("mnist_cnn", error=2.4), record(distortion="e", error=1.6)]
    svg = against.diagonal(against.series([TABLE], found))
    dots = placed(svg)
    assert list(dots) == [
        "An example, R: FCN: ours 2.10 %, the paper's 2.1 %", "An example, R: CNN: ours 2.40 %, the paper's 1.2 %",
        "An example, E: FCN: ours 1.60 %, the paper's 3.2 %",
    ]  # fmt: skip
    line = ElementTree.fromstring(svg).find("path[@class='equal']").attrib["d"]
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", line))
    off = [y - (y0 + (x - x0) * (y1 - y0) / (x1 - x0)) for x, y in dots.values()]
    assert off[0] == pytest.approx(0, abs=0.2)
    assert off[1] == pytest.approx(-off[2], abs=0.2)  # twice and half the paper's are as far above as below
    assert off[1] < -20  # y counts downwards


def test_synthetic_data_are_in_no_chart_against_the_paper():
    assert against.series([TABLE], [record(synthetic=True)]) == []
    assert against.diagonal([]) == against.by_column(TABLE, [record(synthetic=True)]) == ""


def test_the_chart_by_column_says_where_ours_is_at_most_the_papers():
    found = [record(error=2.0), record("mnist_cnn", error=2.4), record("mnist_cnn", distortion="e", error=1.0)]
    svg = ElementTree.fromstring(against.by_column(TABLE, found))
    name = "{http://www.w3.org/2000/svg}"
    dots = [dot.attrib["class"] for dot in svg.findall(f"{name}circle")]
    assert dots == ["ours most", "ours", "ours alone"]
    assert len(svg.findall(f"{name}rect[@class='paper']")) == 3
    (x0, x1), bars = (
        [float(dot.attrib["cx"]) for dot in svg.findall(f"{name}circle")][:2],
        svg.findall(f"{name}rect[@class='paper']"),
    )
    assert x0 < float(bars[0].attrib["x"]) + 1.5
    assert x1 > float(bars[1].attrib["x"]) + 1.5


# --- pictures


def test_pictures_come_in_the_order_of_their_captions(tmp_path):
    for name in ("a.png", "b.png", "c.gif", "d.mp4", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "captions.yaml").write_text("b: The second.\nmissing: Nothing.\na: The first.")
    found = report.pictures(tmp_path)
    assert [(p["name"], p["caption"], p["moves"], p["film"]) for p in found] == [
        ("b", "The second.", False, False), ("a", "The first.", False, False),
        ("c", "c", True, False), ("d", "d", True, True),
    ]  # fmt: skip
    assert found[0]["uri"] == "data:image/png;base64,eA=="


# --- the script


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """scripts/report.py in a project of its own: exit status or message, stdout."""
    for part in ("table", "experiment"):
        shutil.copytree(ROOT / "conf" / part, tmp_path / "conf" / part)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr("stn.experiments.command.ROOT", tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts/report.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_without_a_record_one_line_says_so_and_the_old_report_stays(script, tmp_path):
    old = tmp_path / "results/report.html"
    old.write_text("old")
    save(tmp_path / "runs", record(smoke=True))
    code, _ = script()
    assert code == "error: there is no record to report: make some with `make reproduce-table1`"
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(record() | {"version": 1}), "has version 1, this code reads version 2"),
        (json.dumps({key: value for key, value in record().items() if key != "params"}), "lacks params"),
        ("{", "is damaged"),
    ],
    ids=["of yesterday", "without params", "truncated"],
)
def test_a_damaged_record_is_named_and_the_others_are_reported(script, tmp_path, content, message):
    save(tmp_path / "runs", record(seed=1))
    path = tmp_path / "runs" / record(seed=1)["id"] / "result.json"
    path.write_text(content)
    records.keep([record(error=1.23)], tmp_path / "results")
    with open(tmp_path / "results/records.jsonl", "a") as file:
        file.write("{\n")
    code, out = script()
    first, second, last = code.splitlines()
    assert re.fullmatch(rf"error: the record {path} {message}.*", first)
    assert re.match(r"error: line 2 of \S+/records.jsonl is damaged", second)
    assert last == "The report uses the other records."
    assert ", 1 records," in out
    text = Page((tmp_path / "results/report.html").read_text())
    assert "2 records could not be used" in text.text
    assert message in text.text
    assert any(one.startswith(f"{cell([1.23])} paper 2.1") for one in text.cells)
    assert [path.name for path in (tmp_path / "results").iterdir() if path.suffix == ".tmp"] == []


def test_a_finished_record_without_the_tables_metric_is_left_out(tmp_path):
    text = Page(page(record(), record(seed=1, metrics={"test/other": 1.0}), folder=tmp_path))
    assert f"the record {record(seed=1)['id']} lacks the metric test/error" in text.text


# --- a browser


def browse(folder, *words):
    """What a headless chromium prints."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--virtual-time-budget=5000", f"--user-data-dir={folder}/profile", *words, f"file://{folder}/page.html"],
        capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    return done.stdout


@needs_chromium
@pytest.mark.slow
def test_nothing_is_cut_or_overprinted_on_a_desk_and_a_phone(committed, tmp_path):
    """Nothing is wider than the page, all pictures are there, and no text of a cell lies over another cell's."""
    measure = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(each => each.open = true);
      const images = [...document.images], page = document.documentElement;
      const bad = images.filter(i => !i.naturalWidth).length, wide = page.scrollWidth - page.clientWidth;
      const cells = [...document.querySelectorAll("td, tbody th")].filter(c => c.scrollWidth > c.clientWidth + 1);
      const over = cells.filter(c => getComputedStyle(c).display !== "inline").map(c => c.textContent.trim());
      parent.document.title += ` ${images.length} images, ${bad} broken, ${wide} px too wide, over: ${over};`;
    })</script>"""
    inside = html.escape(committed.replace("</body>", measure + "</body>"))
    widths = (390, 1030, 1095, 1280)
    frames = "".join(f'<iframe style="width:{w}px;height:700px" srcdoc="{inside}"></iframe>' for w in widths)
    (tmp_path / "page.html").write_text(f"<!doctype html><title>said:</title>{frames}")
    said = re.search(r"<title>(.*?)</title>", browse(tmp_path, "--dump-dom"), re.S).group(1)
    images = sum(tag == "img" for tag in Page(committed).tags)
    assert images > 0
    assert said.count(f" {images} images, 0 broken, 0 px too wide, over: ;") == len(widths), said


@needs_chromium
@pytest.mark.slow
def test_the_committed_report_prints_on_at_most_25_pages(committed, tmp_path):
    (tmp_path / "page.html").write_text(committed)
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/page.pdf")
    pages = re.findall(rb"/Type\s*/Page\b(?!s)", (tmp_path / "page.pdf").read_bytes())
    assert 5 < len(pages) <= 25

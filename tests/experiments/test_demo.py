"""docs/demo in a real browser: strokes and a photograph become a window, an output and a class, as PyTorch has them."""

import base64
import functools
import io
import re
import shutil
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from photographs import photograph
from PIL import Image

from stn.experiments.command import ROOT
from stn.experiments.datasets import handwriting

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site of this one page, and its address."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs/demo", folder / "docs/demo")
    (folder / "docs/own-images.md").write_text("# Your own images")
    settings = folder / "mkdocs.yml"
    settings.write_text(
        f"site_name: x\nuse_directory_urls: false\ntheme: {{name: material, font: false}}\n"
        f"hooks: [{ROOT / 'scripts/docs_demo.py'}]\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(load_config(str(settings)))
    handler = functools.partial(Quiet, directory=str(folder / "site"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder / "site", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    """The page once its network is loaded; it has to end without an error, and without a request to elsewhere."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site[1]}/demo/index.html")
    page.wait_for_selector("#photo .pad", timeout=60_000)
    yield page
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((site[1], "blob:", "data:"))] == []


def settle(page):
    """Wait until the page shows the same twice."""
    shown, now = (
        None,
        "document.querySelector('#draw .small').toDataURL() + document.querySelector('#draw output').textContent",
    )
    while shown != (shown := page.evaluate(now)):
        page.wait_for_timeout(400)


def draw(page, *strokes):
    """Strokes of points in shares of the pad, drawn with the mouse."""
    pad = page.locator("#draw .pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    for points in strokes:
        for i, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 if i == 0 else 6)
            if i == 0:
                page.mouse.down()
        page.mouse.up()
    settle(page)


def turned(points, angle_deg, size=0.4, centre=(0.5, 0.5)):
    """Points in [-1, 1], scaled, turned clockwise, around a centre."""
    a = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return (size / 2 * np.array(points) @ turn.T + centre).tolist()


SEVEN = [(-0.7, -1), (0.6, -1), (0.3, -0.3), (-0.2, 1)]
ONE = [(0, -1), (0, 1)]
FOUR = [(-0.2, -1), (-0.7, 0.2), (0.7, 0.2)], [(0.35, -0.6), (0.35, 1)]


def said(page, which="draw"):
    return page.inner_text(f"#{which} output")


def test_a_stroke_changes_the_class_and_clear_takes_it_away(page):
    assert said(page) == ""
    draw(page, turned(ONE, 0))
    assert re.match(r"1 \(\d+ %\)", said(page))
    page.click("#draw button")
    settle(page)
    assert said(page) == ""
    draw(page, turned(SEVEN, 0))
    assert re.match(r"7 \(\d+ %\)", said(page))


@pytest.mark.parametrize(("angle", "size", "centre"), [(-25, 0.4, (0.35, 0.6)), (25, 0.3, (0.7, 0.3)), (0, 0.9, (0.5, 0.5))])  # fmt: skip  # noqa: E501
def test_a_tilted_small_or_large_digit_is_still_a_4(page, angle, size, centre):
    draw(page, *(turned(stroke, angle, size, centre) for stroke in FOUR))
    assert re.search(r"4 \(\d+ %\)", said(page).removeprefix("not sure: ").split(" or ")[0])


def test_the_output_stays_upright_while_the_drawing_turns(page):
    draw(page, *(turned(stroke, 0) for stroke in FOUR))

    def seen(turn, canvas):
        page.locator("#draw input").fill(str(turn))
        settle(page)
        data = page.evaluate(f"document.querySelector('#draw .{canvas}').toDataURL().split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)

    def likeness(canvas):
        return np.corrcoef(*(seen(turn, canvas).ravel() for turn in (-30, 30)))[0, 1]

    assert likeness("small") > likeness("pad") + 0.1


def test_a_photograph_is_cleaned_and_named_as_in_python(page, tmp_path):
    rng, right = np.random.default_rng(1), 0
    for index in range(8):
        image, label = photograph(index, rng, max_angle_deg=30)
        path = tmp_path / f"{index}.png"
        image.save(path)
        page.evaluate("document.querySelector('#photo output').textContent = ''")
        page.set_input_files("#photo input", path)
        page.wait_for_function("/\\d/.test(document.querySelector('#photo output').textContent)")
        right += said(page, "photo").startswith(f"{label} ")
        there = page.evaluate(
            """async bytes => {
                const { find } = await import('./handwriting.js');
                const { digit } = find(await createImageBitmap(await (await fetch(bytes)).blob()));
                return [...digit];
            }""",
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        )
        found = handwriting.find(image)
        digit = np.array(there).reshape(28, 28)
        # where a centre of mass lies between two pixels, either is right
        shifts = [np.roll(digit, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert min(np.abs(shifted - found.digit / 255).mean() for shifted in shifts) < 0.01
    assert right >= 7


def test_what_is_no_digit_is_said_in_a_line(page, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    page.set_input_files("#photo input", tmp_path / "text.png")
    page.wait_for_function("document.querySelector('#photo output').textContent.includes('Not a readable image')")
    Image.new("L", (60, 60), 200).save(tmp_path / "blank.png")
    page.set_input_files("#photo input", tmp_path / "blank.png")
    page.wait_for_function("document.querySelector('#photo output').textContent.includes('No ink')")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_its_screen(site, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{site[1]}/demo/index.html")
    page.wait_for_selector("#photo .pad", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_demonstration_takes_twelve_megabytes(site):
    added = [path for path in (site[0] / "demo").iterdir() if path.suffix in (".js", ".mjs", ".wasm", ".onnx", ".css")]
    assert 11e6 < sum(path.stat().st_size for path in added) < 12.5e6


def test_a_site_without_the_network_says_so(site, browser):
    page = browser.new_page()
    page.route("**/digits.onnx", lambda route: route.fulfill(status=404))
    page.goto(f"{site[1]}/demo/index.html")
    page.wait_for_function("document.getElementById('status').textContent.includes('built without')")
    assert page.locator("#draw").is_hidden()
    page.close()

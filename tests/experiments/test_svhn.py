"""SVHN's format 1, the store of crops, the data set and the rendered numbers, on archives of a few pictures."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from mirror import serving
from PIL import Image

from stn.experiments.datasets import digitstruct, rendered, svhn
from stn.experiments.datasets.digitstruct import Number
from stn.experiments.datasets.fetch import download
from stn.experiments.datasets.svhn import RenderedNumbers, Svhn, crop, label, prepare, window

COUNTS = {"train": 12, "test": 3}


def number(name, *digits):
    return Number(name, np.array(digits, dtype=np.float64))


@pytest.fixture(scope="module")
def archives(fonts, tmp_path_factory):
    """Two archives of rendered numbers, as the generator writes them."""
    folder = tmp_path_factory.mktemp("data") / "svhn_rendered"
    for split, n in COUNTS.items():
        rendered.archive(folder, split, n)
    return folder


@pytest.fixture
def folder(archives, tmp_path):
    return shutil.copytree(archives, tmp_path / "svhn_rendered")


def rewrite(archive, change):
    """The archive with `change` applied to its {name: bytes}."""
    with tarfile.open(archive) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}
    change(files)
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# --- digitStruct.mat


def test_a_digit_struct_is_read_as_the_slow_usual_reader_does(tmp_path):
    numbers = [number("1.png", (3, 4, 10, 20, 1)), number("2.png", (-1, 0, 5, 6, 10), (7.5, 0, 5, 6, 9))]
    digitstruct.write(tmp_path / "digitStruct.mat", numbers)
    found = digitstruct.read(tmp_path / "digitStruct.mat", progress=False)
    with h5py.File(tmp_path / "digitStruct.mat") as file:  # through h5py's high-level objects
        for i, ours in enumerate(found):
            name = "".join(map(chr, file[file["digitStruct/name"][i, 0]][:, 0]))
            box = file[file["digitStruct/bbox"][i, 0]]
            for k, field in enumerate(("left", "top", "width", "height", "label")):
                values = box[field]
                expected = [values[0, 0]] if len(values) == 1 else [file[r][0, 0] for r in values[:, 0]]
                assert ours.digits[:, k].tolist() == expected
            assert ours.name == name
    assert [n.name for n in found] == ["1.png", "2.png"]


def test_values_that_are_stored_in_chunks_are_read_alike(tmp_path):
    numbers = [number("1.png", (3, 4, 10, 20, 1)), number("2.png", (-1, 0, 5, 6, 10), (7.5, 0, 5, 6, 9))]
    digitstruct.write(tmp_path / "contiguous.mat", numbers)
    with h5py.File(tmp_path / "contiguous.mat") as old, h5py.File(tmp_path / "chunked.mat", "w") as new:
        for group in ("digitStruct", "#refs#"):
            old.copy(group, new, expand_refs=True)
        heap = new["#refs#"]
        for name, item in list(heap.items()):  # one number's box, and the coordinates of the other's
            for key, place in [(name, heap)] if isinstance(item, h5py.Dataset) else [(k, item) for k in item]:
                if place[key].dtype != h5py.ref_dtype:
                    values = place[key][()]
                    del place[key]
                    place.create_dataset(key, data=values, chunks=values.shape, compression="gzip")
        assert heap["b0/left"].id.get_storage_size() != 8
    found = digitstruct.read(tmp_path / "chunked.mat", progress=False)
    assert [n.digits.tolist() for n in found] == [n.digits.tolist() for n in numbers]


def test_many_records_are_read_by_processes_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(digitstruct, "PART", 4)
    names = [f"{i}.png" for i in range(1, 11)]
    digitstruct.write(tmp_path / "digitStruct.mat", [number(name, (0, 0, 1, 1, i + 1)) for i, name in enumerate(names)])
    found = digitstruct.read(tmp_path / "digitStruct.mat", progress=False)
    assert [n.name for n in found] == names
    assert [n.digits[0, 4] for n in found] == list(range(1, 11))


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    file, script = tmp_path / "digitStruct.mat", tmp_path / "script.py"
    digitstruct.write(file, [number(f"{i}.png", (0, 0, 1, 1, 1)) for i in (1, 2)])
    script.write_text(
        "from pathlib import Path\n"
        "from stn.experiments.datasets import digitstruct\n"
        f"digitstruct.PART = 1\ndigitstruct.read(Path({str(file)!r}), progress=False)\n"
    )
    said = subprocess.run([sys.executable, script], capture_output=True, text=True).stderr
    assert 'call this under `if __name__ == "__main__":` in your script' in said.splitlines()[-1]
    assert "a damaged one" not in said  # as its processes, which run the script too, found


def test_what_is_no_digit_struct_is_named_in_one_line(tmp_path):
    (tmp_path / "digitStruct.mat").write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"^[^\n]*digitStruct.mat is not a digitStruct.mat[^\n]*fetch its archive again$"
    ):
        digitstruct.read(tmp_path / "digitStruct.mat")


# --- labels and crops


def test_label_10_is_the_digit_0_and_the_rest_is_null():
    assert label(number("1.png", (0, 0, 1, 1, 10), (1, 0, 1, 1, 9), (2, 0, 1, 1, 1))).tolist() == [0, 9, 1, 10, 10]


@pytest.mark.parametrize("bad", [0, 11, 1.5])
def test_a_label_that_is_no_digit_is_named(bad):
    with pytest.raises(ValueError, match=f"gives 7.png the label {bad:g}: SVHN's are 1 to 9, and 10 for 0"):
        label(number("7.png", (0, 0, 1, 1, bad)))


def test_the_window_is_the_union_of_the_boxes_grown_by_30_percent():
    two = number("1.png", (10, 20, 10, 30, 1), (30, 22, 10, 18, 2))  # together x 10 to 40, y 20 to 50
    assert window(two, 64) == pytest.approx((25 - 19.5, 35 - 19.5, 25 + 19.5, 35 + 19.5))
    assert window(two, 128) == pytest.approx((25 - 39, 35 - 39, 25 + 39, 35 + 39))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_crop_shows_its_window_and_black_beyond_the_picture():
    picture = np.full((200, 200, 3), 255, np.uint8)
    picture[90:110, 90:110] = (255, 0, 0)  # the digit
    one = number("1.png", (90, 90, 20, 20, 1))
    cut = crop(png(picture), one, 64)
    red = cut[..., 1] < 128
    side = 64 / 1.3  # of the digit's square in the crop
    assert red.sum() == pytest.approx(side**2, rel=0.1)
    assert np.argwhere(red).mean(0) == pytest.approx([31.5, 31.5], abs=0.6)
    wide = crop(png(picture), one, 128)
    assert (wide[..., 1] < 128).sum() == pytest.approx(side**2, rel=0.1)  # the same scale
    corner = crop(png(picture), number("1.png", (0, 0, 20, 20, 1)), 128)
    assert (corner[:20, :20] == 0).all()
    assert (corner[-20:, -20:] == 255).all()


def test_a_truncated_picture_is_named():
    whole = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"^3\.png is not a complete picture [^\n]*: fetch its archive again$"):
        crop(whole[: len(whole) // 2], number("3.png", (1, 1, 5, 5, 1)), 64)


@pytest.mark.parametrize(
    "left_top", [(-100, 10), (100, 10), (20, -100), (20, 100)], ids=["left", "right", "above", "below"]
)
def test_a_number_outside_of_its_picture_is_named(left_top):
    with pytest.raises(ValueError, match=r"puts the number of 3\.png outside its picture \(40, 30\)"):
        crop(png(np.zeros((30, 40, 3), np.uint8)), number("3.png", (*left_top, 5, 5, 1)), 64)


# --- the store


def test_a_store_holds_every_number_once_and_valid_is_of_train(folder):
    store = prepare(folder, 64, COUNTS)
    index = json.loads((store / "index.json").read_text())
    assert index["numbers"] == {"train": 9, "valid": 3, "test": 3}
    numbers = digitstruct_of(folder, "train")
    expected = sorted(tuple(label(n)) for n in numbers)
    found = np.concatenate([np.load(store / f"{split}-labels.npy") for split in ("train", "valid")])
    assert sorted(map(tuple, found)) == expected
    with tarfile.open(folder / "test.tar.gz") as tar:
        for n, image in zip(digitstruct_of(folder, "test"), np.load(store / "test.npy"), strict=True):
            assert (crop(tar.extractfile(f"test/{n.name}").read(), n, 64) == image).all()
    assert sorted(path.name for path in store.iterdir()) == sorted(
        ["index.json", *(f"{s}{k}.npy" for s in ("train", "valid", "test") for k in ("", "-labels"))]
    )


def digitstruct_of(folder, split):
    return svhn.read_numbers(folder, split)[0]


def test_extra_goes_to_train_after_its_own(folder):
    shutil.copy(folder / "test.tar.gz", folder / "extra.tar.gz")

    def rename(files):
        for name in list(files):
            files[name.replace("test", "extra")] = files.pop(name)

    rewrite(folder / "extra.tar.gz", rename)
    store = prepare(folder, 64, COUNTS | {"extra": 3})
    assert (np.load(store / "train.npy")[9:] == np.load(store / "test.npy")).all()


def test_numbers_of_more_than_five_digits_are_dropped_and_counted(folder, tmp_path):
    def longer(files):
        numbers = digitstruct_of(folder, "train")
        numbers[4] = Number(numbers[4].name, np.repeat(numbers[4].digits[:1], 6, axis=0))
        digitstruct.write(tmp_path / "mat", numbers)
        files["train/digitStruct.mat"] = (tmp_path / "mat").read_bytes()

    rewrite(folder / "train.tar.gz", longer)
    index = json.loads((prepare(folder, 64, COUNTS) / "index.json").read_text())
    assert index["dropped"] == {"train": 1, "test": 0}
    assert index["numbers"]["train"] + index["numbers"]["valid"] == 11


def test_an_interrupted_preparation_ends_in_the_same_bytes(folder, monkeypatch):
    monkeypatch.setattr(svhn, "SAVE_EVERY", 2)
    cropped = []

    def stop_at(n, png, number, size_px):
        if len(cropped) == n:
            raise KeyboardInterrupt
        cropped.append(number.name)
        return crop(png, number, size_px)

    monkeypatch.setattr(svhn, "crop", partial(stop_at, 7))
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, 64, COUNTS)
    assert not (folder / "64px").exists()  # half a store has another name
    monkeypatch.setattr(svhn, "crop", partial(stop_at, -1))
    store = prepare(folder, 64, COUNTS)
    assert len(cropped) == 15 + 1  # the seventh was not noted yet
    resumed = json.loads((store / "index.json").read_text())
    shutil.rmtree(store)
    assert json.loads((prepare(folder, 64, COUNTS) / "index.json").read_text()) == resumed


BAD = {
    "missing": (lambda f: f.pop("train/3.png"), r"lacks 1 of the 12 pictures"),
    "renamed": (lambda f: f.__setitem__("train/x3.png", f.pop("train/3.png")), r"lacks 1 of the 12 pictures"),
    "truncated": (lambda f: f.__setitem__("train/3.png", f["train/3.png"][:200]), r"3\.png is not a complete picture"),
    "no digitStruct": (lambda f: f.pop("train/digitStruct.mat"), r"has no digitStruct\.mat"),
    "leaves the folder": (lambda f: f.__setitem__("train/../../x.png", b""), r"'train/\.\./\.\./x\.png', which is no"),
    "of another folder": (lambda f: f.__setitem__("/etc/x.png", b""), r"which is not a file of train/"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_archive_is_named_in_one_line_and_leaves_no_store(folder, change, message):
    rewrite(folder / "train.tar.gz", change)
    before = set(folder.parent.rglob("*"))
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        prepare(folder, 64, COUNTS)
    assert not (folder / "64px").exists()
    outside = {path for path in set(folder.parent.rglob("*")) - before if folder not in path.parents}
    assert outside == set()


def test_a_truncated_archive_is_named(folder):
    whole = (folder / "train.tar.gz").read_bytes()
    (folder / "train.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^[^\n]*train\.tar\.gz is damaged [^\n]*$"):
        prepare(folder, 64, COUNTS)


def test_an_archive_with_other_than_svhn_s_count_is_refused(folder):
    with pytest.raises(ValueError, match=r"train\.tar\.gz has 12 numbers, SVHN has 33402"):
        prepare(folder, 64, COUNTS | {"train": 33402})


@pytest.mark.parametrize("full", ["before", "while allocating"])
def test_a_full_disk_is_named_and_leaves_nothing(folder, monkeypatch, full):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    if full == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    else:
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match=r"^the store of 64 px crops needs 0\.0 GB, but [^\n]* GB free: make room"):
        prepare(folder, 64, COUNTS)
    assert not list(folder.glob("64px*"))


# --- the data set


@pytest.fixture
def data(folder):
    prepare(folder, 64, COUNTS)
    return RenderedNumbers(folder.parent, 64)


def test_a_batch_is_what_the_generator_draws_in_0_to_1(data):
    u, labels = data.batch(32, torch.Generator().manual_seed(1))
    again, _ = data.batch(32, torch.Generator().manual_seed(1))
    assert u.shape == (32, *data.in_shape)
    assert labels.shape == (32, 5)
    assert torch.equal(u, again)
    assert u.min() >= 0
    assert 0.5 < u.max() <= 1
    index = torch.randint(9, (32,), generator=torch.Generator().manual_seed(1))
    assert torch.equal((u * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(data.images[index.numpy()]))


def test_the_test_split_comes_once_and_whole(data):
    images = torch.cat([u for u, _ in data.test_batches()])
    assert torch.equal((images * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(np.array(data.test[0])))


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_number_fills_the_same_part_of_every_crop(size_px):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[10:36, 14:66] = 255  # the number, exactly
    seen = crop(png(picture), number("1.png", (14, 10, 52, 26, 1)), size_px)[..., 0] > 127
    rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
    for found in (rows, columns):
        assert len(found) == pytest.approx(svhn.number_side(size_px) * size_px, abs=2)
        assert found.mean() == pytest.approx((size_px - 1) / 2, abs=1)


def test_only_rendered_numbers_are_synthetic(data):
    assert RenderedNumbers.synthetic
    assert not Svhn.synthetic


@pytest.mark.parametrize("kind", [Svhn, RenderedNumbers])
def test_without_a_store_one_line_says_how_to_get_it(tmp_path, kind):
    with pytest.raises(
        FileNotFoundError, match=r"^there are no 128 px crops in [^\n]*: run `make data-svhn[^\n]*$"
    ) as e:
        kind(tmp_path, 128)
    assert kind is RenderedNumbers or "data=svhn_rendered" in str(e.value)


def zeros(store):
    with open(store / "train.npy", "r+b") as file:
        file.seek(5000)
        file.write(bytes(1000))


def other_labels(store):
    np.save(store / "train-labels.npy", np.zeros((9, 5), np.uint8))


def without_labels(store):
    index = json.loads((store / "index.json").read_text())
    sums = {name: digest for name, digest in index["sha256"].items() if "labels" not in name}
    (store / "index.json").write_text(json.dumps(index | {"sha256": sums}))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        pytest.param(zeros, "train.npy", id="zeros in the middle"),
        pytest.param(lambda s: shutil.copy(s / "valid.npy", s / "test.npy"), "test.npy", id="valid as test"),
        pytest.param(other_labels, "train-labels.npy", id="other labels"),
        pytest.param(lambda s: (s / "test-labels.npy").unlink(), "test-labels.npy", id="no labels"),
        pytest.param(lambda s: (s / "train.npy").write_bytes(b"something else"), "train.npy", id="no array"),
        pytest.param(without_labels, "index.json", id="an older index"),
        pytest.param(lambda s: (s / "index.json").write_text("{"), "index.json", id="half an index"),
        pytest.param(lambda s: (s / "index.json").write_text("[1]"), "index.json", id="another index"),
    ],
)  # fmt: skip
def test_every_byte_of_a_store_is_what_its_index_says(data, folder, damage, file):
    damage(folder / "64px")
    with pytest.raises(ValueError, match=rf"^{folder}/64px/{file} [^\n]*: delete {folder}/64px and [^\n]*$"):
        RenderedNumbers(folder.parent, 64)


def test_the_record_has_the_checksums_of_the_bytes_that_were_read(data, folder):
    files = ("train", "train-labels", "test", "test-labels")
    found = {name: hashlib.sha256((folder / f"64px/{name}.npy").read_bytes()).hexdigest() for name in files}
    assert data.checksums() == found


# --- rendered numbers


def test_a_rendered_number_is_the_same_again_with_boxes_inside(fonts):
    for i in range(20):
        file, digits = rendered.render(0, "train", i)
        again, _ = rendered.render(0, "train", i)
        assert file == again
        w, h = Image.open(io.BytesIO(file)).size
        assert 1 <= len(digits) <= 5
        assert (digits[:, :2] >= -1).all()
        assert ((digits[:, :2] + digits[:, 2:4]) <= np.array([w, h]) + 1).all()
        assert (digits[:, 2:4] >= 1).all()
        assert set(digits[:, 4]) <= set(range(1, 11))
    assert rendered.render(1, "train", 0)[0] != rendered.render(0, "train", 0)[0] != rendered.render(0, "test", 0)[0]


def test_there_are_many_fonts_with_ten_different_digits(fonts):
    assert len(rendered.fonts()) > 150


# --- downloads


ARCHIVE = b"\x1f\x8b" + bytes(range(250)) * 400  # it begins as a gzip file does


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({"/train.tar.gz": ARCHIVE}) as server:
        yield server


def test_a_download_that_stopped_goes_on_until_it_is_whole(server, tmp_path):
    def half(request):
        request.begin("Content-Length", len(ARCHIVE))
        request.wfile.write(ARCHIVE[:50_000])

    url, path = f"{server.url}train.tar.gz", tmp_path / "svhn" / "train.tar.gz"
    server.bodies = {"/train.tar.gz": half}
    with pytest.raises(OSError, match=rf"sent 50000 bytes of {len(ARCHIVE)}: run the same command again"):
        download(url, path, len(ARCHIVE))
    assert not path.exists()
    server.bodies = {"/train.tar.gz": ARCHIVE}
    download(url, path, len(ARCHIVE))
    download(url, path, len(ARCHIVE))  # nothing left to do
    assert path.read_bytes() == ARCHIVE
    assert server.starts == [0, 50_000]


def test_an_archive_of_another_size_is_named_and_fetched_again(server, tmp_path, caplog):
    path = tmp_path / "train.tar.gz"
    path.write_bytes(b"0123456789")
    download(f"{server.url}train.tar.gz", path, len(ARCHIVE))
    assert f"{path} has 10 bytes, the manifest says {len(ARCHIVE)}: it is fetched again" in caplog.text
    assert path.read_bytes() == ARCHIVE


def test_a_download_of_another_size_is_not_taken(server, tmp_path):
    with pytest.raises(OSError, match=rf"it offers {len(ARCHIVE)} bytes of 70000"):
        download(f"{server.url}train.tar.gz", tmp_path / "train.tar.gz", 70_000)
    assert list(tmp_path.iterdir()) == []

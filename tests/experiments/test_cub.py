"""CUB's files, their archive, synthetic birds in the same format, and the crops that are trained and tested with."""

import hashlib
import io
import os
import shutil
import tarfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mirror import serving
from PIL import Image

from stn.experiments.datasets import synthetic_birds
from stn.experiments.datasets.cub import Cub
from stn.experiments.datasets.cub_files import fetch_cub, read, unpack
from stn.experiments.datasets.photos import Cropper, load
from stn.experiments.datasets.synthetic_birds import SyntheticBirds

FILES = ("images", "classes", "image_class_labels", "train_test_split", "bounding_boxes", "parts/parts",
         "parts/part_locs")  # fmt: skip
ONE_LINE = r"^[^\n]*$"


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Sixty synthetic birds: seven for training and three for the test of each class."""
    return synthetic_birds.write(tmp_path_factory.mktemp("data") / synthetic_birds.FOLDER, train=7, test=3)


@pytest.fixture
def folder(birds, tmp_path):
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(birds, tmp_path / synthetic_birds.FOLDER))


@pytest.fixture
def hand_written(tmp_path):
    """Two images of two classes, written line by line as CUB's README says."""
    folder = tmp_path / "CUB_200_2011"
    for name in ("001.Wren/Wren_1.jpg", "002.Crow/Crow_7.jpg"):
        (folder / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(folder / "images" / name)
    (folder / "parts").mkdir()
    lines = {
        "images": ["1 001.Wren/Wren_1.jpg", "2 002.Crow/Crow_7.jpg"],
        "classes": ["1 001.Wren", "2 002.Crow"],
        "image_class_labels": ["2 2", "1 1"],
        "train_test_split": ["1 1", "2 0"],
        "bounding_boxes": ["1 60.0 27.0 325.0 304.0", "2 1.0 2.0 3.0 4.5"],
        "parts/parts": ["1 beak", "2 left eye"],
        "parts/part_locs": ["1 1 312.0 182.0 1", "1 2 0.0 0.0 0", "2 1 5.0 6.0 0", "2 2 7.0 8.0 1"],
    }
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


def replace(path, line, by):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: line - 1] + ([by] if by else []) + lines[line:]) + "\n")


# --- the text files


def test_the_text_files_are_read_as_their_readme_says(hand_written):
    listing = read(hand_written)
    assert listing.paths == [hand_written / "images" / name for name in ("001.Wren/Wren_1.jpg", "002.Crow/Crow_7.jpg")]
    assert listing.labels.tolist() == [0, 1]
    assert listing.train.tolist() == [True, False]
    assert listing.boxes.tolist() == [[60, 27, 325, 304], [1, 2, 3, 4.5]]
    assert listing.parts.tolist() == [[[312, 182, 1], [0, 0, 0]], [[5, 6, 0], [7, 8, 1]]]
    assert listing.classes == ["001.Wren", "002.Crow"]
    assert listing.part_names == ["beak", "left eye"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_in_one_line(folder, name):
    (folder / f"{name}.txt").rename(folder / f"{name}_2.txt")
    with pytest.raises(FileNotFoundError, match=rf"^{folder / name}.txt is missing: [^\n]*make data-cub"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "line", "by", "says"),
    [
        ("image_class_labels", 3, "3 7", "image 3 has class 7, but classes.txt has 1 to 6"),
        ("image_class_labels", 3, "3 0", "image 3 has class 0, but classes.txt has 1 to 6"),
        ("image_class_labels", 3, "3 one", "holds a value that is not a number"),
        ("image_class_labels", 3, None, "has no line for '3'"),
        ("bounding_boxes", 5, "5 1.0 2.0", "has no line for '5'"),
        ("parts/part_locs", 17, None, "has no line for '2 2'"),
        ("images", 2, "2 ../../secret.jpg", r"names '\.\./\.\./secret.jpg', which is outside the folder"),
        ("images", 2, "2 /etc/secret.jpg", r"names '/etc/secret.jpg', which is outside the folder"),
    ],
)
def test_files_that_contradict_each_other_are_refused(folder, name, line, by, says):
    replace(folder / f"{name}.txt", line, by)
    with pytest.raises(ValueError, match=says) as caught:
        read(folder)
    assert str(folder / f"{name}.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused_in_one_line(folder):
    (folder / "classes.txt").write_text("")
    with pytest.raises(ValueError, match=rf"^{folder / 'classes.txt'} is empty: "):
        read(folder)


def test_missing_images_are_counted_and_the_first_is_named(folder):
    first, *_ = images = sorted((folder / "images").rglob("*.jpg"))[:2]
    for image in images:
        image.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^2 of the 60 images [^\n]* the first is {first}: "):
        read(folder)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"bird"])
def test_half_an_image_is_refused_and_never_trained_with(folder, damage):
    for path in (folder / "images").rglob("*.jpg"):
        path.write_bytes(damage(path.read_bytes()))
    data = SyntheticBirds(folder.parent, 32)
    with pytest.raises(ValueError, match=rf"^the image {folder}[^\n]* is damaged \([^\n]*\): [^\n]*$"):
        data.batch(2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is damaged"):
        next(iter(data.test_batches()))


# --- the archive


def pack(path, folder, **members):
    """An archive of a folder as CUB's, and of `members` beside it: bytes, or a TarInfo."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "CUB_200_2011")
        for name, content in ({"attributes.txt": b"1 blue"} | members).items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_an_archive_is_unpacked_under_its_folder_s_name_alone(birds, tmp_path):
    unpack(pack(tmp_path / "CUB_200_2011.tgz", birds), tmp_path / "CUB_200_2011")
    assert read(tmp_path / "CUB_200_2011").names == read(birds).names
    assert {path.name for path in tmp_path.iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz"}


def test_what_a_killed_process_has_unpacked_is_not_kept(birds, tmp_path):
    (tmp_path / ".CUB_200_2011.partial/CUB_200_2011/images").mkdir(parents=True)
    (tmp_path / ".CUB_200_2011.partial/CUB_200_2011/images/half.jpg").write_bytes(b"half")
    unpack(pack(tmp_path / "CUB_200_2011.tgz", birds), tmp_path / "CUB_200_2011")
    assert {path.name for path in tmp_path.iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz"}
    assert not (tmp_path / "CUB_200_2011/images/half.jpg").exists()


@pytest.mark.parametrize(
    "members",
    [
        {"../evil": b"x"},
        {"CUB_200_2011/../../evil": b"x"},
        {"/evil": b"x"},
        {"link": link("CUB_200_2011/link", "../..", tarfile.SYMTYPE)},
        {"link": link("CUB_200_2011/link", "/etc/passwd", tarfile.LNKTYPE)},
        {"pipe": link("CUB_200_2011/pipe", "", tarfile.FIFOTYPE)},
    ],
    ids=["up", "up from within", "absolute", "symbolic link", "hard link", "pipe"],
)
def test_an_archive_that_reaches_out_of_its_folder_is_refused(birds, tmp_path, members):
    root = tmp_path / "a/b"
    root.mkdir(parents=True)
    archive = pack(root / "CUB_200_2011.tgz", birds, **members)
    with pytest.raises(ValueError, match=rf"^{archive} holds '[^\n]*', which is not a plain file inside it: refused$"):
        unpack(archive, root / "CUB_200_2011")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert [path.name for path in root.iterdir()] == [archive.name]


def test_an_archive_that_was_cut_off_is_refused(birds, tmp_path):
    archive = pack(tmp_path / "CUB_200_2011.tgz", birds)
    archive.write_bytes(archive.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match=rf"^{archive} is damaged \([^\n]*\): delete it and run `make data-cub`$"):
        unpack(archive, tmp_path / "CUB_200_2011")
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("change", ["missing", "renamed", "image"])
def test_an_archive_in_which_a_file_is_missing_is_refused(folder, tmp_path, change):
    if change == "image":
        next((folder / "images").rglob("*.jpg")).unlink()
    elif change == "renamed":
        (folder / "bounding_boxes.txt").rename(folder / "boxes.txt")
    else:
        (folder / "images.txt").unlink()
    (tmp_path / "data").mkdir()
    archive = pack(tmp_path / "data/CUB_200_2011.tgz", folder)
    with pytest.raises(ValueError, match=rf"^{archive} is not CUB's: [^\n]*missing[^\n]*$"):
        unpack(archive, tmp_path / "data/CUB_200_2011")
    assert list((tmp_path / "data").iterdir()) == [archive]


@pytest.fixture
def root(birds, tmp_path, monkeypatch):
    """A data folder whose manifest has the sha256 of a small archive, which lies beside it; no mirror answers."""

    def nobody(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", nobody)
    archive = pack(tmp_path / "small.tgz", birds).read_bytes()
    file = {"sha256": hashlib.sha256(archive).hexdigest(), "bytes": len(archive)}
    entry = {"files": {"CUB_200_2011.tgz": file}, "mirrors": ["https://mirror.test/"]}
    (tmp_path / "data/cub").mkdir(parents=True)
    (tmp_path / "data/manifest.yaml").write_text(yaml.safe_dump({"cub": entry}))
    return tmp_path / "data"


def test_an_archive_put_there_by_hand_is_checked_and_used(root):
    shutil.copy(root.parent / "small.tgz", root / "cub/CUB_200_2011.tgz")
    assert len(read(fetch_cub(root)).paths) == 60
    (root / "cub/CUB_200_2011.tgz").unlink()  # no longer needed
    assert len(read(fetch_cub(root)).paths) == 60
    data = Cub(root, 32)
    assert not data.synthetic
    assert data.classes == 6


@pytest.fixture
def mirror(root, monkeypatch):
    """The mirror of the manifest, on this machine."""
    monkeypatch.undo()  # of "no network"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({"/CUB_200_2011.tgz": (root.parent / "small.tgz").read_bytes()}) as server:
        text = (root / "manifest.yaml").read_text()
        (root / "manifest.yaml").write_text(text.replace("https://mirror.test/", server.url))
        yield server


def test_an_archive_is_fetched_from_the_mirror(root, mirror):
    assert len(read(fetch_cub(root)).paths) == 60
    assert mirror.asked == ["/CUB_200_2011.tgz"]


def test_other_bytes_than_the_manifest_s_are_refused_in_one_line(root, mirror):
    archive = root / "cub/CUB_200_2011.tgz"
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"^{archive} is damaged [^\n]*$"):
        fetch_cub(root)
    archive.unlink()
    mirror.bodies["/CUB_200_2011.tgz"] = b"\x1f\x8b" + bytes(len(mirror.bodies["/CUB_200_2011.tgz"]) - 2)
    with pytest.raises(FileNotFoundError, match=rf"^{archive} is missing, and {mirror.url} did not [^\n]*$"):
        fetch_cub(root)
    assert [path.name for path in (root / "cub").iterdir()] == [".lock"]


def test_without_network_and_archive_one_line_says_what_to_do(root):
    with pytest.raises(FileNotFoundError, match=r"^[^\n]*put the archive there yourself[^\n]*data=synthetic_birds$"):
        Cub(root, 32)


def test_the_manifest_has_the_published_checksums_of_cub():
    entry = yaml.safe_load((Path(__file__).parents[2] / "data/manifest.yaml").read_text())["cub"]
    assert entry["files"]["CUB_200_2011.tgz"] == {
        "md5": "97eceeb196236b17998738112f37df78",
        "sha256": "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        "bytes": 1_150_585_339,
    }


# --- synthetic birds


def test_synthetic_birds_have_cub_s_files_and_say_what_they_are(birds):
    listing = read(birds)
    assert {path.relative_to(birds).as_posix() for path in birds.rglob("*.txt")} == {f"{name}.txt" for name in FILES}
    assert len(listing.classes) == 6
    assert np.bincount(listing.labels[listing.train]).tolist() == [7] * 6
    assert np.bincount(listing.labels[~listing.train]).tolist() == [3] * 6
    assert all("Synthetic" in name for name in [*listing.classes, *listing.names])
    assert "Not CUB" in (birds / "README").read_text()
    assert len(listing.part_names) == 15
    visible = listing.parts[:, :, 2].sum(1)
    assert visible.max() == 12  # one eye, leg and wing are on the other side
    assert visible.min() >= 5  # most of a head; the image may end within the bird


def test_synthetic_birds_follow_from_the_seed(birds, tmp_path):
    same = synthetic_birds.write(tmp_path / "same", train=1, test=0)
    other = synthetic_birds.write(tmp_path / "other", train=1, test=0, seed=1)
    image = "images/004.Synthetic_nape/Synthetic_nape_0001.jpg"
    assert (same / image).read_bytes() == (birds / image).read_bytes() != (other / image).read_bytes()
    first = [(folder / "parts/part_locs.txt").read_text().splitlines()[:15] for folder in (birds, same, other)]
    assert first[0] == first[1] != first[2]


def test_two_classes_differ_on_the_head_alone():
    for seed in range(4):
        drawn = [synthetic_birds.draw(k, np.random.default_rng(seed)) for k in range(6)]
        images = np.stack([np.asarray(image).astype(int) for image, _, _ in drawn])
        _, places, _ = drawn[0]
        y, x = np.mgrid[: images.shape[1], : images.shape[2]] + 0.5
        eye = next(place for name, place in places.items() if name.endswith("eye"))
        far = np.hypot(x - eye[0], y - eye[1]) > 0.25 * 0.5 * min(images.shape[1:3]) + 2  # of the longest bird
        assert not (images != images[:1])[:, far].any()
        assert len({image.tobytes() for image in images}) == 6


def test_heads_are_anywhere_and_birds_of_many_sizes(birds):
    listing = read(birds)
    data = SyntheticBirds(birds.parent, 32)
    sides = np.array([load(path).shape[1::-1] for path in listing.paths])
    head = 2 * (data.points[:, 0] - sides / 2) / sides.min(1, keepdims=True)
    assert (head.min(0) < -0.6).all()
    assert (head.max(0) > 0.6).all()
    assert head.std(0) == pytest.approx(0.72 / 3**0.5, abs=0.06)  # that of a uniform place
    assert abs(np.corrcoef(head.T)[0, 1]) < 0.3
    assert listing.boxes[:, 2].max() > 1.8 * listing.boxes[:, 2].min()


def test_a_kill_while_birds_are_drawn_leaves_nothing(tmp_path, monkeypatch):
    def stop(k, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_birds, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic_birds.write(tmp_path / synthetic_birds.FOLDER)
    assert list(tmp_path.iterdir()) == []


# --- crops


def test_a_training_image_is_a_crop_mirrored_half_of_the_time(birds):
    path = read(birds).paths[0]
    image = load(path)
    h, w = image.shape[:2]
    f = 64 / min(h, w)
    whole = cv2.resize(image, (round(w * f), round(h * f)), interpolation=cv2.INTER_AREA)
    found = []
    for seed in range(60):
        crop, _ = Cropper(56).train(path, seed, np.zeros((0, 2)))
        assert crop.shape == (56, 56, 3)
        places = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(whole.shape[0] - 55)
            for left in range(whole.shape[1] - 55)
            if (whole[top : top + 56, left : left + 56][:, :: -1 if mirrored else 1] == crop).all()
        ]
        assert len(places) == 1
        found += places
    assert 15 < sum(mirrored for _, _, mirrored in found) < 45
    assert {top for top, _, _ in found} > {0, whole.shape[0] - 56}
    assert min(left for _, left, _ in found) <= 2


def test_the_parts_are_where_they_are_seen_in_the_crops(folder):
    data = SyntheticBirds(folder.parent, 96, parts=True)
    assert data.in_shape == (7, 96, 96)
    for i in data.train:  # a white disc where the head is, on black
        image = np.zeros_like(load(data.listing.paths[i]))
        cv2.circle(image, tuple(data.points[i, 0].round().astype(int).tolist()), 4, (255, 255, 255), -1)
        Image.fromarray(image).save(data.listing.paths[i], quality=95)
    data.test = data.train
    drawn = [data.batch(16, torch.Generator().manual_seed(0)), *data.test_batches()]
    assert len(drawn) == 3
    for u, target in drawn:
        if isinstance(target, dict):
            assert torch.equal(u[:, 3:, 5, 50], target["parts"].flatten(1))
        assert torch.equal(u[:, 3:], u[:, 3:, :1, :1].expand(-1, -1, 96, 96))
        assert u[:, 3:5, 0, 0].std(0).min() > 0.2
        for image, (x, y) in zip(u[:, 0], u[:, 3:5, 0, 0].tolist(), strict=True):
            ys, xs = np.nonzero(image.numpy() > 0.5)
            if max(abs(x), abs(y)) < 0.85:
                seen = [(2 * at.mean() + 1) / 96 - 1 for at in (xs, ys)]
                assert seen == pytest.approx([x, y], abs=0.04)


def test_parts_change_no_bit_of_the_images(birds):
    plain, marked = (SyntheticBirds(birds.parent, 32, parts=parts) for parts in (False, True))
    (u, _), (v, _) = (data.batch(8, torch.Generator().manual_seed(0)) for data in (plain, marked))
    assert torch.equal(u, v[:, :3])


def test_validation_is_a_frozen_fifth_of_the_training_images(birds):
    data, test = (SyntheticBirds(birds.parent, 32, test_split=split) for split in ("valid", "test"))
    assert len(data.test) == 8
    assert sorted([*data.test, *data.train]) == test.train.tolist()
    assert data.test.tolist() == SyntheticBirds(birds.parent, 64, test_split="valid").test.tolist()
    assert sum(len(u) for u, _ in data.test_batches()) == 8
    with pytest.raises(ValueError, match=r"^unknown data\.test_split='dev': choose test or valid$"):
        SyntheticBirds.shape(224, test_split="dev")


def test_batches_depend_on_the_generator_not_on_the_threads(birds, monkeypatch):
    train = Cropper.train

    def late(crops, path, seed, points):
        threading.Event().wait((seed % 7) / 1000)
        return train(crops, path, seed, points)

    def batches(workers):
        data = SyntheticBirds(birds.parent, 32)
        data.pool = ThreadPoolExecutor(workers)
        generator = torch.Generator().manual_seed(5)
        return [data.batch(6, generator) for _ in range(3)]

    reference = batches(1)
    four = batches(4)
    monkeypatch.setattr(Cropper, "train", late)
    for other in (four, batches(3)):
        for (u, label), (v, same) in zip(reference, other, strict=True):
            assert torch.equal(u, v)
            assert torch.equal(label, same)
    (u, label), (v, _), _ = reference
    assert not torch.equal(u, v)
    assert u.shape == (6, 3, 32, 32)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < u.max() <= 1
    assert label.dtype == torch.int64


def test_another_generator_is_not_given_the_last_one_s_batch(birds):
    data = SyntheticBirds(birds.parent, 32)
    data.batch(4, torch.Generator().manual_seed(1))
    u, _ = data.batch(4, torch.Generator().manual_seed(2))
    v, _ = SyntheticBirds(birds.parent, 32).batch(4, torch.Generator().manual_seed(2))
    assert torch.equal(u, v)


def test_the_next_batch_is_prepared_during_the_step(birds):
    data = SyntheticBirds(birds.parent, 32)
    generator = torch.Generator().manual_seed(0)
    data.batch(4, generator)
    photos, _ = data.ahead[2]
    assert wait(photos, timeout=200).not_done == set()


def test_training_sees_each_training_image_and_no_other(birds, monkeypatch):
    data = SyntheticBirds(birds.parent, 32)
    seen = []
    photo = np.zeros((32, 32, 3), np.uint8)
    monkeypatch.setattr(Cropper, "train", lambda crops, path, seed, points: seen.append(path) or (photo, points))
    data.batch(400, torch.Generator().manual_seed(0))
    assert set(seen) == {data.listing.paths[i] for i in data.train}


def test_the_test_set_is_the_middle_crops_with_weights_of_mean_1(folder, tmp_path):
    names = read(folder).names
    part_locs = folder / "parts/part_locs.txt"
    data = SyntheticBirds(folder.parent, 32)
    hidden = data.test[0]
    lines = [line.split() for line in part_locs.read_text().splitlines()]
    part_locs.write_text("".join(
        " ".join([*words[:4], "0" if int(words[0]) == hidden + 1 else words[4]]) + "\n" for words in lines
    ))  # fmt: skip
    (tmp_path / "excluded.txt").write_text(f"{names[data.test[3]]}\n{names[data.test[5]]}\n")
    data = SyntheticBirds(folder.parent, 32, excluded=tmp_path / "excluded.txt")
    batches = list(data.test_batches())
    target = {key: torch.cat([batch[1][key] for batch in batches]) for key in batches[0][1]}
    assert torch.cat([u for u, _ in batches]).shape == (18, 3, 32, 32)
    assert target["label"].tolist() == data.listing.labels[data.test].tolist()
    kept = torch.ones(18)
    kept[[3, 5]] = 0
    torch.testing.assert_close(target["kept"], kept * 18 / 16)
    seen = target["seen"] > 0
    assert seen.sum(0).tolist() == [17, 17]
    assert not seen[0].any()
    torch.testing.assert_close(target["seen"], seen * 18 / 17)
    one, _ = data.cropper.test(data.listing.paths[data.test[7]], data.points[data.test[7]])
    torch.testing.assert_close(batches[0][0][7], torch.from_numpy(one).permute(2, 0, 1) / 255)


def test_an_excluded_image_that_is_none_of_the_test_is_refused(birds, tmp_path):
    train = read(birds).names[0]
    (tmp_path / "excluded.txt").write_text(f"{train}\n")
    with pytest.raises(ValueError, match=rf"excluded.txt: '{train}' is not a test image: {ONE_LINE[1:]}"):
        SyntheticBirds(birds.parent, 32, excluded=tmp_path / "excluded.txt")


def test_448_divided_by_3_and_a_half_is_a_crop_of_128_px(birds):
    assert SyntheticBirds(birds.parent, 448, shrink=3.5).in_shape == (3, 128, 128)
    assert SyntheticBirds(birds.parent, 224).in_shape == (3, 224, 224)


def test_the_checksums_stand_for_images_labels_and_places(folder):
    before = SyntheticBirds(folder.parent, 32).checksums()
    assert before == SyntheticBirds(folder.parent, 64).checksums()
    image = read(folder).paths[0]
    image.write_bytes(image.read_bytes() + b"x")
    after = SyntheticBirds(folder.parent, 32).checksums()
    assert after["train"] != before["train"]
    assert (after["test"], after["places"]) == (before["test"], before["places"])
    parts = folder / "parts/part_locs.txt"
    parts.write_text(parts.read_text().replace(" 1\n", " 0\n"))  # none of them is visible
    moved = SyntheticBirds(folder.parent, 32).checksums()
    assert moved["places"] != after["places"]
    assert (moved["train"], moved["test"]) == (after["train"], after["test"])
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"

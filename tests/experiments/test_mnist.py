"""MNIST as it was published, its frozen test sets and its fresh training batches."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ranges import DISTORTIONS, RANGES

from stn.experiments.datasets.distortions import frozen
from stn.experiments.datasets.mnist import TEST_SEED, DistortedMnist, load_digits, split_digits

ROOT = Path(__file__).parents[2] / "data"
FROZEN = {  # another sha256 is another test set: records made before and after cannot share a table
    "r": "80faccc02545491cb8ac7b05b31a53ce48ab4ab0bc2c9e52606b2272d5995cee",
    "rts": "4b5c24327380e699261f2bf019ca24118c9956a00142447dc5e6f5329e21229f",
    "p": "3bff26c430d8e7786ebf3ea4547117dbba905fd24ebdcbd6aa2c5cbbb5277223",
    "e": "85002db8a265e4229f307e813c6db8de75165127774a29b3cea430ab95defcce",
    "tc": "60b01e568fec0683d158fadca28c0580e107bd99b970acc6c2ead38aab4d3cbe",
}
each_distortion = pytest.mark.parametrize("name", FROZEN)


@pytest.fixture(scope="module")
def t10k():
    return load_digits(ROOT, "t10k")[0]


@pytest.fixture
def threads_kept():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def digits(tmp_path):
    """A data folder like MNIST's whose digits are plain squares, grey 100 + label in train, 200 + label in t10k."""
    folder, rng, files = tmp_path / "mnist", np.random.default_rng(0), {}
    folder.mkdir()
    for split, n, grey in (("train", 70, 100), ("t10k", 50, 200)):
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        images = np.broadcast_to(grey + labels[:, None, None], (n, 28, 28)).astype(np.uint8)
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">4i", 2051, n, 28, 28) + images.tobytes()
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, n) + labels.tobytes()
    entry = {"files": {}, "mirrors": [], "npm_package": "none"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        entry["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"mnist": entry}))
    return tmp_path


def test_mnist_is_the_published_one():
    md5 = {  # of the files of yann.lecun.com, uncompressed
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    counts = {"train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
              "t10k": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]}  # fmt: skip
    for split in counts:
        images, labels = load_digits(ROOT, split)
        assert images.shape == (sum(counts[split]), 28, 28)
        assert torch.bincount(labels).tolist() == counts[split]
    files = yaml.safe_load((ROOT / "manifest.yaml").read_text())["mnist"]["files"]
    for name in md5:
        content = (ROOT / "mnist" / name).read_bytes()
        assert (hashlib.md5(content).hexdigest(), len(content)) == (md5[name], files[name]["bytes"])


def test_every_distortion_has_a_pinned_test_set():
    assert set(FROZEN) == set(DISTORTIONS)


@each_distortion
def test_a_frozen_test_set_is_that_of_the_records_on_any_threads(name, t10k, threads_kept):
    torch.set_num_threads(1)
    data = DistortedMnist(ROOT, DISTORTIONS[name])
    images, labels = data.test.tensors
    assert images.shape == (10_000, 1, *(RANGES[name]["canvas_px"],) * 2)
    assert labels.equal(load_digits(ROOT, "t10k")[1])
    assert data.checksums()["test"] == FROZEN[name]
    torch.set_num_threads(3)
    torch.manual_seed(1)  # nor does the seed of a run change it
    assert images[:, 0].equal(frozen(DISTORTIONS[name], t10k, TEST_SEED))


@each_distortion
def test_another_seed_gives_another_test_set(name, t10k):
    first, same, other = (frozen(DISTORTIONS[name], t10k[:100], TEST_SEED + step) for step in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)


def test_hardly_a_test_image_of_p_shows_nothing(t10k):
    """A black image is an error nine times in ten, and Table 1 compares tenths of a per cent."""
    assert (frozen(DISTORTIONS["p"], t10k, TEST_SEED).flatten(1).amax(1) == 0).float().mean() <= 0.002


@each_distortion
def test_labels_go_with_images_and_the_splits_stay_apart(name, digits):
    data = DistortedMnist(digits, DISTORTIONS[name])
    images, labels = data.batch(200, torch.Generator().manual_seed(0))
    train = (images[:, 0] * 255).round().byte().numpy()
    test, test_labels = data.test.tensors[0][:, 0].numpy(), data.test.tensors[1].numpy()
    for pixels, grey, expected in ((train, 100, labels.numpy()), (test, 200, test_labels)):
        areas = np.stack([np.count_nonzero(pixels == grey + label, axis=(1, 2)) for label in range(10)], axis=1)
        seen = areas.max(1) > 30  # P may leave a sliver of a digit, or nothing
        assert seen.mean() > 0.9
        np.testing.assert_array_equal(areas.argmax(1)[seen], expected[seen])  # TC: the digit outgrows its clutter
    assert len(set(labels.tolist())) == 10
    assert train.max() < 110  # nothing of t10k, clutter included
    if name == "tc":
        assert test[test > 0].min() >= 200  # its clutter comes from its own split


@each_distortion
def test_training_batches_are_fresh_and_follow_from_the_generator(name, digits):
    data, generator = DistortedMnist(digits, DISTORTIONS[name]), torch.Generator().manual_seed(7)
    first, second = data.batch(16, generator), data.batch(16, generator)
    again = data.batch(16, torch.Generator().manual_seed(7))
    assert not first[0].equal(second[0])
    assert not first[1].equal(second[1])
    assert first[0].equal(again[0])
    assert first[1].equal(again[1])


def test_a_batch_draws_from_all_training_digits_alike(digits):
    data = DistortedMnist(digits, DISTORTIONS["r"])
    data.labels = torch.arange(70)
    counts = torch.bincount(data.batch(14_000, torch.Generator().manual_seed(0))[1], minlength=70)
    assert len(counts) == 70
    assert ((counts - 200).abs() < 5 * 200**0.5).all()


@each_distortion
def test_in_shape_is_the_shape_of_what_a_network_sees(name, digits):
    data = DistortedMnist(digits, DISTORTIONS[name])
    assert data.in_shape == (1, *(RANGES[name]["canvas_px"],) * 2)
    assert data.batch(3, torch.Generator())[0].shape[1:] == data.in_shape
    assert data.test.tensors[0].shape[1:] == data.in_shape


def test_a_config_of_ranges_is_as_good_as_the_distortion(digits):
    data = DistortedMnist(digits, RANGES["tc"] | {"patches": 2})
    assert data.distortion == replace(DISTORTIONS["tc"], patches=2)
    assert not data.synthetic


# --- validation


def test_validation_digits_are_5000_of_the_training_ones():
    data = DistortedMnist(ROOT, DISTORTIONS["r"], test_split="valid")
    whole, _ = load_digits(ROOT, "train")
    assert (len(data.digits), len(data.test)) == (55_000, 5_000)
    (train, _), (valid, labels) = split_digits(ROOT, "valid")
    assert torch.equal(data.digits, train)
    together = sorted(digit.tobytes() for digit in torch.cat([train, valid]).numpy())
    assert together == sorted(digit.tobytes() for digit in whole.numpy())  # each digit once
    assert labels.bincount().min() > 400  # of every class


def test_validation_is_the_same_for_every_distortion():
    one, two = (DistortedMnist(ROOT, DISTORTIONS[name], test_split="valid") for name in ("r", "e"))
    assert torch.equal(one.digits, two.digits)
    assert torch.equal(one.test.tensors[1], two.test.tensors[1])


def test_an_unknown_split_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^unknown data\.test_split='dev': choose test or valid$"):
        split_digits(ROOT, "dev")

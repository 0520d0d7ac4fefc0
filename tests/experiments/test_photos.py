"""A data set of photographs in the usual folders: images and labels found, and whatever cannot be read in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from stn.experiments.datasets.photos import Photos, class_folders

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    """Five images for training and two for the test of each of three classes, each in its class's colour."""
    for half, n in (("train", 5), ("test", 2)):
        for name, colour in COLOURS.items():
            place = tmp_path / half / name
            place.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (40 + i, 50), colour).save(place / f"{i}.{'png' if i % 2 else 'JPG'}", "PNG")
    return tmp_path


def shown(u):
    """The class whose colour an image has."""
    return u.mean((2, 3)).argmax(1).neg() + 2  # blue, green, red


def test_the_folders_name_the_classes_and_the_halves(folder):
    listing = class_folders(folder)
    assert listing.classes == list(COLOURS)
    assert listing.labels.tolist() == [k for k in range(3) for _ in range(5)] + [0, 0, 1, 1, 2, 2]
    assert listing.train.tolist() == [True] * 15 + [False] * 6
    assert listing.names[0] == "train/blue/0.JPG"


def test_every_label_goes_with_its_image(folder):
    data = Photos(class_folders(folder), 32)
    assert (data.classes, data.in_shape, data.synthetic) == (3, (3, 32, 32), False)
    u, label = data.batch(60, torch.Generator().manual_seed(0))
    assert torch.equal(shown(u), label)
    assert set(label.tolist()) == {0, 1, 2}
    images, labels = zip(*data.test_batches(), strict=True)
    assert torch.equal(shown(torch.cat(images)), torch.cat(labels))
    assert torch.cat(labels).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_test_set_longer_than_a_batch_comes_once_in_order(folder, monkeypatch):
    monkeypatch.setattr("stn.experiments.datasets.photos.TEST_BATCH", 4)
    labels = [label.tolist() for _, label in Photos(class_folders(folder), 32).test_batches()]
    assert labels == [[0, 0, 1, 1], [2, 2]]


def test_a_missing_half_is_one_clear_line(folder):
    (folder / "test").rename(folder / "validation")
    with pytest.raises(FileNotFoundError, match=rf"^no images in {folder / 'test'}: put them there as test/<class>/"):
        class_folders(folder)


def test_a_missing_half_is_found_before_the_data_are_needed(folder):
    class Colours(Photos):
        def __init__(self, root, size_px):
            super().__init__(class_folders(root), size_px)

    Colours.ensure(folder, size_px=32)
    (folder / "test").rename(folder / "validation")
    with pytest.raises(FileNotFoundError, match=rf"^no images in {folder / 'test'}: "):
        Colours.ensure(folder, size_px=32)


def test_a_class_of_the_test_alone_is_named(folder):
    (folder / "train/red").rename(folder / "train/rose")
    with pytest.raises(ValueError, match=rf"^{folder / 'test/red'} is a class without an image in {folder / 'train'}$"):
        class_folders(folder)


@pytest.mark.parametrize(("size_px", "shrink"), [(0, 1.0), (64, 0.0), (64, -1.0), (64, np.nan), (4, 8.0)])
def test_a_crop_without_a_side_is_refused(folder, size_px, shrink):
    with pytest.raises(ValueError, match=rf"^data\.size_px={size_px} / data\.shrink={shrink} has to be a side of 1 px"):
        Photos(class_folders(folder), size_px, shrink)

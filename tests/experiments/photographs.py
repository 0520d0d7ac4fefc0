"""Synthetic photographs of MNIST's test digits: paper in uneven light, off-centre, turned, in a thin or a thick pen."""

from functools import cache

import cv2
import numpy as np
from PIL import Image

from stn.experiments.command import ROOT
from stn.experiments.datasets.mnist import load_digits

SIDE_PX = 320
PENS = {"thin": 0.6, "thick": 0.2}  # what is ink in an enlarged digit


@cache
def digits():
    return load_digits(ROOT / "data", "t10k")


def photograph(index, rng, max_angle_deg=45.0):
    """One of MNIST's test digits on paper, and its label."""
    images, labels = digits()
    big = cv2.resize(images[index].numpy(), (280, 280), interpolation=cv2.INTER_CUBIC)
    big = (cv2.GaussianBlur(big, (0, 0), 4) > 255 * PENS[rng.choice(list(PENS))]).astype(np.float32)
    side = rng.uniform(0.2, 0.55) * SIDE_PX
    turn = cv2.getRotationMatrix2D((140, 140), rng.uniform(-max_angle_deg, max_angle_deg), side / 200)
    turn[:, 2] += SIDE_PX / 2 - 140 + rng.uniform(-1, 1, 2) * (SIDE_PX / 2 - 0.7 * side - 8)
    ink = cv2.GaussianBlur(cv2.warpAffine(big, turn, (SIDE_PX, SIDE_PX)), (0, 0), 1)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    shadow = 1 / (1 + np.exp(-8 * (x * np.cos(angle) + y * np.sin(angle))))  # the edge of one across the picture
    paper = rng.uniform(0.75, 0.95) * (1 - rng.uniform(0.2, 0.55) * shadow)
    grey = paper * (1 - rng.uniform(0.45, 0.8) * ink) + rng.normal(scale=0.015, size=ink.shape)
    return Image.fromarray((255 * grey.clip(0, 1)).round().astype(np.uint8)), labels[index].item()

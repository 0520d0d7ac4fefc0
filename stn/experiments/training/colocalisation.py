"""Co-localisation (A.2): in a frozen encoding, crops of a common object are nearer to each other than to others."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.colocalisation import Boxes, CommonDigit
from stn.experiments.datasets.mnist import load_digits
from stn.transformer import trace

Crops = Float[Tensor, "b 1 28 28"]
DIGITS = 1000  # that scale the encoder's layers
TRAIN = "experiment=mnist_cnn data/distortion=r schedule=fast schedule.steps=30000"  # the encoder of conf/objective
REVISION = 2  # raise it when a change alters the loss or a metric


class TripletHinge:
    """The triplet hinge loss of A.2, with the mean over all pairs in place of their sum; `accuracy` in percent.

    loss = mean over n != m of max(0, a |e(I_n^T) - e(I_m^T)|^2 - |e(I_n^T) - e(I_n^rand)|^2 + margin); I^T is what the
    network cuts out of I, I^rand a crop of 28 x 28 px at a random place of I, drawn anew in every step.
    accuracy = how many windows overlap the digit's box with IoU > 0.5.

    `gradient` says where that of |e(I_n^T) - e(I_m^T)|^2 is taken: at "both" crops, or at "one", I_n^T, with I_m^T
    fixed.  At both, windows on digits are drawn to those that are on nothing yet, and all end up on nothing, where the
    loss is lowest (docs/findings.md).

    a is `attraction`, 1 in A.2.  `encoder` names the run whose CNN is e, below `runs` or among the kept ones; with
    `layers` "scaled" its layers are scaled by the training digits below `data_root`, with "raw" they are as they come.
    Raises ValueError where that is no digit CNN for 28 x 28 px, and for another gradient or other layers.
    """

    def __init__(
        self,
        encoder: str,
        margin: float,
        gradient: str,
        attraction: float,
        layers: str,
        precision: str,
        runs: str | Path,
        data_root: str | Path,
    ):
        if gradient not in ("one", "both"):
            raise ValueError(f"unknown objective.gradient={gradient!r}: choose one or both")
        if layers not in ("raw", "scaled"):
            raise ValueError(f"unknown objective.layers={layers!r}: choose raw or scaled")
        self.margin, self.attraction = margin, attraction
        self.both = gradient == "both"
        self.bf16 = precision == "bf16"
        recorded = zoo.load(encoder, ROOT, Path(runs))
        if recorded.record["experiment"] != "mnist_cnn" or recorded.in_shape != (1, DIGIT_PX, DIGIT_PX):
            raise ValueError(
                f"objective.encoder={encoder} is no digit CNN for 28 x 28 px: name a run of "
                f"`python run.py {TRAIN}`, or of another distortion on 28 x 28 px"
            )
        if recorded.id != encoder:  # a shortened name would be another identity
            raise ValueError(f"objective.encoder={encoder} has to be a whole name: {recorded.id}")
        self.encoder, self.sha256 = Encoder(recorded.network), recorded.sha256
        if layers == "scaled":
            self.encoder.fit(load_digits(data_root, "train")[0][:DIGITS, None].float() / 255)

    def prepare(self, data: CommonDigit) -> None:
        """The encoder to where the images are."""
        self.encoder.to(data.images.device)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Crops]) -> tuple[Tensor, dict[str, Tensor]]:
        u, random = batch
        crop = network(u)
        with torch.autocast(u.device.type, torch.bfloat16, enabled=self.bf16):
            encoding = self.encoder(crop)
            with torch.no_grad():
                nowhere = self.encoder(random)
        return triplet_hinge(encoding, nowhere, self.margin, self.both, self.attraction), {}

    def test(self, network: nn.Module, batch: tuple[Tensor, Boxes]) -> dict[str, Tensor]:
        u, box = batch
        (warp,) = trace(network, u)
        return {"accuracy": 100 * (iou(window(warp.theta, u.shape[-1]), box) > 0.5).float().mean()}

    def after_test(self) -> dict[str, float]:
        """None."""
        return {}

    def checksums(self) -> dict[str, str]:
        """sha256 of the encoder's weights, for the record."""
        return {"encoder": self.sha256}


def triplet_hinge(
    crop: Float[Tensor, "b f"], random: Float[Tensor, "b f"], margin: float, both: bool, attraction: float = 1.0
) -> Float[Tensor, ""]:
    """The mean of A.2's hinge over the ordered pairs n != m of a batch, from the crops' encodings.

    max(0, attraction |e_n - e_m|^2 - |e_n - e_n^rand|^2 + margin), with the gradient in e_m only where `both` is set.
    """
    other = crop if both else crop.detach()
    apart = crop.square().sum(1)[:, None] + other.square().sum(1) - 2 * crop @ other.T  # |e_n - e_m|^2
    to_random = (crop - random).square().sum(1)  # |e_n - e_n^rand|^2
    hinge = (attraction * apart - to_random[:, None] + margin).clamp(min=0)
    n = len(crop)
    return (hinge.sum() - hinge.diagonal().sum()) / (n * (n - 1))


def window(theta: Float[Tensor, "b 3"], side_px: int) -> Boxes:
    """The square that an attention window (s, t_x, t_y) covers of an image of side_px; a mirrored one the same."""
    centre, half = theta[:, 1:], theta[:, :1].abs()
    return (torch.cat([centre - half, centre + half], dim=1) + 1) * side_px / 2


def iou(a: Boxes, b: Boxes) -> Float[Tensor, " b"]:
    """Area of the intersection over area of the union, box by box."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return both / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both)


class Encoder(nn.Module):
    """e of A.2: the activations of the two hidden layers and the class scores of a digit CNN, frozen, side by side."""

    scale: Tensor

    def __init__(self, classifier: nn.Module):
        super().__init__()
        features: Any
        features, self.scores = classifier.children()
        self.first, self.second = features[:3], features[3:6]
        self.register_buffer("scale", torch.ones(3))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # a step of it is a fifth faster

    def fit(self, digits: Crops) -> None:
        """Divide layer k by r_k sqrt(N), with N units in all and r_k the root mean square of h_k(I) - h_k(0).

        Every unit then counts alike, and a digit is at a squared distance of about 1 from nothing.
        """
        answers, nothing = self.layers(digits), self.layers(torch.zeros_like(digits[:1]))
        r = [(h - h0).square().mean().sqrt() for h, h0 in zip(answers, nothing, strict=True)]
        self.scale = torch.stack(r) * sum(h.shape[1] for h in answers) ** 0.5

    def layers(self, crop: Crops) -> list[Float[Tensor, "b f"]]:
        """The activations of the two hidden layers, and the class scores."""
        first = self.first(crop)
        second = self.second(first)
        return [h.flatten(1).float() for h in (first, second, self.scores(second.flatten(1)))]

    def forward(self, crop: Crops) -> Float[Tensor, "b f"]:
        return torch.cat([h / scale for h, scale in zip(self.layers(crop), self.scale, strict=True)], dim=1)

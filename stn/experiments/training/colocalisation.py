"""Co-localisation (A.2): in a frozen encoding, crops of a common object are nearer to each other than to others."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.colocalisation import Boxes, CommonDigit
from stn.experiments.datasets.mnist import load_digits
from stn.transformer import trace

Crops = Float[Tensor, "b 1 28 28"]
DIGITS = 1000  # that scale the encoder's layers
TRAIN = "experiment=mnist_cnn data/distortion=r schedule=fast"  # the encoder that conf/objective names
REVISION = 1  # raise it when a change alters the loss or a metric


class TripletHinge:
    """The triplet hinge loss of A.2, with the batch's mean in place of its sum; `accuracy` in percent.

    loss = mean over n != m of max(0, a |e(I_n^T) - e(I_m^T)|^2 - |e(I_n^T) - e(I_n^rand)|^2 + margin), all pairs of the
    batch and all I^rand of I_n; I^T is what the network cuts out of I, I^rand a crop of the same 28 x 28 px at a random
    place of I, of which the data have several, encoded once (`prepare`).  accuracy = how many windows overlap the
    digit's box with IoU > 0.5.

    A.2's own loss has `attraction` a = 1 and neither of the flags.  Its minimum is at windows that all show nothing.
    `one_sided` takes the gradient of |e(I_n^T) - e(I_m^T)|^2 at I_n^T alone, with I_m^T fixed.

    With a = 1 the |e(I_n^T)|^2 of the two distances cancel, and the loss is lowest at windows wider than a digit, whose
    crops are nearer to each other the less is to be seen in them; below 1, what is left of it draws a window that has
    found its digit to where more of it is to be seen.

    `encoder` names the run whose CNN is e, below `runs` or among the kept ones; with `scaled_layers` the training
    digits below `data_root` scale its layers (`Encoder.fit`).  Raises ValueError where it is not a digit CNN for
    28 x 28 px.
    """

    data = ("colocalisation",)

    def __init__(
        self,
        encoder: str,
        margin: float,
        attraction: float,
        one_sided: bool,
        scaled_layers: bool,
        precision: str,
        runs: str | Path,
        data_root: str | Path,
    ):
        self.margin = margin
        self.attraction = attraction
        self.one_sided = one_sided
        self.bf16 = precision == "bf16"
        recorded = zoo.load(encoder, ROOT, Path(runs))
        if recorded.record["experiment"] != "mnist_cnn" or recorded.in_shape != (1, DIGIT_PX, DIGIT_PX):
            raise ValueError(
                f"objective.encoder={encoder} is not a digit CNN for 28 x 28 px: name a run of "
                f"`python run.py {TRAIN}`, or of another distortion on 28 x 28 px"
            )
        if recorded.id != encoder:  # a shortened name would be another identity
            raise ValueError(f"objective.encoder={encoder} has to be a whole name: {recorded.id}")
        self.encoder, self.sha256 = Encoder(recorded.network), recorded.sha256
        if scaled_layers:
            self.encoder.fit(load_digits(data_root, "train")[0][:DIGITS, None].float() / 255)

    def prepare(self, data: CommonDigit) -> None:
        """Encode the random crops of all images: they stay the same, and so does e."""
        device = data.images.device
        encode = self.encoder.to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            self.random = torch.stack([encode(crops) for crops in data.crops()], dim=1)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Int[Tensor, " b"]]) -> tuple[Tensor, dict[str, Tensor]]:
        u, index = batch
        crop = network(u)
        with torch.autocast(u.device.type, torch.bfloat16, enabled=self.bf16):
            encoding = self.encoder(crop)
        random = self.random if len(index) == len(self.random) else self.random[index]  # a copy costs a fifth of a step
        return triplet_hinge(encoding, random, self.margin, self.attraction, self.one_sided), {}

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
    crop: Float[Tensor, "b f"], random: Float[Tensor, "b k f"], margin: float, attraction: float, one_sided: bool
) -> Float[Tensor, ""]:
    """The mean of A.2's hinge over the ordered pairs n != m of a batch and their k I^rand, from the crops' encodings.

    max(0, attraction |e_n - e_m|^2 - |e_n - e_n^rand|^2 + margin)

    The gradient is A.2's, at n and at m.  `one_sided`, it is taken at n, with m fixed: a window is drawn to the others,
    and away from its image's random crops.
    """
    other = crop.detach() if one_sided else crop
    apart = crop.square().sum(1)[:, None] + other.square().sum(1) - 2 * crop @ other.T  # |e_n - e_m|^2
    across = torch.einsum("bf,bkf->bk", crop, random)
    to_random = (
        crop.square().sum(1)[:, None] + torch.linalg.vector_norm(random, dim=2) ** 2 - 2 * across
    )  # |e_n - e_n^rand|^2
    hinge = (attraction * apart[:, None] - to_random[:, :, None] + margin).clamp(min=0).mean(1)
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
    """e of A.2, frozen: the activations of the two hidden layers of a digit CNN and its class scores, side by side."""

    scale: Tensor

    def __init__(self, classifier: nn.Module):
        super().__init__()
        features: Any
        features, scores = classifier.children()
        self.first, self.second, self.scores = features[:3], features[3:6], scores
        self.register_buffer("scale", torch.ones(3))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # a step of it is a fifth faster

    def fit(self, digits: Crops) -> None:
        """Divide layer k by r_k sqrt(N).

        r_k is the root mean square, over `digits` and the units of layer k, of h_k(I) - h_k(0), and N the number of all
        units: every unit counts alike, so that the first layer, which has most, decides how large a window is best, and
        a digit is at a squared distance of about 1, the margin, from a crop of nothing.  As they come, it is in the
        thousands.
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

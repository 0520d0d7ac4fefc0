"""The networks and their parts, by the names in a config's `model`."""

from torch import nn

import stn
from stn import localisation
from stn.experiments.networks import voxel
from stn.experiments.networks.mnist import Shape, cnn, fcn
from stn.transforms import Transform

NETWORKS = {  # name: module in this folder, and its function of (in_shape, classes, **settings)
    "mnist": "mnist:build",
    "theta_fed_forward": "uses:theta_fed_forward",
    "series": "uses:series",
    "resized": "uses:resized",
    "recurrent": "uses:recurrent",
    "svhn": "svhn:build",
    "cub": "cub:build",
    "voxel": "voxel:build",
    "colocalisation": "colocalisation:build",
}
TRANSFORMS = {  # name: class, built without arguments
    "affine": stn.Affine,
    "projective": stn.Projective,
    "tps": stn.ThinPlateSpline,
    "attention": stn.Attention,
    "affine3d": stn.Affine3d,
}
CLASSIFIERS = {"fcn": fcn, "cnn": cnn}


def convolutional(in_shape: Shape, transform: Transform) -> nn.Module:
    """The convolutional localisation network for A.4's images or A.3's volumes."""
    return (localisation.convolutional if len(in_shape) == 3 else voxel.convolutional)(in_shape, transform)


LOCALISATIONS = {"fully_connected": localisation.fully_connected, "convolutional": convolutional}

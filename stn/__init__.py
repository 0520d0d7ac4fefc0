"""Spatial Transformer Networks (Jaderberg et al., 2015): the module for your own network, the paper's experiments."""

from stn.sampler import regular_grid, sample
from stn.transformer import SpatialTransformer, trace
from stn.transforms import Affine, Affine3d, Attention, LinearForm, Projective, ThinPlateSpline, Translation

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "LinearForm",
    "Projective",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Translation",
    "regular_grid",
    "sample",
    "trace",
]

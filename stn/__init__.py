"""Spatial Transformer Networks (Jaderberg et al., 2015): the module for your own network, the paper's experiments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:  # on first use, so that tables and reports (stn.results) do not wait for torch
    if name not in __all__:
        raise AttributeError(f"module 'stn' has no attribute {name!r}")
    home = {"regular_grid": "sampler", "sample": "sampler", "SpatialTransformer": "transformer", "trace": "transformer"}
    return getattr(import_module(f"stn.{home.get(name, 'transforms')}"), name)

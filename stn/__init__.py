"""Spatial Transformer Networks (Jaderberg et al., 2015): the transformer for your own network.

Names load on first use, so `import stn` costs nothing and commands that only read records do not load PyTorch.  The
paper's experiments are in `stn.experiments`, which the library never imports.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn.diagnostics import collapsed, determinant, health
    from stn.draw import draw_window
    from stn.linear_form import LinearForm
    from stn.localisation import Regression, complete_state, convolutional, fully_connected
    from stn.protocol import Transform
    from stn.sampler import regular_grid, sample
    from stn.spline import ThinPlateSpline
    from stn.transformer import SpatialTransformer, Warp, trace
    from stn.transforms import (
        Affine,
        Affine3d,
        Attention,
        Constrained,
        Projective,
        Rotation,
        Similarity,
        Translation,
        aligned_corners_factors,
    )

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "Constrained",
    "LinearForm",
    "Projective",
    "Regression",
    "Rotation",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Transform",
    "Translation",
    "Warp",
    "aligned_corners_factors",
    "collapsed",
    "complete_state",
    "convolutional",
    "determinant",
    "draw_window",
    "fully_connected",
    "health",
    "regular_grid",
    "sample",
    "trace",
]

_MODULES = {
    "diagnostics": ("collapsed", "determinant", "health"),
    "draw": ("draw_window",),
    "linear_form": ("LinearForm",),
    "localisation": ("Regression", "complete_state", "convolutional", "fully_connected"),
    "protocol": ("Transform",),
    "sampler": ("regular_grid", "sample"),
    "spline": ("ThinPlateSpline",),
    "transformer": ("SpatialTransformer", "Warp", "trace"),
}  # every other name is in `transforms`


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("stn")
    if name not in __all__:
        raise AttributeError(f"module 'stn' has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "transforms")
    return getattr(import_module(f"stn.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

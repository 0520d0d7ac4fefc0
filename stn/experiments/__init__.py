"""The paper's experiments, built on the library `stn`: data, networks, training, records and tables.

Needs the extra `experiments`.
"""

from importlib.util import find_spec

_MISSING = [name for name in ("omegaconf", "pytorch_lightning", "torchvision") if find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"stn.experiments needs {', '.join(_MISSING)}: in a clone run `make setup`, or pip install '.[experiments]'"
    )

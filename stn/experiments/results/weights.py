"""The few trained networks that are kept in git, as float16, for figures, `predict` and the documentation."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from stn.experiments.results.checks import parsed
from stn.experiments.results.records import replace

MOST_BYTES = 8 * 2**20  # of all together, since git keeps every version


def index(folder: Path) -> dict[str, dict[str, str | int]]:
    """Id -> sha256 and bytes of the weights in a folder, from its index.json."""
    path = folder / "index.json"
    return parsed(path.read_bytes(), str(path), "`git checkout` the file to restore it") if path.exists() else {}


def keep(source: Path, name: str, folder: Path) -> None:
    """Keep a run's weights.safetensors as <folder>/<name>.safetensors in float16, and list it in index.json.

    Raises ValueError if the folder would hold more than MOST_BYTES.
    """
    try:
        tensors = load_file(source)
    except SafetensorError as error:
        raise ValueError(f"the weights {source} are damaged: {error}") from None
    half = {key: t.astype(np.float16) if t.dtype == np.float32 else t for key, t in tensors.items()}
    content = save(half, metadata={"id": name})
    listed = index(folder) | {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    total = sum(int(entry["bytes"]) for entry in listed.values())
    if total > MOST_BYTES:
        raise ValueError(
            f"with {name}, {folder} would have {total:,} bytes, more than {MOST_BYTES:,}: delete another file there"
        )
    replace(folder / f"{name}.safetensors", content)
    replace(folder / "index.json", json.dumps(listed, indent=1, sort_keys=True) + "\n")

"""The files that the page docs/demo loads: ONNX Runtime Web, checked by data/manifest.yaml, and a network as ONNX.

If they are missing (no npm, no network connection, no extra `onnx`), the site is built without them, and the page says
so.
"""

import logging
import runpy
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets.fetch import fetch

log = logging.getLogger("mkdocs.hooks.docs_demo")


def assets(folder: Path) -> Iterator[Path]:
    """The files.  The network is exported into `folder` once: the ST-CNN Aff on RTS, else the best on RTS.

    An affine transformer has the window that is easiest to read.  Raises ValueError or OSError.
    """
    yield from fetch("onnxruntime-web", ROOT / "data").values()
    model = zoo.load(zoo.longest("mnist_st_cnn_affine", distortion="rts") or zoo.best_transformer("rts"))
    path = folder / model.sha256[:16] / "digits.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        runpy.run_path(str(ROOT / "scripts/export_onnx.py"))["checked"](model, path, grid=True)
    yield path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    try:
        for path in assets(ROOT / "build/demo"):
            files.append(File.generated(config, f"demo/{path.name}", abs_src_path=str(path)))
    except (ValueError, OSError) as error:
        log.info("the page demo/index.html will not work: %s", error)
    return files

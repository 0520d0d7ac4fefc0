"""Fetch the data into data/, check them, and prepare what training reads; existing files are kept."""

import argparse
import logging

from stn.experiments.command import ROOT, Options, a_path, run
from stn.experiments.datasets.fetch import alone, download, fetch, manifest


def prepare_mnist(options: argparse.Namespace) -> str:
    paths = fetch("mnist", options.root)
    return f"{len(paths)} files in {options.root / 'mnist'}, every sha256 correct"


def prepare_cub(options: argparse.Namespace) -> str:
    from stn.experiments.datasets.cub_files import fetch_cub, read

    return f"{len(read(fetch_cub(options.root)).paths)} images in {options.root / 'cub'}"


def prepare_svhn(options: argparse.Namespace) -> str:
    from stn.experiments.datasets.svhn import prepare

    entry, folder = manifest("svhn", options.root), options.root / "svhn"
    with alone(folder):
        for name, file in entry["files"].items():
            download(entry["mirror"] + name, folder / name, file["bytes"])
        counts = {name.removesuffix(".tar.gz"): file["numbers"] for name, file in entry["files"].items()}
        return ", ".join(str(prepare(folder, size_px, counts)) for size_px in options.size_px)


def prepare_svhn_rendered(options: argparse.Namespace) -> str:
    from stn.experiments.datasets import rendered
    from stn.experiments.datasets.svhn import prepare

    folder = options.root / "svhn_rendered"
    with alone(folder):
        for split, count in rendered.COUNTS.items():
            if not (folder / f"{split}.tar.gz").exists():
                rendered.archive(folder, split, count)
        return ", ".join(str(prepare(folder, size_px, dict(rendered.COUNTS))) for size_px in options.size_px)


DATASETS = {"mnist": prepare_mnist, "cub": prepare_cub, "svhn": prepare_svhn, "svhn_rendered": prepare_svhn_rendered}


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("dataset", nargs="?", default="mnist", choices=list(DATASETS))
    parser.add_argument("--root", type=a_path, default=ROOT / "data", help="default: data")
    parser.add_argument(
        "--size-px",
        type=int,
        nargs="+",
        default=[64, 128],
        choices=[64, 128],
        help="sizes of SVHN's crops (default: both)",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{options.dataset}: {DATASETS[options.dataset](options)}")


if __name__ == "__main__":
    run(main)

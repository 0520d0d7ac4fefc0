"""Fetch the data into data/ and check every file's sha256."""

import argparse
import logging
import sys
from pathlib import Path

from stn.datasets.cub_files import fetch_cub, read
from stn.datasets.fetch import fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="mnist", choices=["mnist", "cub"])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent / "data", help="default: data")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.dataset == "cub":
        print(f"cub: {len(read(fetch_cub(options.root)).paths)} images in {options.root / 'cub'}")
        return
    paths = fetch(options.dataset, options.root)
    print(f"{options.dataset}: {len(paths)} files in {options.root / options.dataset}, every sha256 right")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

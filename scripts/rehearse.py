"""Write archives in the formats of SVHN and CUB-200-2011, with synthetic images, at the true counts and sizes.

For a rehearsal of Table 2 or 3 in a clone of its own: root/manifest.yaml is changed to hold what was written.
"""

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from stn.experiments.command import Options, a_number, a_path, run
from stn.experiments.datasets import digitstruct, rendered, synthetic_birds
from stn.experiments.datasets.cub_files import FOLDER
from stn.experiments.datasets.fetch import manifest, sha256
from stn.experiments.results.records import replace

POOL = 300  # different house numbers, and birds, that an archive repeats in random order
MAT = 600  # packed bytes of digitStruct.mat for a number
CLASSES, BIRDS, BIRDS_TRAIN, ATTRIBUTES = 200, 11_788, 5_994, 312
SIDES_PX = ((500, 375), (500, 333), (500, 400), (375, 500))  # width and height of a bird's photograph


def write_svhn(folder: Path, files: dict, one_in: int) -> None:
    drawn = min(POOL, max(file["numbers"] for file in files.values()) // one_in)
    pool = sorted((rendered.render(0, "train", i) for i in range(drawn)), key=lambda picture: len(picture[0]))
    sizes = np.array([len(png) for png, _ in pool])
    for name, file in files.items():
        target = file["bytes"] / file["numbers"] - MAT  # without the smallest or the largest, the mean is as SVHN's
        low, high = 0, drawn
        while sizes[low:high].mean() < target and low < high - 1:
            low += 1
        while sizes[low:high].mean() > target and low < high - 1:
            high -= 1
        n = file["numbers"] // one_in
        chosen = np.random.default_rng(0).integers(low, high, n)
        archive = digitstruct.pack(folder, name.removesuffix(".tar.gz"), (pool[i] for i in chosen), n)
        file |= {"bytes": archive.stat().st_size, "numbers": n}


def photographs(n: int) -> Iterator[synthetic_birds.Bird]:
    """n birds of 200 classes, as large as CUB's photographs in pixels and in bytes."""
    pool = []
    for i in range(min(POOL, n)):
        rng = np.random.default_rng(i)
        picture, places, (left, top, width, height) = synthetic_birds.draw(i % len(synthetic_birds.CLASSES), rng)
        w, h = SIDES_PX[rng.integers(len(SIDES_PX))]
        x, y = w / picture.width, h / picture.height
        grain = rng.normal(0, 9, (h, w, 1))
        photo = Image.fromarray((np.asarray(picture.resize((w, h))) + grain).clip(0, 255).astype(np.uint8))
        scaled = {part: (left * x, top * y) for part, (left, top) in places.items()}
        pool.append((synthetic_birds.jpeg(photo, 95), scaled, (left * x, top * y, width * x, height * y)))
    rng = np.random.default_rng(0)
    train = rng.permutation(n) < n * BIRDS_TRAIN // BIRDS
    for i, chosen in enumerate(tqdm(rng.integers(len(pool), size=n), "birds")):
        yield i * CLASSES // n, bool(train[i]), *pool[chosen]


def write_cub(folder: Path, files: dict, one_in: int) -> None:
    ((name, file),) = files.items()
    n = BIRDS // one_in
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        synthetic_birds.write_files(scratch, [f"Synthetic_{k}" for k in range(CLASSES)], photographs(n))
        (scratch / "attributes").mkdir()
        with open(scratch / "attributes/image_attribute_labels.txt", "w") as text:  # nobody reads it: 100 MB
            for i in range(1, n + 1):
                text.writelines(f"{i} {a} 0 3 {(i * a) % 20_000 / 1000:.3f}\n" for a in range(1, ATTRIBUTES + 1))
        partial = folder / f"{name}.partial"
        with tarfile.open(partial, "w:gz", compresslevel=1) as tar:
            tar.add(scratch, FOLDER)
            info = tarfile.TarInfo("attributes.txt")  # beside the folder, as in CUB's
            info.size = 7
            tar.addfile(info, io.BytesIO(b"1 blue\n"))
        partial.rename(folder / name)
    finally:
        shutil.rmtree(scratch)
    file |= {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}


WRITERS = {"svhn": write_svhn, "cub": write_cub}


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("dataset", choices=list(WRITERS))
    parser.add_argument("--root", type=a_path, required=True, help="data folder of the rehearsal's clone")
    parser.add_argument(
        "--one-in", type=a_number(1, 10_000), default=1, metavar="N", help="an Nth of the images (default: all)"
    )
    options = parser.parse_args()
    entry = manifest(options.dataset, options.root)
    folder = options.root / options.dataset
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files already: rehearse in another clone, never beside real data")
    WRITERS[options.dataset](folder, entry["files"], options.one_in)
    path = options.root / "manifest.yaml"
    replace(path, yaml.safe_dump(yaml.safe_load(path.read_text()) | {options.dataset: entry}, sort_keys=False))
    print(f"{options.dataset}: {folder}, and {path} says what is in it")


if __name__ == "__main__":
    run(main)

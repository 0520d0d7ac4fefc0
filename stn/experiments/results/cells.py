"""A cell of a table: our figure with its error, and its relation to the paper's."""

import math
import statistics
from dataclasses import dataclass

Z = 1.96  # standard errors on either side of a 95 % interval
ROUNDING = 0.05  # the paper prints one decimal
TEST_IMAGES = {  # of records that lack their number
    "mnist": 10_000, "addition": 10_000, "voxel": 10_000, "colocalisation": 100, "svhn": 13_068, "svhn_rendered": 4_000,
    "cub": 5_794, "synthetic_birds": 900,
}  # fmt: skip
SPREAD = (
    "± (1) is one run with half of the 95 % interval of its test set, ± (n) the mean and standard deviation of n runs, "
    "- a cell that was not run."
)
BESIDE = (
    "The sign before the paper's figure compares: < and > mean that ours is lower or higher by more than the error of "
    "both, ≈ that they differ by no more than that, / that there is no comparison."
)


def half_width(percent: float, images: int) -> float:
    """Half of the 95 % interval (Wilson 1927) of a rate counted on this number of images, in percent."""
    p = min(max(percent / 100, 0.0), 1.0)
    return 100 * Z / (1 + Z**2 / images) * math.sqrt(p * (1 - p) / images + (Z / (2 * images)) ** 2)


@dataclass(frozen=True)
class Cell:
    """Our figures, in percent, for one row and column under one schedule and budget.

    `failed` counts the runs without a figure; `images` is the size of the test set, None if unknown.
    """

    row: str
    column: str
    schedule: str
    budget: int | None
    params: int | None
    values: list[float]
    failed: int
    paper: float | None
    synthetic: bool
    images: int | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds, if there are at least two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def spread(self) -> float | None:
        """The number after ±: `std`, or for a single run half of its 95 % interval."""
        if len(self.values) == 1 and self.images is not None:
            return half_width(self.values[0], self.images)
        return self.std

    @property
    def relation(self) -> str:
        """How ours compares with the paper's: "<" or ">" beyond the error of both, "≈" within it, "/" not compared.

        The error is the root of the sum of squares of three half widths, those of both test sets (the paper's is taken
        to be as large as ours) and that of our mean over seeds, plus the rounding of the paper's figure.
        """
        if self.mean is None or self.paper is None or self.synthetic or self.images is None:
            return "/"
        tests = half_width(self.mean, self.images), half_width(self.paper, self.images)
        seeds = 0.0 if self.std is None else Z * self.std / math.sqrt(len(self.values))
        if abs(self.mean - self.paper) <= math.hypot(*tests, seeds) + ROUNDING:
            return "≈"
        return "<" if self.mean < self.paper else ">"

    def __str__(self) -> str:
        if self.mean is None:
            return "failed" if self.failed else "-"
        spread = "" if self.spread is None else f" ± {self.spread:.2f} ({len(self.values)})"
        return f"{self.mean:.2f}{spread}" + (f", {self.failed} failed" if self.failed else "")

    def beside(self) -> str:
        """Ours and the paper's: "2.10 ± 0.28 (1) > 1.2", or "- / 1.2" if not run; ours alone if the paper has none."""
        return str(self) if self.paper is None else f"{self} {self.relation} {self.paper}"

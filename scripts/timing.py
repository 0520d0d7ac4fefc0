"""Time several ways of doing the same thing in turn, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable


def turns(
    ways: dict[str, Callable[[], object]],
    rounds: int = 5,
    min_s: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each way: in each round the mean over at least `min_s` seconds."""
    repeats = {}
    for name, way in ways.items():
        way()
        start = clock()
        way()
        repeats[name] = max(1, round(min_s / (clock() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            for _ in range(repeats[name]):
                way()
            seconds[name].append((clock() - start) / repeats[name])
    return seconds


def side_by_side(ways: dict[str, Callable[[], object]], rounds: int = 5, min_s: float = 0.3) -> dict[str, float]:
    """Median seconds per call of each way."""
    return {name: statistics.median(values) for name, values in turns(ways, rounds, min_s).items()}

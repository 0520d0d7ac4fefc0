"""Do all the work that needs a GPU, in slices: each call works for --minutes and resumes where the last one stopped.

First come the GPU tests, then `bench`, then the runs: Tables 1 and 4 under the paper's schedule, one whole seed before
the next, the cheapest cells first; then every other table whose data exist, under its default schedule.  Each card has
--jobs runs at a time, each in its own process.  The records in runs/ tell what is done, so a kill costs only the
seconds since the last checkpoints.  After every run all records, curves and checkpoints are packed into the file
--home, which scripts/bundle.py merges elsewhere.  The output of tests and bench goes to runs/campaign/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import IO, Any

from bundle import pack
from hydra import compose, initialize_config_dir

from stn.experiments import resolvers
from stn.experiments.command import ROOT, Options, a_file, a_number, a_path, child, run
from stn.experiments.results import records, tables
from stn.experiments.yaml_files import read_yaml

PAPER = ("table1", "table4")
DEFAULT: dict[str, tuple[str | None, list[str], str]] = {
    # table: its schedule (None: its own), the overrides of every cell, and the data folder that it needs
    "pooled": (None, [], "mnist"),
    "uses": (None, [], "mnist"),
    "table5": (None, [], "mnist"),
    "3d": (None, [], "mnist"),
    "table2": ("svhn_small", ["data=svhn_rendered"], "svhn_rendered"),
    "table3": ("cub_small", ["data=synthetic_birds"], "synthetic_birds_2"),
}
TRIES = 3  # of a run that ends without a record
START_S, END_S = 30, 12  # the least time worth starting a run for, and the time reserved for packing
PACK_EVERY_S = 15
QUIET = ["logger=none", "progress=false", "threads=1", "pictures=0", "checkpoint_every_s=10"]
STEPS = {
    "tests": ["-m", "pytest", "-m", "gpu", "-rs", "tests/gpu", "tests/unit"],
    "bench": ["scripts/bench.py", "h", "i", "j"],
}


@dataclass(frozen=True)
class Cell:
    """One run: the overrides that say what it computes, and its steps."""

    words: tuple[str, ...]
    steps: int

    def is_that_of(self, record: records.Record) -> bool:
        words, more = set(self.words), set(record["overrides"]) - set(self.words)
        return (
            words <= set(record["overrides"])
            and all(map(tables.is_neutral, more))
            and not any(word.startswith("budget=") for word in more)
        )

    @property
    def name(self) -> str:
        return " ".join(self.words)


@cache
def steps(experiment: str, *words: str) -> int:
    """How many steps a run of an experiment with these overrides takes."""
    resolvers.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"experiment={experiment}", *words]).schedule.steps


def of_table(name: str, schedule: str | None, seed: int, words: list[str], pace: Any, shorter: list[str]) -> list[Cell]:
    """The cells of a table for one seed, the cheapest first; `shorter` are further overrides, for a trial run."""
    sweep = read_yaml(ROOT / "conf/table" / f"{name}.yaml")["hydra"]["sweeper"]["params"]
    words = [*words, *([f"schedule={schedule}"] if schedule else [])]
    given = {word.split("=")[0] for word in words}
    keys = [key for key in sweep if key not in given]
    chosen = product(*([f"{key}={value}" for value in sweep[key].split(",")] for key in keys))
    cells = []
    for row in chosen:
        experiment = next(word for word in row if word.startswith("experiment=")).split("=")[1]
        chosen_schedule = [word for word in row if word.startswith("schedule=")]
        cells.append(Cell((*row, *words, f"seed={seed}", *shorter), steps(experiment, *chosen_schedule, *words)))
    return sorted(cells, key=lambda cell: pace(cell) * cell.steps)


def plan(options: argparse.Namespace) -> tuple[list[Cell], list[str]]:
    """Every run in order, and a line for each table without data."""
    kept = [record for record in records.read_kept(ROOT / "results") if record["status"] == "finished"]
    known = [record for record in kept if not records.on_gpu(record)]  # of every row, which the order needs
    mean = sum(r["seconds"] / r["steps"] for r in known) / max(1, len(known))

    def pace(cell: Cell) -> float:
        return tables.seconds_per_step(known, list(cell.words)) or mean

    cells: dict[Cell, None] = {}
    left_out = []
    wanted = options.tables or [*PAPER, *DEFAULT]
    if unknown := sorted(set(wanted) - {*PAPER, *DEFAULT}):
        raise ValueError(f"unknown table {unknown[0]!r}: choose among {', '.join((*PAPER, *DEFAULT))}")
    for seed in range(options.seeds):
        some = [c for name in PAPER if name in wanted
                for c in of_table(name, options.schedule or "paper", seed, [], pace, options.words)]  # fmt: skip
        cells |= dict.fromkeys(sorted(some, key=lambda cell: pace(cell) * cell.steps))
    for name, (schedule, words, data) in DEFAULT.items():
        if name not in wanted:
            continue
        if not (ROOT / "data" / data).is_dir():
            left_out.append(f"{name} is skipped: there is no data/{data}")
            continue
        for seed in range(options.seeds):
            cells |= dict.fromkeys(of_table(name, options.schedule or schedule, seed, words, pace, options.words))
    if options.missing:
        cells = {cell: None for cell in cells if not any(map(cell.is_that_of, kept))}
    return list(cells), left_out


class Slice:
    """One call: what is done, what is running, and when to stop."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes - END_S
        self.logs = options.runs / "campaign"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.file = self.logs / "state.json"
        self.state: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.running: dict[int, tuple[Cell, subprocess.Popen, IO]] = {}  # by slot
        self.packed = 0.0

    def left(self) -> float:
        return self.end - time.monotonic()

    def note(self, key: str, value: Any) -> None:
        self.state[key] = value
        records.replace(self.file, json.dumps(self.state, indent=1, sort_keys=True))

    def pack(self, now: bool = False) -> None:
        if now or time.monotonic() - self.packed > PACK_EVERY_S:
            pack(self.options.runs, self.options.home)
            self.packed = time.monotonic()

    def once(self, step: str) -> None:
        """Run all of the tests or the bench, unless it was done before; keep the output in any case."""
        if step in self.state or self.left() < START_S:
            return
        print(f"{step}: {' '.join(STEPS[step])}", flush=True)
        with open(self.logs / f"{step}.txt", "w") as out:
            try:
                done = subprocess.run([sys.executable, *STEPS[step]], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                      timeout=self.left())  # fmt: skip
                self.note(step, f"exit status {done.returncode}")
            except subprocess.TimeoutExpired:  # try again with all of the next slice; give up the second time
                again = f"{step}_cut_off"
                self.note(step if again in self.state else again, "ran out of time")
        last = (self.logs / f"{step}.txt").read_text().strip().splitlines()[-1:]
        print(
            f"{step}: {self.state.get(step, 'ran out of time: again in the next slice')}; {' '.join(last)}", flush=True
        )
        self.pack(now=True)

    def runs(self, cells: list[Cell]) -> None:
        """Keep every slot busy until everything is done or time is up."""
        own = records.read_runs(self.options.runs, smoke=True)
        waiting = [c for c in cells if not any(c.is_that_of(r) for r in own) and self.state.get(c.name, 0) < TRIES]
        print(f"{len(cells) - len(waiting)} of {len(cells)} runs are done or given up; {self.options.jobs} at once on "
              f"each of {max(1, cards())} devices", flush=True)  # fmt: skip
        # unfinished runs first
        begun = [record for _, record in records.read_unfinished(self.options.runs)]
        waiting.sort(key=lambda cell: not any(cell.is_that_of(record) for record in begun))
        slots = range(self.options.jobs * max(1, cards()))
        try:
            while (waiting or self.running) and self.left() > 0:
                for slot in slots:
                    if slot in self.running:
                        self.reap(slot)
                    if slot not in self.running and waiting and self.left() > min(START_S, 30 * self.options.minutes):
                        self.start(slot, waiting.pop(0))
                time.sleep(0.2)
        finally:
            for _, process, _ in self.running.values():  # they resume from their checkpoints
                process.kill()
            for cell, process, said in self.running.values():
                process.wait()
                said.close()
                print(f"resumes in the next slice: {cell.name}", flush=True)
            self.pack(now=True)

    def start(self, slot: int, cell: Cell) -> None:
        words = [sys.executable, "run.py", *cell.words, *QUIET, f"runs_dir={self.options.runs}"]
        card = {"CUDA_VISIBLE_DEVICES": visible(slot % cards())} if cards() else {}
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed when the run has ended
        # a machine whose packages were installed without .pyc files compiles them once, not in every run
        compiled = {"PYTHONPYCACHEPREFIX": str(ROOT / "build/pycache")}
        environment = compiled | os.environ | card | child() | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
        self.running[slot] = cell, process, said

    def reap(self, slot: int) -> None:
        cell, process, said = self.running[slot]
        if process.poll() is None:
            return
        del self.running[slot]
        with said:
            said.seek(0)
            last = " ".join(said.read().strip().splitlines()[-1:])
        print(f"[{process.returncode}] {cell.name}: {last}", flush=True)
        if process.returncode and "another process" not in last:  # a process that outlived a killed campaign
            self.note(cell.name, self.state.get(cell.name, 0) + 1)
        self.pack()


def cards() -> int:
    """How many GPUs this command can see."""
    import torch

    return torch.cuda.device_count()


def visible(card: int) -> str:
    """The CUDA_VISIBLE_DEVICES of a process that should see this card alone."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[card] if mine else str(card)


@contextmanager
def shared_card(wanted: bool) -> Iterator[None]:
    """Start NVIDIA's MPS, with which kernels of several processes run side by side instead of in turns."""
    command = shutil.which("nvidia-cuda-mps-control")
    if not (wanted and command and cards()):
        if wanted:
            print("MPS is not available here: the runs on a card take turns", flush=True)
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run([command, "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run([command], input="quit\n", text=True)


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--minutes", type=float, default=9, help="length of this slice (default: 9)")
    parser.add_argument(
        "--jobs", type=a_number(1, 1000), help="runs at a time on a card (default: one per core, 12 at most on a GPU)"
    )
    parser.add_argument("--seeds", type=a_number(1, 10_000), default=3, help="number of seeds, from 0 on (default: 3)")
    parser.add_argument("--tables", nargs="+", help="only these tables (default: all)")
    parser.add_argument("--missing", action="store_true", help="leave out the runs that results/ has a record of")
    parser.add_argument("--only", nargs="+", choices=[*STEPS, "runs"], help="only these steps (default: all)")
    parser.add_argument("--schedule", help="use this schedule for all tables, such as smoke for a trial run")
    parser.add_argument("--runs", type=a_path, default=ROOT / "runs", help="default: runs")
    parser.add_argument("--home", type=a_file, default=ROOT / "stn-home.tar.gz", help="default: stn-home.tar.gz")
    parser.add_argument(
        "--mps", action="store_true", help="let kernels of several runs overlap, if NVIDIA's MPS exists"
    )
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="further overrides of run.py, such as budget=20000"
    )
    options = parser.parse_args()
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes} has to be above 0")
    options.runs = options.runs.resolve()
    if options.jobs is None:
        cores = os.cpu_count() or 1  # each run keeps one busy
        options.jobs = max(1, min(12, cores // cards())) if cards() else cores
    if not cards():
        print("PyTorch sees no CUDA device: tests and bench are skipped, runs use the CPU", flush=True)
    cells, left_out = plan(options)
    print("\n".join(left_out), flush=True, end="\n" if left_out else "")
    now = Slice(options)
    with shared_card(options.mps):
        for step in STEPS:
            if cards() and step in (options.only or STEPS):
                now.once(step)
        if "runs" in (options.only or ["runs"]):
            now.runs(cells)
    done = sum(any(c.is_that_of(r) for r in records.read_runs(options.runs, smoke=True)) for c in cells)
    given_up = [cell.name for cell in cells if now.state.get(cell.name, 0) >= TRIES]
    print(f"{done} of {len(cells)} runs are done, {len(given_up)} given up; "
          f"{options.home} has {options.home.stat().st_size / 1e6:.1f} MB"
          + ("" if done + len(given_up) >= len(cells) else "; run the same command again for the rest"))  # fmt: skip


if __name__ == "__main__":
    run(main)

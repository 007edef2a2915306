"""What is not training: importing, waiting for the first step, saving checkpoints.

::

    python experiments/benchmarks/overhead.py

- *import*: `import margin_jax` beside `import jax` alone, processes of their own, median of 7;
- *first step*: from the start of `margin-jax train` on glyphs to the first step's loss, without and
  with what a `--compilation-cache` holds from an earlier run;
- *checkpoints*: wall time of the epochs of one glyphs run, in turns of five with a save in each and
  without, each turn without its first epoch, in which the last save may still go on. A run saves at
  most every ten seconds, so what a save costs is given as a share of that, too.

Two CPU cores, jax 0.10.2: `import margin_jax` adds 0.05 to 0.08 s to 0.8 to 1.0 s; the first step
comes after 7.7 to 8.5 s, with a filled cache after 3.0 to 3.5 s. What a save costs is within the
noise of this script's epochs (-83 +- 125 ms). Whole runs with a save in every epoch and with none,
three pairs of 9 or 12 epochs, gave 90, 140 and 190 ms; the main thread is held for 35 to 40 ms of
them. So at one save in ten seconds, as runs do, checkpoints take 1 to 2 % of the time. (What a save
costs is from before saves were read back and digested.)
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import margin_jax as mj
from margin_jax.runs import fit

TURN, TURNS = 5, 6

FIRST_STEP = """
import sys, time
from margin_jax import cli
from margin_jax.runs.progress import ProgressBar

def step(self, *figures):
    print("\\nfirst", time.time(), flush=True)
    sys.stdout.flush()
    import os; os._exit(0)

ProgressBar.step = step
cli.main(["train", "--out", sys.argv[1], "--compilation-cache", sys.argv[2]])
"""


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def importing() -> dict[str, float]:
    took = {"jax": [], "margin_jax": []}
    for _ in range(7):
        for package, times in took.items():
            times.append(seconds(f"import jax, {package}"))
    jax_alone, both = (statistics.median(times) for times in took.values())
    return {"import jax, s": jax_alone, "import margin_jax adds, s": both - jax_alone}


def first_step() -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory() as room:
        for what in ("first step, empty cache, s", "first step, filled cache, s"):
            started = time.time()
            shown = subprocess.run(
                [sys.executable, "-c", FIRST_STEP, f"{room}/{what[:17]}", f"{room}/cache"],
                capture_output=True,
                text=True,
                check=True,
            )
            line = next(line for line in shown.stdout.splitlines() if line.startswith("first"))
            found[what] = float(line.split()[1]) - started
    return found


def checkpoints() -> dict[str, float]:
    save, saves = fit.Checkpoint.save, [True]
    fit.Checkpoint.save = lambda *given: save(*given) if saves[0] else None
    fit._SAVE_SECONDS = 0
    ends: list[float] = []

    def on_epoch(record: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        saves[0] = len(ends) // TURN % 2 == 0

    with tempfile.TemporaryDirectory() as room:
        config = mj.TrainConfig(epochs=TURN * TURNS, out=str(Path(room) / "run"))
        mj.fit(config, on_epoch=on_epoch)
    turns: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(1, len(ends)):
        if epoch % TURN:
            turns[epoch // TURN % 2 == 0].append(ends[epoch] - ends[epoch - 1])
    with_saves, without = (statistics.mean(turns[saved]) for saved in (True, False))
    spread = statistics.stdev(turns[False]) / len(turns[False]) ** 0.5
    return {
        "epoch with a save, s": with_saves,
        "epoch without, s": without,
        "a save costs, ms": 1e3 * (with_saves - without),
        "standard error of that, ms": 1e3 * 2**0.5 * spread,
        "checkpoints cost, %": 100 * (with_saves - without) / max(10, with_saves),
    }


def main() -> None:
    figures = importing() | first_step() | checkpoints()
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()

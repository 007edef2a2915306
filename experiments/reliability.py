"""Kills a run a hundred times: nothing may be lost, nothing may change.

::

    python experiments/reliability.py                 # the whole campaign
    python experiments/reliability.py --kills 3 --terms 1 --jobs 0
    python experiments/reliability.py --resume        # what is left of a campaign

A small run on glyphs (histogram, changing mining, a checkpoint every 5 of its 18 steps per epoch,
so that many kills hit a save) is trained once without interruption. Then it is trained again and
again, each time killed at a random moment between the start of the process and its end, and
resumed:

- *kills*: SIGKILL, until there have been that many;
- *terms*: SIGTERM, as sent by machines that are about to shut down;
- *jobs*: SIGKILL to both processes of a two-process job;
- *races*: two processes that start, resume or overwrite one folder, a random time apart: one
  trains, the other one is refused;
- *disks*: a disk that is full in the middle of a run, and a folder that cannot be written to any
  more. They need the right to mount a file system of memory; without it they are left out, and the
  result says so.

Every run that finishes must have the history and report of the uninterrupted run, to the last bit
except for times. Results are written after every trial; the exit status is 1 if anything was lost.

The last result is in ``experiments/results/reliability.json``: nothing lost. Two CPU cores, jax
0.10.2, half an hour, for half of which other work ran; the disks were file systems in memory. The
races were run later, with jax 0.12 and mostly next to much other work: in 48 of 50 pairs the second
process started while the first was running, and was refused.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPTIONS = (
    *("--max-identities", "60", "--identities-per-batch", "8", "--epochs", "6"),
    *("--checkpoint-steps", "5", "--histogram", "--mining", "all,3:semihard"),
    *("--schedule", "dams:threshold=0.5"),
)
TIMING = ("seconds", "images_per_second", "data_wait")
PATIENCE = 3600  # seconds: only what hangs takes longer, whatever the machine
DISK = 20  # megabytes: some checkpoints, but not many


def train(
    out: Path, cache: Path, *more: str, how: tuple[str, ...] = ("--resume",)
) -> subprocess.Popen[str]:
    """`margin-jax train`, begun or resumed."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "margin_jax", "train", *OPTIONS, "--out", str(out)),
            *(*how, "--compilation-cache", str(cache), *more),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The status of a process and its last words, which are never those of a traceback."""
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if "Traceback" in errors:
        raise AssertionError(errors[-3000:])
    return process.returncode, errors.splitlines()[-1] if errors.strip() else ""


def left(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a finished run leaves, without its timing."""
    lines = (out / "history.jsonl").read_text().splitlines()
    history = [
        {name: value for name, value in json.loads(line).items() if name not in TIMING}
        for line in lines
    ]
    return history, json.loads((out / "report.json").read_text())


def found(out: Path) -> str:
    """At what a kill has struck."""
    names = {path.name for path in out.glob("checkpoints/*")}
    whole = {name for name in names if name.isdigit()}
    if not whole:
        return "before the first save"
    if names - whole or len(whole) > 1:
        return "in a save"
    return "after the report" if (out / "report.json").is_file() else "between saves"


class Campaign:
    """Trials, and what came of them, written after each."""

    def __init__(self, seed: int, room: Path, path: Path, resume: bool = False) -> None:
        self.room, self.path, self.cache = room, path, room / "cache"
        self.result: dict[str, Any] = {"lost": [], "seed": seed}
        if resume and path.is_file():
            self.result = json.loads(path.read_text())
        self.random = random.Random(json.dumps([seed, self.result]))  # not the same moments again
        self.lives = 0
        train(room / "warm", self.cache).communicate(timeout=PATIENCE)  # compiles
        started = time.monotonic()
        status, words = finish(train(room / "whole", self.cache))
        self.seconds = time.monotonic() - started
        assert status == 0, words
        self.expected = left(room / "whole")
        self.result.setdefault("uninterrupted_seconds", round(self.seconds, 1))

    def write(self) -> None:
        """So that a campaign that is stopped has not been for nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.result, indent=2) + "\n")

    def folder(self) -> Path:
        """A place for another life."""
        self.lives += 1
        return self.room / f"life{self.lives}"

    def compare(self, what: str, out: Path) -> None:
        """A life that is over with the one that was never interrupted."""
        if left(out) != self.expected:
            self.result["lost"].append(f"{what}: {out.name} differs")
        shutil.rmtree(out)

    def kills(self, wanted: int, number: int) -> None:
        """Signals until there were as many, to as many lives as it takes."""
        name = signal.Signals(number).name
        told = self.result.setdefault(
            name, {"signals": 0, "lives": 0, "struck": {}, "statuses": {}}
        )
        if told["signals"] >= wanted:
            return
        struck = collections.Counter[str](told["struck"])
        statuses = collections.Counter[str](told["statuses"])
        out = self.folder()
        while told["signals"] < wanted:
            process = train(out, self.cache)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.random.uniform(0, self.seconds))
            if process.poll() is None:
                process.send_signal(number)
                told["signals"] += 1
                struck[found(out)] += 1
            status, words = finish(process)
            statuses[str(status)] += 1
            told |= {"struck": dict(struck), "statuses": dict(statuses)}
            if status not in (0, -number, 128 + number):
                self.result["lost"].append(f"{name}: status {status}: {words}")
            if status == 0:
                self.compare(name, out)
                told["lives"] += 1
                out = self.folder()
            self.write()
        status, words = finish(train(out, self.cache))
        assert status == 0, words
        self.compare(name, out)
        told["lives"] += 1
        self.write()

    def jobs(self, wanted: int) -> None:
        """Both processes of a job, killed together and resumed together, to equal histories."""
        told = self.result.setdefault("jobs of two", {"kills": 0, "lives": 0})
        if told["kills"] >= wanted:
            return

        def start(out: Path) -> list[subprocess.Popen[str]]:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                job = ["--coordinator", f"localhost:{free.getsockname()[1]}", "--processes", "2"]
            return [train(out, self.cache, *job, "--process", rank) for rank in "01"]

        whole = self.folder()
        statuses = [finish(process) for process in start(whole)]
        assert [status for status, _ in statuses] == [0, 0], statuses
        expected = left(whole)
        while told["kills"] < wanted:
            out = self.folder()
            processes = start(out)
            time.sleep(self.seconds * self.random.uniform(0.3, 1))
            for process in processes:
                process.kill()
                process.communicate()
            told["kills"] += 1
            statuses = [finish(process) for process in start(out)]
            if [status for status, _ in statuses] != [0, 0]:
                self.result["lost"].append(f"jobs: {statuses}")
            elif left(out) != expected:
                self.result["lost"].append(f"jobs: {out.name} differs")
            told["lives"] += 1
            self.write()

    def races(self, wanted: int) -> None:
        """Pairs of processes in one folder, a random time apart: whatever both want, one of them.

        The second one is refused while the first one lives; after it, it finds a finished run.
        """
        told = self.result.setdefault("races", {"pairs": 0, "refused": 0})
        ways: list[tuple[str, ...]] = [("--resume",), ("--overwrite",), ()]
        while told["pairs"] < wanted:
            out = self.folder()
            processes = [train(out, self.cache, how=self.random.choice(ways))]
            time.sleep(self.random.uniform(0, self.seconds))
            processes.append(train(out, self.cache, how=self.random.choice(ways)))
            ends = [finish(process) for process in processes]
            refused = [words for status, words in ends if status]
            known = all("is in use by" in words or "holds a run" in words for words in refused)
            if len(refused) > 1 or not known:
                self.result["lost"].append(f"races: {ends}")
            told["pairs"] += 1
            told["refused"] += len(refused)
            self.compare("races", out)
            self.write()

    def disks(self) -> None:
        """A disk that fills up in the middle, and one that can only be read any more."""
        for what in ("full", "read only"):
            if f"disk {what}" in self.result:
                continue
            out = self.folder()
            out.mkdir()
            try:
                with memory_disk(out):
                    told = self.disk(what, out)
            except PermissionError as error:
                told = f"left out: {error}"
            self.result[f"disk {what}"] = told
            self.write()

    def disk(self, what: str, disk: Path) -> dict[str, Any] | str:
        """One life on a disk that fails."""
        out = disk / "run"
        process = train(out, self.cache)
        deadline = time.monotonic() + PATIENCE
        history = out / "history.jsonl"
        while not (history.is_file() and history.read_text().count("\n") >= 2):
            assert process.poll() is None, finish(process)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if what == "full":
            with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(65536))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False)
        status, words = finish(process)
        if what == "full":
            (disk / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if status != 2:
            self.result["lost"].append(f"disk {what}: status {status}: {words}")
        again, last = finish(train(out, self.cache))
        if again != 0:
            self.result["lost"].append(f"disk {what}: not resumed: {last}")
        else:
            self.compare(f"disk {what}", out)
        return {"status": status, "said": words.replace(str(self.room), "")}


@contextlib.contextmanager
def memory_disk(folder: Path) -> Iterator[None]:
    """A small file system in memory, mounted at the folder."""
    options = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PermissionError(str(error)) from error
    if mounted.returncode:
        raise PermissionError(mounted.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--no-disks", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="what --out holds counts")
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "reliability.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        campaign = Campaign(given.seed, Path(room), given.out, given.resume)
        campaign.kills(given.kills, signal.SIGKILL)
        campaign.kills(given.terms, signal.SIGTERM)
        campaign.jobs(given.jobs)
        campaign.races(given.races)
        if not given.no_disks:
            campaign.disks()
    print(given.out.read_text())
    sys.exit(1 if campaign.result["lost"] else 0)


if __name__ == "__main__":
    main()

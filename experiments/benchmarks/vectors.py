r"""An epoch on vectors beside PyTorch Metric Learning's, and the memory of files of millions.

    python experiments/benchmarks/vectors.py speed
    python experiments/benchmarks/vectors.py memory --rows 1000000 2000000 --features 128
    python experiments/benchmarks/vectors.py memory --rows 10000000 --features 512

*speed*: 100,000 training vectors of 512 numbers, 8 of each of 12,500 identities around a point of
their own, in batches of 64 x 4; the published head (512, 256, 128; dropout .5 and .3), Adam at
1e-3, margin 0.2, the mean over active ones of all triplets. *ours* is `fit` on an .npz file, its
record's seconds of training, without the first epoch, which compiles; *whole* also has validation
on 4,000 other vectors, and what is written. *theirs* is the loop of the library's documentation:
DataLoader, MPerClassSampler, TripletMarginLoss(triplets_per_anchor="all"), the same head in
PyTorch, normalised vectors in memory, no validation. They take turns, each turn a process of its
own; printed are the medians of the turns, and that of the ratios turn by turn. *of CPU* is what all
cores together worked, for *ours* of whole epochs, which other work on the machine changes less.

*memory*: one epoch by `fit` on an .npy file of float16 with ten vectors of each identity, split
40/10/50, in a process of its own. *anonymous* is the most that it held of its own (Python,
JAX, labels, plans, embeddings); *mapped* the most of the file and of libraries that the system kept
for it, which it takes back when another needs it. Up to a gigabyte the file is written with random
numbers; of a larger one only every thousandth row is, and the others take no room on the disk.

Result on two CPU cores, jax 0.12, PyTorch 2.13, PyTorch Metric Learning 2.9.0:

============== ==== ===== ====== ====== ====== =====
speed, seconds ours whole of CPU theirs of CPU ratio
============== ==== ===== ====== ====== ====== =====
a turn         3.22 3.48  5.93   10.38  20.28  3.2
another        2.73 2.88  4.93   10.39  20.35  3.8
a third        2.27 2.45  4.28    9.47  18.46  4.2
============== ==== ===== ====== ====== ====== =====

Nothing else ran. That is 3.8 times, not the 20 that was aimed at: of the 10 ms of CPU that our step
takes, 6 are the matrix products of the head, which both have to do, 1 is the loss, and 1 to 2 the
dropout.

================ ======== ============== =========== =================
memory           file     anonymous      mapped      seconds of it all
================ ======== ============== =========== =================
 1,000,000 x 128   244 MiB   819 MiB       422 MiB     73
 2,000,000 x 128   488 MiB   943 MiB       666 MiB    116
10,000,000 x 512 9,766 MiB 1,671 MiB     9,940 MiB    525
================ ======== ============== =========== =================

So a row takes about 100 to 130 bytes, whatever its length, on top of about 700 MiB, which are
Python, JAX and compiled programs; there other work ran on the machine. Of these bytes 51 are
embeddings of the validation, a tenth of the rows, and as many again while these are joined.
(`evaluate` embeds all tested rows: 512 bytes for each.)
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import margin_jax as mj

TRAIN, REST, EACH, FEATURES = 12_500, 500, 8, 512
P, K, EPOCHS, TURNS = 64, 4, 3, 3
WRITTEN = 2**30  # bytes up to which a file is written as a whole


def write_speed(path: Path) -> None:
    rng = np.random.default_rng(0)
    identities = TRAIN + 2 * REST
    labels = np.repeat(np.arange(identities, dtype=np.int32), EACH)
    features = rng.normal(size=(identities, FEATURES)).astype(np.float32)[labels]
    features += 2 * rng.normal(size=features.shape).astype(np.float32)
    parts = np.repeat(["train", "validation", "test"], np.array([TRAIN, REST, REST]) * EACH)
    np.savez(path, features=features, labels=labels, splits=parts)


def ours(path: Path) -> dict[str, float]:
    ends = []

    def on_epoch(_: dict[str, Any]) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as out:
        config = mj.TrainConfig(
            dataset="vectors",
            data_dir=str(path),
            schedule="constant",
            margin=0.2,
            identities_per_batch=P,
            images_per_identity=K,
            epochs=1 + EPOCHS,
            out=out,
        )
        run = mj.fit(config, on_epoch=on_epoch)
    return {
        "seconds": statistics.median(record["seconds"] for record in run.history[1:]),
        "whole": statistics.median(np.diff(ends, axis=0)[:, 0]),
        "of CPU": statistics.median(np.diff(ends, axis=0)[:, 1]),
        "waited": statistics.median(record["data_wait"] for record in run.history[1:]),
        "steps": run.history[0]["steps"],
    }


def theirs(path: Path) -> dict[str, float]:
    import torch
    from pytorch_metric_learning import distances, losses, samplers
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    with np.load(path) as saved:
        features, labels = saved["features"], saved["labels"]
    features, labels = features[: TRAIN * EACH], labels[: TRAIN * EACH].astype(np.int64)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    head = nn.Sequential(
        *(nn.Linear(FEATURES, 512), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 128)),
    )
    loss = losses.TripletMarginLoss(
        margin=0.2, distance=distances.LpDistance(), triplets_per_anchor="all"
    )
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    sampler = samplers.MPerClassSampler(labels, K, P * K, length_before_new_iter=len(labels))
    rows = TensorDataset(torch.from_numpy(features), torch.from_numpy(labels))
    loader = DataLoader(rows, batch_size=P * K, sampler=sampler, drop_last=True)

    def train(batches: Iterable[Any]) -> int:
        steps = 0
        for x, y in batches:
            optimizer.zero_grad()
            loss(head(x), y).backward()
            optimizer.step()
            steps += 1
        return steps

    train(itertools.islice(loader, 20))  # warms up
    started, used = time.perf_counter(), time.process_time()
    steps = train(loader)
    return {
        "seconds": time.perf_counter() - started,
        "of CPU": time.process_time() - used,
        "steps": steps,
    }


def write_memory(path: Path, rows: int, features: int) -> None:
    shape = (rows, features)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    rng = np.random.default_rng(0)
    if rows * features * 2 <= WRITTEN:
        for start in range(0, rows, 2**16):
            block = file[start : start + 2**16]
            block[:] = rng.standard_normal(block.shape, np.float32)
    else:
        for row in range(0, rows, 1000):
            file[row] = rng.normal(size=features)
    file.flush()
    with open(path.with_suffix(".labels.txt"), "w", encoding="ascii") as labels:
        labels.writelines(f"{row // 10}\n" for row in range(rows))


def held(path: Path) -> dict[str, float]:
    """Megabytes, the most of each kind, and seconds."""
    most = {"RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]))

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        config = mj.TrainConfig(
            dataset="vectors",
            data_dir=str(path),
            schedule="constant",
            identities_per_batch=P,
            images_per_identity=K,
            epochs=1,
            out=out,
        )
        run = mj.fit(config)
    done.set()
    watching.join()
    return {
        "anonymous": most["RssAnon"] / 1024,
        "mapped": most["RssFile"] / 1024,
        "seconds": time.perf_counter() - started,
        "epoch": run.history[0]["seconds"],
        "steps": run.history[0]["steps"],
    }


def apart(what: str, path: Path) -> dict[str, float]:
    """What a function measures in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, what, "--file", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def speed(room: Path) -> None:
    write_speed(room / "vectors.npz")
    turns = []
    for _ in range(TURNS):
        one, two = (apart(name, room / "vectors.npz") for name in ("ours", "theirs"))
        turns.append((one, two))
        print(
            f"ours {one['seconds']:.2f} s ({one['steps']:.0f} steps, waited {one['waited']:.1%}, "
            f"whole {one['whole']:.2f} s, of CPU {one['of CPU']:.2f} s); theirs "
            f"{two['seconds']:.2f} s ({two['steps']:.0f} steps, of CPU {two['of CPU']:.2f} s); "
            f"ratio {two['seconds'] / one['seconds']:.1f}, of whole epochs "
            f"{two['seconds'] / one['whole']:.1f}, of CPU {two['of CPU'] / one['of CPU']:.1f}",
            flush=True,
        )
    ours_, theirs_ = ([turn[i]["seconds"] for turn in turns] for i in (0, 1))
    ratios = [b / a for a, b in zip(ours_, theirs_, strict=True)]
    print(
        f"medians: ours {statistics.median(ours_):.2f} s, theirs {statistics.median(theirs_):.2f} "
        f"s, ratio {statistics.median(ratios):.1f}"
    )


def memory(room: Path, sizes: list[int], features: int) -> None:
    found = []
    for rows in sizes:
        path = room / f"{rows}.npy"
        write_memory(path, rows, features)
        measured = apart("held", path)
        found.append((rows, measured["anonymous"]))
        print(
            f"{rows:>12,} x {features}: file {path.stat().st_size / 2**20:,.0f} MiB, anonymous "
            f"{measured['anonymous']:,.0f} MiB, mapped {measured['mapped']:,.0f} MiB, "
            f"{measured['seconds']:.0f} s, of which the {measured['steps']:,.0f} steps of the "
            f"epoch {measured['epoch']:.0f} s",
            flush=True,
        )
        path.unlink()
    for (few, less), (many, more) in itertools.pairwise(found):
        print(f"each row more: {(more - less) * 2**20 / (many - few):.0f} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "memory", "ours", "theirs", "held"))
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000])
    parser.add_argument("--features", type=int, default=128)
    options = parser.parse_args()
    if options.file is not None:
        measure = {"ours": ours, "theirs": theirs, "held": held}[options.what]
        print(json.dumps(measure(options.file)))
        return
    with tempfile.TemporaryDirectory() as room:
        if options.what == "speed":
            speed(Path(room))
        else:
            memory(Path(room), options.rows, options.features)


if __name__ == "__main__":
    main()

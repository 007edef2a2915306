"""What the batch-all loss costs, against the floor and against what else there is.

    python experiments/benchmarks/loss.py

Loss and gradient of one batch of L2-normalised random float32 embeddings, D = 128, Euclidean,
margin 0.2, mean over active triplets. Ours takes turns with each group of rivals within one run
(with the groups apart, since large arrays and other thread pools slow down what comes next):

- ours;
- the floor: the same distances and their vjp with a fixed random cotangent, and nothing else; the
  better of one whole matrix and of blocks of 64 to 512 rows;
- the plain N³ tensor, differentiated by JAX, where it fits;
- PyTorch Metric Learning and sentence-transformers, where they are installed: ``pip install
  torch==2.13.0 transformers`` and then ``pip install --no-deps pytorch-metric-learning
  sentence-transformers``.

Peak memory is that of a process of its own that runs one method once, interpreter and libraries
included (read on Linux only). The result, with the machine named, is in
``experiments/results/loss.md``; it takes eight minutes.

Aims, on two CPU cores, and what came of them:

- K <= 8 and N = 64 to 4,096 as before the sorting, 1.4 to 2.7 times the floor: 1.4 to 2.5. At
  N = 64 the floor is 0.06 ms, and the loss is about a hundred operations on the CPU, most of them a
  microsecond of dispatch each.
- With large classes at most 4 times the floor at (1024, 64), 3.5 with a long tail, 8 with ten
  classes and 10 with two at N = 4,096: 3.2, 2.2, 3.4, 6.0. Its loop over positives takes 1.4 to 1.9
  times as long in the first two, and 6.6 times with ten classes.
- At least 25 times faster than PyTorch Metric Learning at (512, 8), 40 times at (1024, 8): 53 and
  39 in turns with it, where ours is slower than alone; 52 and 98 by the medians alone.
  sentence-transformers, which compares only pairs that exist, takes 9 and 5 times as long in turns.
- N = 8,192 in under 1 GB, N = 32,768 in under 1.2 GB: 0.49 and 0.67 GB. At most 1.5 times the cost
  per pair of N = 2,048: 13.7 to 10.8 ns, 1.3 times.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import margin_jax as mj
from margin_jax.losses.distances import euclidean

# Before PyTorch is imported: idle threads of one library that spin would slow the other down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RESULTS = Path(__file__).parent.parent / "results"
DIM, MARGIN = 128, 0.2
SMALL = [(n, k) for n in (64, 256, 1024, 4096) for k in ("2", "4", "8")]
SMALL = sorted([*SMALL, (512, "8"), (2048, "8")])
# Large classes: 64 rows, long tails, ten classes, two.
UNEVEN = [(1024, "64"), (1024, "tail"), (2048, "tail"), (4096, "410"), (4096, "2048")]
LARGE = [(8192, "8"), (32768, "8")]
HUGE = (65536, "8")  # only on an accelerator
ROUNDS = 15


def labels_of(n, classes):
    """Classes of so many rows each, or a long tail: the r-th largest class has 1/r of the first."""
    if classes != "tail":
        return np.arange(n) // int(classes)
    ranks = np.arange(1, n + 1)
    sizes = np.maximum(n / 8 / ranks, 1).astype(int)
    return np.repeat(ranks, sizes)[:n]


def batch(n, classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, DIM)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.permutation(labels_of(n, classes)).astype(np.int32)


def ours(x, labels, **options):
    differentiate = jax.value_and_grad(
        lambda x, labels, margin: mj.batch_all_triplet_loss(x, labels, margin, **options),
        has_aux=True,
    )
    arguments = jnp.asarray(x), jnp.asarray(labels), jnp.float32(MARGIN)
    return functools.partial(jax.jit(differentiate), *arguments)


def floor_whole(x, labels):
    @jax.jit
    def run(x, cotangent):
        tile, pull = jax.vjp(euclidean, x, x)
        to_x, to_y = pull(cotangent)
        return jnp.sum(tile), to_x + to_y

    cotangent = jax.random.normal(jax.random.key(0), (len(x), len(x)))
    return functools.partial(run, jnp.asarray(x), cotangent)


def floor_blocks(x, labels, size):
    @jax.jit
    def run(x, cotangent):  # one cotangent serves every block
        def step(to_y, rows):
            tile, pull = jax.vjp(euclidean, rows, x)
            to_rows, to_all = pull(cotangent)
            return to_y + to_all, (jnp.sum(tile), to_rows)

        blocks = x.reshape(-1, size, DIM)
        to_y, (total, to_x) = jax.lax.scan(step, jnp.zeros_like(x), blocks)
        return jnp.sum(total), to_y + to_x.reshape(x.shape)

    cotangent = jax.random.normal(jax.random.key(0), (size, len(x)))
    return functools.partial(run, jnp.asarray(x), cotangent)


def cube(x, labels):
    @jax.jit
    @jax.value_and_grad
    def run(x, labels):
        d = euclidean(x, x)
        same = labels[:, None] == labels
        positive = same & ~jnp.eye(len(labels), dtype=bool)
        valid = positive[:, :, None] & ~same[:, None, :]
        loss = jnp.where(valid, jax.nn.relu(d[:, :, None] - d[:, None, :] + MARGIN), 0)
        return jnp.sum(loss) / jnp.maximum(jnp.sum(loss > 0), 1)

    return functools.partial(run, jnp.asarray(x), jnp.asarray(labels))


def pytorch_metric_learning(x, labels, device="cpu"):
    from pytorch_metric_learning import distances, losses

    loss_fn = losses.TripletMarginLoss(
        margin=MARGIN,
        distance=distances.LpDistance(normalize_embeddings=False),
        triplets_per_anchor="all",
    )
    return in_torch(loss_fn, x, labels, device)


def sentence_transformers(x, labels, device="cpu"):
    from sentence_transformers.sentence_transformer import losses

    distance = losses.BatchHardTripletLossDistanceFunction.euclidean_distance
    batch_all = losses.BatchAllTripletLoss(None, distance_metric=distance, margin=MARGIN)

    def loss_fn(rows, targets):
        return batch_all.batch_all_triplet_loss(targets, rows)

    return in_torch(loss_fn, x, labels, device)


def in_torch(loss_fn, x, labels, device):
    """Loss and gradient of rows that are on the device, finished when it returns."""
    import torch

    torch.set_num_threads(os.cpu_count())
    given, targets = (torch.tensor(v, device=device) for v in (x, labels))
    targets = targets.long()

    def run():
        rows = given.detach().requires_grad_()
        loss_fn(rows, targets).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return rows.grad

    return run


METHODS = {"ours": ours, "cube": cube, "pml": pytorch_metric_learning, "floor": floor_whole}
METHODS |= {"st": sentence_transformers, "loop": functools.partial(ours, implementation="loop")}
PEERS = {"pml": "pytorch_metric_learning", "st": "sentence_transformers"}
METHODS |= {
    f"floor_{size}": functools.partial(floor_blocks, size=size) for size in (64, 128, 256, 512)
}
METHODS |= {
    "swap": functools.partial(ours, swap=True),
    "soft": functools.partial(ours, soft=True),
}


def groups_for(n, classes):
    """Which methods take turns with ours: the floors, the other libraries, our own options."""
    blocks = [size for size in (64, 128, 256, 512) if n >= 1024]
    if n > 4096:
        blocks = [64, 128] if n <= 8192 else [64]
    floors = [f"floor_{size}" for size in blocks] + (["floor"] if n <= 4096 else [])
    rivals = ["cube"] if n <= 512 else []
    if n <= 1024 and classes in ("2", "4", "8"):
        rivals += [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    options = ["swap", "soft"] if (n, classes) == (1024, "8") else []
    # The loop over positives, where it is not what a block takes anyway.
    options += ["loop"] if classes in ("64", "tail", "410") else []
    # Each rival apart: what it leaves of memory to clear would slow down what comes next.
    return [group for group in (floors, *([name] for name in rivals), options) if group]


def seconds(run, repeats):
    """Wall time of one run."""
    started = time.perf_counter()
    for _ in range(repeats):
        result = run()
    jax.block_until_ready(result)  # torch's arrays pass through: they are finished already
    return (time.perf_counter() - started) / repeats


def measure(n, classes, names):
    """Name → seconds of every round; the methods take turns."""
    x, labels = batch(n, classes)
    runs = {name: METHODS[name](x, labels) for name in ("ours", *names)}
    slowest = 0.0
    repeats = {}
    for name, run in runs.items():
        seconds(run, 1)  # compiles
        once = seconds(run, 1) if n <= 8192 else 10.0
        slowest = max(slowest, once)
        # Short ones several times a round, so that the clock and the queueing weigh little.
        repeats[name] = max(1, min(200, int(0.02 / once)))
    rounds = max(2, min(ROUNDS, int(8 / slowest))) if n <= 8192 else 3
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, repeats[name]))
    return times


def peak_memory(method, n, classes):
    """Megabytes, of a process of its own."""
    command = [sys.executable, __file__, "--one", method, str(n), classes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def row(n, classes):
    """Everything measured of one size, ready for JSON."""
    groups = [measure(n, classes, names) for names in groups_for(n, classes)]
    median = statistics.median
    floor = min((name for name in groups[0] if name != "ours"), key=lambda k: median(groups[0][k]))
    times = {name: values for group in reversed(groups) for name, values in group.items()}

    def ratio(group, name, other):
        ratios = [a / b for a, b in zip(group[name], group[other], strict=True)]
        return [min(ratios), median(ratios), max(ratios)]

    sizes = np.bincount(labels_of(n, classes)).astype(np.int64)
    result = {
        "n": n,
        "classes": classes,
        "largest_class": int(sizes.max()),
        "triplets": int(np.sum(sizes * (sizes - 1) * (n - sizes))),
        "floor": floor,
        "milliseconds": {k: [1e3 * t for t in sorted(v)] for k, v in times.items()},
        "median_ms": {k: 1e3 * median(v) for k, v in times.items()},
        "ours_over_floor": ratio(groups[0], "ours", floor),
        "over_ours": {name: ratio(group, name, "ours") for group in groups[1:] for name in group},
        "nanoseconds_a_pair": 1e9 * median(times["ours"]) / n**2,
        "peers": {
            name: f"{package.replace('_', '-')} {importlib.metadata.version(package)}"
            for name, package in PEERS.items()
            if name in times
        },
        "peak_mb": {},
    }
    for name in ("ours", floor, "cube", *PEERS):
        if name in times and jax.default_backend() == "cpu":
            result["peak_mb"][name] = peak_memory(name, n, classes)
    return result


def table(rows, machine):
    peers = {name: title for r in rows for name, title in r["peers"].items()}
    lines = [
        f"Loss and gradient on a {machine}; jax {jax.__version__}; float32, D = {DIM}, Euclidean.",
        "Made by `python experiments/benchmarks/loss.py`. Milliseconds are medians; the ratio to",
        "the floor is taken round by round (median, and from least to most). Peak memory is that",
        "of a whole process. Ours took turns with the peers and with its own loop over positives",
        "apart from the floor, so what these take over ours is not quite the quotient of two",
        "columns. The peers: " + ("; ".join(peers.values()) or "none was installed") + ".",
        "",
        "| N | class size | triplets | ours, ms | floor, ms | ours / floor | ours, ns a pair "
        "| loop / ours | N³ tensor, ms | "
        + "".join(f"{peer}, ms | / ours | " for peer in peers.values())
        + "peak MB: ours | floor | N³ | "
        + " | ".join(peers.values()),
    ]
    lines[-1] = lines[-1].rstrip(" |") + " |"
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    for r in rows:
        ms, mb = r["median_ms"], r["peak_mb"]
        least, middle, most = r["ours_over_floor"]
        kind = r["classes"] if r["classes"] != "tail" else f"1 to {r['largest_class']}, long tail"

        def show(values, name, digits=".4g"):
            return f"{values[name]:{digits}}" if name in values else "–"

        def over(name, times=r["over_ours"]):
            return f"{times[name][1]:.3g}×" if name in times else "–"

        cells = [
            f"{r['n']:,}",
            kind,
            f"{r['triplets']:,}",
            show(ms, "ours"),
            show(ms, r["floor"]),
            f"{middle:.2f} ({least:.2f}–{most:.2f})",
            f"{r['nanoseconds_a_pair']:.1f}",
            over("loop"),
            show(ms, "cube"),
            *(cell for peer in peers for cell in (show(ms, peer), over(peer))),
            show(mb, "ours", ".0f"),
            show(mb, r["floor"], ".0f"),
            show(mb, "cube", ".0f"),
            *(show(mb, peer, ".0f") for peer in peers),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for r in rows:
        if "swap" in r["over_ours"]:
            swap, soft = (
                f"{r['median_ms'][name]:.4g} ms ({r['over_ours'][name][1]:.1f}× the plain loss)"
                for name in ("swap", "soft")
            )
            size = f"N = {r['n']:,}, K = {r['classes']}"
            lines += ["", f"At {size}: `swap=True` {swap}; `soft=True` {soft}."]
    return "\n".join(lines) + "\n"


def machine_name():
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{os.cpu_count()}-core {platform.machine().replace('_', '-')} CPU"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default=machine_name(), help="how the results name it")
    parser.add_argument("--sizes", nargs="+", help="measure these again, as 1024,tail")
    parser.add_argument("--out", type=Path, default=RESULTS / "loss", help="without a suffix")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, n, classes = arguments.one
        seconds(METHODS[method](*batch(int(n), classes)), 1)
        # Not getrusage, whose peak a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
        return

    kept = arguments.out.with_suffix(".json")
    sizes = SMALL + UNEVEN + LARGE + ([HUGE] if jax.default_backend() != "cpu" else [])
    record = {"machine": arguments.machine, "jax": jax.__version__}
    found = {}
    if arguments.sizes:
        if not kept.exists():
            parser.error(f"--sizes measures rows of {kept} again; there is none")
        saved = json.loads(kept.read_text(encoding="utf-8"))
        if {**saved, **record} != saved:
            parser.error(f"--sizes goes on with rows of the same machine and jax; got {record}")
        found = {(r["n"], r["classes"]): r for r in saved["rows"]}
    for n, classes in sizes:
        if not arguments.sizes or f"{n},{classes}" in arguments.sizes:
            found[n, classes] = row(n, classes)
            rows = [found[size] for size in sizes if size in found]
            text = table(rows, arguments.machine)
            lines = [line for line in text.splitlines() if line.startswith("| ")]
            print(lines[1 + rows.index(found[n, classes])], flush=True)  # below the head
            arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
            kept.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

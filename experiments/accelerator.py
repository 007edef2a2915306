"""Everything that must be measured on a GPU or TPU, in one command.

    python experiments/accelerator.py --minutes 10
    python experiments/accelerator.py --minutes 15 --images FACES --weights FILE

Run it from a checkout: it needs jax, flax, optax, orbax-checkpoint, numpy, scipy, pillow,
matplotlib and tqdm, and no installation. Other packages are only imported when they are needed:
tensorflow-datasets, typer, and safetensors (for ``--weights``).

The most valuable rows come first. Each is written to ``experiments/results/accelerator.jsonl`` once
it is measured, with the device's name, and is not measured again on that device without
``--again``; so the next call continues where time ran out. ``accelerator.md`` is the table of all
devices. The rows:

- *check*: loss, counts and gradient against float64 on the host, and whether distances are computed
  with rounded factors (TF32 or bfloat16), as the default of matrix products is. A count may differ
  from float64's where a triplet is within rounding of a tie; how many are is counted beside it;
- *loss*: loss and gradient of N random rows of length 1 and D = 128, K of each label, Euclidean,
  mean over active triplets. Beside it the floor, the same distances and their vjp alone, at once or
  from N = 8,192 on in the best of some block sizes; and PyTorch Metric Learning and
  sentence-transformers, where they are installed and the device has the memory that they need;
- *block*: the loss with blocks of so many anchors;
- *way*: the loss with its loop over positives, and with sorting;
- *step*: forward, backward and update of an encoder, with a fixed cotangent and with the loss;
- *glyphs*: ``margin-jax train`` to the end;
- *faces*: folders of faces (``--images``) and an encoder with pretrained weights (``--weights``):
  the paper's batches, learning rate and epochs, under a constant margin and DAMS.

On a CPU everything is small, so ``--minutes 3`` runs all of it as a test.

Results on one H200 with jax 0.11.2:

- Loss, counts and gradient agree with float64 up to float32 rounding. No factor is rounded to TF32,
  as in matrix products by default, which have an error of 2e-4.
- In a trial before, blocks of 64 anchors, which suit a CPU, took 1.4, 10.5, 83 and 566 ms at
  N = 1,024, 4,096, 16,384 and 65,536 with K = 8; those of 2^25 distances take 0.96, 2.2, 19, 287.
- In another, of tiles of 2,048 × 16,384 distances alone, the loop over positives took 0.04 ns a
  distance at K = 8, 0.13 at 32, 0.49 at 128 and 7.5 at 2,048, and sorting 0.08 to 0.1, so that the
  same class size as on a CPU decides. A loop that takes 16 positives a turn took half the loop's
  time up to K = 16, and is not used: at N = 1,024 what is left is mostly launching, and the network
  of the faces, at its 2,524 images a second, takes 400 times as long.
- The faces are those of the 1,680 people of LFW with two pictures or more, at most 12 of each, the
  middle 150 pixels at 128, made 224. In 50 epochs DAMS acted once, after the 44th: 79 % of the
  triplets are easy in the 18th epoch, 95 % in the 44th.
- No time was left for the training steps (EfficientNet-B0's alone took more than 100 s to compile)
  and most of the blocks.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# PyTorch needs room on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout that is not installed

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import encoders
from benchmarks import loss as bench

import margin_jax as mj
from margin_jax.losses import batch_all
from margin_jax.losses.distances import DISTANCES

RESULTS = Path(__file__).parent / "results" / "accelerator"
ON_CPU = jax.default_backend() == "cpu"
DEVICE = bench.machine_name()
MARGIN, DIM = bench.MARGIN, bench.DIM


# --- rows ---


def check(distance, k, dtype="float32"):
    """Loss, counts and gradient of 1,024 rows beside float64."""
    x, labels = bench.batch(1024, str(k))
    x = jnp.asarray(x, dtype)
    differentiate = jax.jit(
        jax.value_and_grad(
            lambda x: mj.batch_all_triplet_loss(x, jnp.asarray(labels), MARGIN, distance=distance),
            has_aux=True,
        )
    )
    (loss, stats), gradient = differentiate(x)
    exact = np.asarray(x.astype(jnp.float32), np.float64)
    wanted = of_plain_loops(exact, labels, distance)
    d = np.asarray(DISTANCES[distance](x.astype(jnp.float32), x.astype(jnp.float32)), np.float64)
    rounded = jax.jit(lambda x: jnp.matmul(x, x.T))(x.astype(jnp.float32))
    return {
        "loss_error": abs(float(loss) - wanted["loss"]) / wanted["loss"],
        "gradient_error": relative(gradient.astype(jnp.float32), wanted["gradient"]),
        "active": sum(stats.totals()[kind] for kind in ("semihard", "hard")),
        "active_float64": wanted["active"],
        "within_rounding_of_a_tie": wanted["near"],
        "distance_error": float(np.max(np.abs(d - wanted["distances"]), where=far(d), initial=0)),
        "default_product_error": float(np.max(np.abs(np.asarray(rounded) - exact @ exact.T))),
    }


def far(d):
    """Off the diagonal, where the root of a rounded zero is compared with zero."""
    return ~np.eye(len(d), dtype=bool)


def relative(found, wanted):
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted))


def of_plain_loops(x, labels, distance):
    """The same in float64 on the host: a loop over anchors, every triplet of one in an array."""
    dots, lengths = x @ x.T, np.linalg.norm(x, axis=1)
    squared = np.maximum(lengths[:, None] ** 2 + lengths**2 - 2 * dots, 0)
    d = {
        "euclidean": np.sqrt(squared),
        "squared_euclidean": squared,
        "cosine": 1 - dots / lengths[:, None] / lengths,
    }[distance]
    to_d, total, active, near = np.zeros_like(d), 0.0, 0, 0
    for anchor, own in enumerate(labels):
        same = np.flatnonzero((labels == own) & (np.arange(len(x)) != anchor))
        other = np.flatnonzero(labels != own)
        value = d[anchor, same, None] - d[anchor, other] + MARGIN
        chosen = value > 0
        total, active = total + value[chosen].sum(), active + chosen.sum()
        near += np.sum(np.abs(value) < 1e-6)
        to_d[anchor, same] += chosen.sum(axis=1)
        to_d[anchor, other] -= chosen.sum(axis=0)
    to_d = (to_d + to_d.T) / active
    if distance == "cosine":
        unit = x / lengths[:, None]
        gradient = -to_d @ unit  # of 1 - cos, then through the length
        gradient = (gradient - np.sum(gradient * unit, axis=1)[:, None] * unit) / lengths[:, None]
    else:
        to_d *= 2.0 if distance == "squared_euclidean" else 1 / np.where(d > 0, d, np.inf)
        gradient = to_d.sum(axis=1)[:, None] * x - to_d @ x
    return {
        "distances": d,
        "loss": total / active,
        "gradient": gradient,
        "active": int(active),
        "near": int(near),
    }


def loss(n, k, dtype="float32"):
    """Milliseconds and memory of loss and gradient, of the floor, and of the peers."""
    x, labels = bench.batch(n, str(k))
    run, temporary_mib = compiled(bench.ours(jnp.asarray(x, dtype), labels))
    sizes = [size for size in (256, 1024, 4096) if size * n <= 2**28] if n > 4096 else []
    floors = [bench.floor_blocks(jnp.asarray(x), labels, size) for size in sizes]
    floors = floors or [bench.floor_whole(jnp.asarray(x), labels)]
    ours, *best = in_turns([run, *floors])
    floor = min(best)
    row = {
        "ms": ours,
        "floor_ms": floor,
        "over_floor": ours / floor,
        "ns_a_pair": 1e6 * ours / n**2,
        "temporary_mib": temporary_mib,
    }
    if dtype == "float32" and k == 8 and n <= 4096:
        row |= dict(peer(name, x, labels) for name in PEERS)
    return row


def in_turns(runs, budget=2.0):
    """Median milliseconds of each; they take turns."""
    for run in runs:
        bench.seconds(run, 1)  # compiles
    once = [bench.seconds(run, 1) for run in runs]
    repeats = [max(1, min(100, int(0.02 / s))) for s in once]
    rounds = max(3, min(15, int(budget / sum(s * r for s, r in zip(once, repeats, strict=True)))))
    times = [[] for _ in runs]
    for _ in range(rounds):
        for run, repeat, found in zip(runs, repeats, times, strict=True):
            found.append(1e3 * bench.seconds(run, repeat))
    return [statistics.median(found) for found in times]


def compiled(run):
    """A partial application, compiled; and what it needs besides arguments and results, in MiB."""
    program = run.func.lower(*run.args).compile()
    temporary = program.memory_analysis().temp_size_in_bytes
    return functools.partial(program, *run.args), temporary / 2**20


PEERS = bench.PEERS


def peer(name, x, labels):
    """``(package and version, milliseconds)`` on the same device, or why there are none."""
    package = PEERS[name].replace("_", "-")
    try:
        title = f"{package} {importlib.metadata.version(package)}, ms"
        run = bench.METHODS[name](x, labels, "cpu" if ON_CPU else "cuda")
    except ImportError:
        return package, "not installed"
    try:
        return title, in_turns([run], budget=3.0)[0]
    except Exception as error:
        return title, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    finally:
        if not ON_CPU:  # what it keeps of the device's memory is missing in the next row
            sys.modules["torch"].cuda.empty_cache()


def block(n, k, size):
    """The loss with blocks of `size` anchors."""
    usual = batch_all.block_size
    batch_all.block_size = lambda anchors, references, width: min(anchors, size)
    try:
        x, labels = bench.batch(n, str(k))
        run, temporary_mib = compiled(bench.ours(x, labels))
        return {"ms": in_turns([run])[0], "temporary_mib": temporary_mib}
    finally:
        batch_all.block_size = usual


def way(n, k):
    """The loss with the loop over positives and with sorting; it takes the faster one itself."""
    x, labels = bench.batch(n, str(k))
    loop, by_sorting = (bench.ours(x, labels, implementation=name) for name in ("loop", "sorted"))
    by_loop, by_sorting = in_turns([loop, by_sorting])
    return {"loop_ms": by_loop, "sorted_ms": by_sorting}


def step(encoder, pixels, batch, dtype="float32"):
    """A whole training step, the same without the loss, and the loss of its embeddings alone."""
    images, to_embeddings = encoders.arrays(batch, pixels)
    network = encoders.make_encoder(encoder, DIM, dtype=dtype)
    optimizer = optax.adam(1e-4)
    drawn = network.init(jax.random.key(0), images.shape[1:])
    state = mj.create_state(*drawn, optimizer, mj.dams(), jax.random.key(0))
    labels = jnp.arange(batch, dtype=jnp.int32) // 4

    @jax.jit
    def without(state, images):
        def total(params):
            key = jax.random.fold_in(state.key, state.step)
            x, stats = network.apply(params, state.batch_stats, images, train=True, key=key)
            return jnp.sum(x * to_embeddings), stats

        gradient, stats = jax.grad(total, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, batch_stats=stats, opt_state=opt_state)

    images = jnp.asarray(images)
    x = to_embeddings / np.linalg.norm(to_embeddings, axis=1)[:, None]
    train_step = mj.make_train_step(network.apply, optimizer)
    with_loss, temporary_mib = compiled(functools.partial(train_step, state, images, labels))
    ours, bare, alone = in_turns(
        [
            with_loss,
            functools.partial(without, state, images),
            bench.ours(x, np.asarray(labels)),
        ]
    )
    return {
        "ms": ours,
        "without_loss_ms": bare,
        "loss_ms": alone,
        "loss_share": alone / ours,
        "images_per_second": 1e3 * batch / ours,
        "temporary_mib": temporary_mib,
    }


def train(config):
    """A run to its end, and what its report says."""
    with tempfile.TemporaryDirectory() as room:
        started = time.perf_counter()
        run = mj.fit(config.replace(out=str(Path(room) / "run")))
        took = time.perf_counter() - started
        test = run.report["test"]
    history = run.history
    return {
        "seconds": took,
        "epochs": len(history),
        "best_epoch": run.report["best_epoch"],
        "auc": test["auc"],
        "accuracy": test["accuracy"],
        "validation_auc": [record["validation_auc"] for record in history],
        "easy_fraction": [record["easy_fraction"] for record in history],
        "margin": [record["margin"] for record in history],
        "images_per_second": statistics.median(r["images_per_second"] for r in history),
        "data_wait": statistics.median(record["data_wait"] for record in history),
    }


def glyphs():
    return train(mj.TrainConfig(epochs=1 if ON_CPU else 30))


def faces(images, weights, encoder, schedule, pixels, epochs):
    """The published batches and learning rate; over active triplets, as its filter "hard"."""
    few = {"max_identities": 60, "identities_per_batch": 8} if ON_CPU else {}
    return train(
        mj.TrainConfig(
            dataset="folder",
            data_dir=images,
            encoder=encoder,
            weights=weights,
            schedule=schedule,
            image_size=pixels,
            epochs=epochs,
            learning_rate=1e-4,
            augment="flip",
            **few,
        )
    )


# --- which, and in what order ---


def plan(options):
    """``(function, arguments)``, the most valuable first."""
    largest = "small_cnn" if ON_CPU else "efficientnet_b0"
    batch, pixels = (16, 64) if ON_CPU else (1024, 128)
    rows = [(check, ("euclidean", k)) for k in (8, 512)]
    rows += [(loss, (n, 8)) for n in ((1024,) if ON_CPU else (1024, 65536, 4096, 16384))]
    if options.images and options.weights:
        size, epochs = (64, 1) if ON_CPU else (options.pixels, options.epochs)
        rows += [
            (faces, (options.images, options.weights, options.encoder, schedule, size, epochs))
            for schedule in ("dams:margin=0.2", "constant:0.2")
        ]
    rows += [(step, (largest, pixels, batch))]
    many = (64, 512) if ON_CPU else (2, 32, 64, 128, 512, 2048)
    rows += [(loss, (1024 if ON_CPU else 4096, k)) for k in many]
    rows += [(check, (name, 8)) for name in ("cosine", "squared_euclidean")]
    rows += [(check, ("euclidean", 8, "bfloat16")), (loss, (1024, 8, "bfloat16")), (glyphs, ())]
    sizes = (64, 256) if ON_CPU else (256, 512, 1024, 2048, 8192)
    for n in (1024,) if ON_CPU else (65536, 8192):
        rows += [(block, (n, 8, size)) for size in sizes if size <= n and size * n <= 2**27]
    rows += [(way, (1024 if ON_CPU else 8192, k)) for k in (16, 24, 32)]
    if not ON_CPU:
        rows += [(step, (largest, 224, 256, "bfloat16"))]
        rows += [(loss, (n, 8)) for n in (2048, 8192, 32768)]
        rows += [(loss, (16384, k)) for k in (64, 512, 8192)]
        rows += [(loss, (n, 8, "bfloat16")) for n in (4096, 65536)]
        others = [name for name in encoders.ENCODERS if name != largest]
        rows += [(step, (name, pixels, batch)) for name in others]
    return rows


def name_of(function, arguments):
    """What a row is told by; of files, their names."""
    return [function.__name__, *(Path(a).name if "/" in str(a) else a for a in arguments)]


# --- the table ---


def number(value):
    if isinstance(value, list):
        return f"{number(value[0])} to {number(value[-1])}"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows):
    """Markdown: for each device, a table of each kind of row."""
    lines = [
        "# On accelerators",
        "",
        "Made by `python experiments/accelerator.py`, whose docstring",
    ]
    lines += ["says what the rows are. Times are medians."]
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        lines += ["", f"## {device}, jax {', '.join(sorted({row['jax'] for row in mine}))}"]
        for kind in dict.fromkeys(row["row"][0] for row in mine):
            these = [row for row in mine if row["row"][0] == kind]
            columns = list(dict.fromkeys(key for row in these for key in row["found"]))
            names = [column.replace("_", " ") for column in columns]
            lines += ["", f"| {' | '.join([kind, *names])} |", "|---" * (len(names) + 1) + "|"]
            for row in these:
                cells = [number(row["found"][c]) if c in row["found"] else "–" for c in columns]
                what = ", ".join(map(str, row["row"][1:])) or "–"
                lines += [f"| {' | '.join([what, *cells])} |"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="no row begins after them")
    parser.add_argument("--images", help="a folder of faces, one folder a person")
    parser.add_argument("--weights", help="published weights of the encoder, safetensors")
    parser.add_argument("--encoder", default="efficientnet_lite0", help="that these fit")
    parser.add_argument("--pixels", type=int, default=224, help="of the faces")
    parser.add_argument("--epochs", type=int, default=50, help="of training on the faces")
    parser.add_argument("--only", nargs="+", help="these kinds of row")
    parser.add_argument("--again", action="store_true", help="measure also what is measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="without a suffix")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    kept = options.out.with_suffix(".jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    print(f"{DEVICE}, jax {jax.__version__}", flush=True)
    for function, arguments in plan(options):
        name = name_of(function, arguments)
        same = [r for r in rows if (r["device"], r["row"]) == (DEVICE, name)]
        done = [r for r in same if "failed" not in r["found"]]
        if (options.only and name[0] not in options.only) or (done and not options.again):
            continue
        if time.monotonic() > until:
            print(f"no time for {name}", flush=True)
            continue
        started = time.monotonic()
        try:
            found = function(*arguments)
        except Exception as error:  # too little memory, most likely; the rest may still be had
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
        took = round(time.monotonic() - started, 1)
        row = {"device": DEVICE, "jax": jax.__version__, "row": name, "found": found, "took": took}
        rows = [r for r in rows if r not in same] + [row]
        unfinished = kept.with_suffix(".partial")
        unfinished.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        unfinished.replace(kept)
        options.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        shown = {k: v for k, v in found.items() if not isinstance(v, list)}
        print(name, f"{took:.0f} s", {k: number(v) for k, v in shown.items()}, flush=True)


if __name__ == "__main__":
    main()

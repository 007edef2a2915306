"""What the other losses cost, each beside PyTorch Metric Learning's where that has it.

    pip install torch==2.13.0 && pip install --no-deps pytorch-metric-learning
    python experiments/benchmarks/losses.py

Loss, counts and gradient of one batch of L2-normalised random float32 embeddings, N = 1,024,
D = 128, in groups of eight rows for the losses over triplets, and of 1,000 classes at random for
the classifiers (whose proxies have a gradient too). Ours counts triplets besides; theirs does not.
The two take turns, round by round, at the margin 0.2. Shadow, Fisher, the transplant and the
balancing margin have no peer there: they are shown beside our own triplet loss and ArcFace, which
they are made of. The result, with the machine named, is ``experiments/results/losses.md``; it takes
five minutes.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import statistics

import jax
import jax.numpy as jnp
import loss as triplets
import numpy as np

import margin_jax as mj

N, CLASSES, MARGIN = 1024, 1000, triplets.MARGIN
OF_CLASSES = ("arcface", "cosface", "balancing_margin")
COUNTS = tuple(np.random.default_rng(1).integers(2, 200, CLASSES).tolist())
# A loss, and what takes turns with it: theirs, or another one of ours.
LOSSES = {
    "triplet": (mj.TripletLoss(), "theirs"),
    "arcface": (mj.ArcFaceLoss(), "theirs"),
    "cosface": (mj.CosFaceLoss(), "theirs"),
    "balancing_margin": (mj.BalancingMarginLoss(counts=COUNTS), "arcface"),
    "supcon": (mj.SupConLoss(), "theirs"),
    "dynamic_soft_margin": (mj.DynamicSoftMarginLoss(), "theirs"),
    "shadow": (mj.ShadowLoss(), "triplet"),
    "transplant": (mj.TransplantLoss(counts=COUNTS), "triplet"),
    "fisher_triplet": (mj.FisherTripletLoss(), "triplet"),
    "fisher_contrastive": (mj.FisherContrastiveLoss(), "triplet"),
}


def batch(name):
    """Embeddings, labels, and parameters."""
    x, labels = triplets.batch(N, "8")
    loss, _ = LOSSES[name]
    if name in OF_CLASSES:
        labels = np.random.default_rng(2).integers(0, CLASSES, N).astype(np.int32)
    return x, labels, loss.init(jax.random.key(0), triplets.DIM, CLASSES)


def ours(name):
    loss, _ = LOSSES[name]
    x, labels, params = batch(name)
    options = {"state": loss.init_state()} if hasattr(loss, "init_state") else {}

    def of(params, x, labels, margin):
        value, *others = loss(params, x, labels, margin, **options)
        return value, others

    differentiate = jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))
    given = params, jnp.asarray(x), jnp.asarray(labels), jnp.float32(MARGIN)
    return functools.partial(differentiate, *given)


def theirs(name):
    import torch
    from pytorch_metric_learning import distances, losses

    x, labels, params = batch(name)
    if name == "triplet":
        return triplets.pytorch_metric_learning(x, labels)
    loss_fn = {
        "arcface": lambda: losses.ArcFaceLoss(CLASSES, triplets.DIM, math.degrees(MARGIN), 64),
        "cosface": lambda: losses.CosFaceLoss(CLASSES, triplets.DIM, margin=MARGIN, scale=64),
        "supcon": lambda: losses.SupConLoss(temperature=0.1),
        "dynamic_soft_margin": lambda: losses.DynamicSoftMarginLoss(
            num_bins=512, distance=distances.LpDistance()
        ),
    }[name]()
    if name in OF_CLASSES:
        loss_fn.W = torch.nn.Parameter(torch.tensor(np.asarray(params).T.copy()))

    def once(rows, targets):
        if name == "dynamic_soft_margin":  # a second step fails with its own of the first
            loss_fn.hist_ = torch.zeros(512)
        return loss_fn(rows, targets)

    return triplets.in_torch(once, x, labels, "cpu")


def measure(name, peer, rounds):
    """Seconds of every round, of ours and of the peer, which take turns."""
    runs = {"ours": ours(name), "peer": theirs(name) if peer == "theirs" else ours(peer)}
    repeats = {}
    for who, run in runs.items():
        triplets.seconds(run, 1)  # compiles
        repeats[who] = max(1, min(50, int(0.05 / triplets.seconds(run, 1))))
    times = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            times[who].append(triplets.seconds(run, repeats[who]))
    return times


def row(name, peer, rounds):
    times = measure(name, peer, rounds)
    ratios = [a / b for a, b in zip(times["peer"], times["ours"], strict=True)]
    return {
        "loss": name,
        "peer": peer,
        "ours_ms": 1e3 * statistics.median(times["ours"]),
        "peer_ms": 1e3 * statistics.median(times["peer"]),
        "peer_over_ours": [min(ratios), statistics.median(ratios), max(ratios)],
    }


def table(rows, machine):
    version = importlib.metadata.version("pytorch-metric-learning")
    lines = [
        f"Loss, counts and gradient on a {machine}; jax {jax.__version__}; float32, N = {N:,}, "
        f"D = {triplets.DIM}, {CLASSES:,}",
        "classes for the classifiers, groups of eight rows for the others. Made by `python",
        "experiments/benchmarks/losses.py`. Milliseconds are medians; ratios are taken round by",
        "round (median, and from least to most). The two of a line took turns. PML is PyTorch",
        f"Metric Learning {version}, which counts no triplets; where it has no such loss, the peer",
        "is another one of ours.",
        "",
        "| loss | ours, ms | peer | peer, ms | peer / ours |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        least, middle, most = r["peer_over_ours"]
        peer = "PML" if r["peer"] == "theirs" else f"our {r['peer']}"
        lines.append(
            f"| {r['loss']} | {r['ours_ms']:.4g} | {peer} | {r['peer_ms']:.4g} | "
            f"{middle:.3g} ({least:.3g}–{most:.3g}) |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default=triplets.machine_name(), help="how it is named")
    parser.add_argument("--only", nargs="+", default=list(LOSSES), help="print these, keep none")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        rows.append(row(name, LOSSES[name][1], arguments.rounds))
        print(table(rows, arguments.machine).splitlines()[-1], flush=True)
    if arguments.only == list(LOSSES):
        out = triplets.RESULTS / "losses.md"
        out.write_text(table(rows, arguments.machine), encoding="utf-8")
        record = {"machine": arguments.machine, "jax": jax.__version__, "rows": rows}
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

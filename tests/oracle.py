"""Batch-all triplet loss in plain loops and float64, written from the definitions; figures too.

It shares no code and no trick with the library: each distance looks at one pair of vectors, every
triplet is visited, and gradients are added up triplet by triplet.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

# Each returns d(x, y) and its gradients with respect to x and to y. At d = 0 the gradient is 0.


def euclidean(x, y):
    difference = x - y
    d = math.sqrt(sum(v * v for v in difference))
    slope = difference / d if d > 0 else np.zeros_like(x)
    return d, slope, -slope


def squared_euclidean(x, y):
    difference = x - y
    return sum(v * v for v in difference), 2 * difference, -2 * difference


def cosine(x, y):
    nx, ny = math.sqrt(sum(v * v for v in x)), math.sqrt(sum(v * v for v in y))
    similarity = sum(a * b for a, b in zip(x, y, strict=True)) / (nx * ny)
    to_x = similarity * x / nx**2 - y / (nx * ny)
    to_y = similarity * y / ny**2 - x / (nx * ny)
    return 1 - similarity, to_x, to_y


def manhattan(x, y):
    slope = np.sign(x - y)
    return sum(abs(v) for v in x - y), slope, -slope


def chebyshev(x, y):
    size = np.abs(x - y)
    largest = size == max(size)  # coordinates that tie share the gradient
    slope = np.sign(x - y) * largest / sum(largest)
    return max(size), slope, -slope


def lopsided(x, y):
    """Shows which side is the anchor, d(x, y) ≠ d(y, x), and that a row is no pair with itself."""
    difference = x - 2 * y
    return sum(v * v for v in difference), 2 * difference, -4 * difference


def shadow(x, y):
    """The shadow of y on the axis of x, as far as it falls from x."""
    length = math.sqrt(sum(v * v for v in x))
    if length == 0:
        return 0.0, np.zeros_like(x), np.zeros_like(y)
    axis = x / length
    along = sum(a * b for a, b in zip(axis, y, strict=True))
    sign = np.sign(length - along)
    return abs(length - along), sign * (axis - (y - along * axis) / length), -sign * axis


DISTANCES = {
    f.__name__: f
    for f in (euclidean, squared_euclidean, cosine, manhattan, chebyshev, lopsided, shadow)
}


@dataclass(frozen=True)
class Answer:
    """Everything that can be said of a batch; arrays are per anchor, in the order of the batch."""

    loss: float
    to_embeddings: np.ndarray
    to_references: np.ndarray | None
    to_margin: float | np.ndarray  # as the margin: one, or one an anchor
    easy: np.ndarray
    semihard: np.ndarray
    hard: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    sum_ap: np.ndarray
    sum_an: np.ndarray
    sum_ap_squared: np.ndarray
    sum_an_squared: np.ndarray
    ap: list[float]  # d(a,p) of every positive pair
    an: list[float]  # d(a,n) of every negative pair
    effective: list[float]  # d(a,n) − d(a,p) of every valid triplet, without the swap

    @property
    def counts(self) -> dict[str, int]:
        kinds = {"easy": self.easy, "semihard": self.semihard, "hard": self.hard}
        return {"valid": len(self.effective)} | {k: int(v.sum()) for k, v in kinds.items()}


def batch_all(
    embeddings,
    labels,
    margin,
    *,
    distance="euclidean",
    reduction="mean_active",
    mining="all",
    where=None,
    references=None,
    reference_labels=None,
    reference_where=None,
    swap=False,
    soft=False,
) -> Answer:
    x = np.asarray(embeddings, np.float64)
    y = x if references is None else np.asarray(references, np.float64)
    x_labels = [int(label) for label in labels]
    y_labels = x_labels if references is None else [int(label) for label in reference_labels]
    x_real = [True] * len(x) if where is None else list(where)
    y_real = [True] * len(y) if reference_where is None else list(reference_where)
    if references is None:
        y_real = x_real
    measure = DISTANCES[distance]

    names = ("easy", "semihard", "hard", "positives", "negatives")
    count = {name: np.zeros(len(x), np.int64) for name in names}
    sums = {name: np.zeros(len(x)) for name in ("ap", "an", "ap_squared", "an_squared")}
    pairs = {"ap": [], "an": []}
    margins = np.broadcast_to(margin, len(x))  # one for all, or for each anchor its own
    effective, losses, slopes = [], [], np.zeros(len(x))
    to_x, to_y = np.zeros_like(x), np.zeros_like(y)

    for a in range(len(x)):
        if not x_real[a]:
            continue
        others = [j for j in range(len(y)) if y_real[j] and not (references is None and j == a)]
        positives = [j for j in others if y_labels[j] == x_labels[a]]
        negatives = [j for j in others if y_labels[j] != x_labels[a]]
        to = {j: measure(x[a], y[j]) for j in others}
        count["positives"][a], count["negatives"][a] = len(positives), len(negatives)
        for name, group in (("ap", positives), ("an", negatives)):
            pairs[name] += [to[j][0] for j in group]
            sums[name][a] = sum(to[j][0] for j in group)
            sums[f"{name}_squared"][a] = sum(to[j][0] ** 2 for j in group)
        hardest = None
        if mining == "batch_hard" and positives and negatives:  # the first of equals, by label
            negatives.sort(key=lambda j: y_labels[j])
            hardest = (
                max(positives, key=lambda j: to[j][0]),
                min(negatives, key=lambda j: to[j][0]),
            )
        for p in positives:
            for n in negatives:
                (d_ap, ap_to_a, ap_to_p), (d_an, an_to_a, an_to_n) = to[p], to[n]
                effective.append(d_an - d_ap)
                an_to_p = np.zeros_like(an_to_a)
                if swap and measure(y[p], y[n])[0] < d_an:
                    d_an, an_to_p, an_to_n = measure(y[p], y[n])
                    an_to_a = np.zeros_like(an_to_a)
                reach = d_ap + margins[a]
                kind = "easy" if d_an >= reach else "semihard" if d_an > d_ap else "hard"
                count[kind][a] += 1
                chosen = mining == "all" or (p, n) == hardest
                if mining == kind or (chosen and (soft or kind != "easy")):
                    violation = d_ap - d_an + margins[a]
                    losses.append(math.log1p(math.exp(violation)) if soft else violation)
                    slope = 1 / (1 + math.exp(-violation)) if soft else 1
                    slopes[a] += slope
                    to_x[a] += slope * (ap_to_a - an_to_a)
                    to_y[p] += slope * (ap_to_p - an_to_p)
                    to_y[n] -= slope * an_to_n

    all_there_are = len(effective)
    if mining == "batch_hard":
        all_there_are = np.count_nonzero(count["positives"] * count["negatives"])
    over = {"mean_active": len(losses), "mean": all_there_are, "sum": 1}[reduction] or 1
    return Answer(
        loss=sum(losses) / over,
        to_embeddings=(to_x + to_y if references is None else to_x) / over,
        to_references=None if references is None else to_y / over,
        to_margin=(slopes if np.ndim(margin) else sum(slopes)) / over,
        **count,
        **{f"sum_{name}": value for name, value in sums.items()},
        **pairs,
        effective=effective,
    )


def auc(distances, same):
    """P(a same pair is nearer than a different pair), ties one half."""
    different = distances[~same]
    wins = sum(np.sum(d < different) + 0.5 * np.sum(d == different) for d in distances[same])
    return wins / (np.sum(same) * np.sum(~same))


def roc(distances, same):
    """FPR, TPR and threshold: at no threshold, and at each distinct distance."""
    points = [(0.0, 0.0, -np.inf)]
    for threshold in sorted(set(distances.tolist())):
        called = distances <= threshold
        points.append((np.mean(called[~same]), np.mean(called[same]), threshold))
    return points


def eer(distances, same):
    """Walks the joined points until FPR + TPR = 1."""
    points = roc(distances, same)
    for (f0, t0, _), (f1, t1, _) in itertools.pairwise(points):
        if f1 + t1 >= 1:
            part = (1 - f0 - t0) / ((f1 + t1) - (f0 + t0))
            return f0 + part * (f1 - f0)
    raise AssertionError("the ROC ends at (1, 1)")


def retrieval(x, labels, distance, ks):
    """(recall by k, MAP@R, R-precision) of every row with another of its label, a loop a word."""
    recall, average_precisions, r_precisions = {k: [] for k in ks}, [], []
    for q in range(len(x)):
        others = [i for i in range(len(x)) if i != q]
        r = sum(labels[i] == labels[q] for i in others)
        if r == 0:
            continue
        ranked = sorted(others, key=lambda i: (DISTANCES[distance](x[q], x[i])[0], i))
        right = [labels[i] == labels[q] for i in ranked]
        for k in ks:
            recall[k].append(any(right[:k]))
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(r) if right[i]]
        average_precisions.append(sum(precisions) / r)
        r_precisions.append(sum(right[:r]) / r)
    recall = {k: np.mean(v) for k, v in recall.items()}
    return recall, np.mean(average_precisions), np.mean(r_precisions)


# Losses other than triplets: their values only; gradients are slopes of them.


def slope(value, x, step=1e-6):
    """The gradient of a float64 function, by central differences."""
    x = np.asarray(x, np.float64)
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        found[index] = (value(up) - value(down)) / (2 * step)
    return found


def cosine_similarity(x, y):
    nx, ny = math.sqrt(sum(v * v for v in x)), math.sqrt(sum(v * v for v in y))
    return 0.0 if nx * ny == 0 else sum(a * b for a, b in zip(x, y, strict=True)) / (nx * ny)


def classifier(
    proxies, x, labels, margin_of, *, angular, scale, where=None, bias=None, weights=None
):
    """(loss, counts) of ArcFace, CosFace and the balancing margin.

    `margin_of(label, cosines)` is the margin of a row, an angle or a difference of cosines; `bias`
    is added to each class's logit, `weights` are those of the classes.
    """
    classes = range(len(proxies))
    counts = dict.fromkeys(("valid", "easy", "semihard", "hard"), 0)
    total = weight = 0.0
    for i, y in enumerate(labels):
        if where is not None and not where[i]:
            continue
        cosines = [cosine_similarity(x[i], proxies[j]) for j in classes]
        m = margin_of(y, cosines)
        target = cosines[y] - m
        if angular:
            angle = math.acos(max(-1, min(1, cosines[y])))
            target = math.cos(angle + m) if angle + m <= math.pi else cosines[y] - m * math.sin(m)
        logits = [scale * (target if j == y else cosines[j]) for j in classes]
        logits = [z + (0 if bias is None else bias[j]) for j, z in enumerate(logits)]
        w = 1 if weights is None else weights[y]
        total += w * (math.log(sum(math.exp(z - max(logits)) for z in logits)) + max(logits))
        total -= w * logits[y]
        weight += w
        for j in classes:
            if j != y:
                easy, hard = target >= cosines[j], cosines[j] >= cosines[y]
                counts["easy" if easy else "hard" if hard else "semihard"] += 1
                counts["valid"] += 1
    return total / (weight or 1), counts


def supcon(x, labels, *, temperature, where=None):
    rows = [i for i in range(len(x)) if where is None or where[i]]
    losses = []
    for i in rows:
        others = [k for k in rows if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        if not positives or len(positives) == len(others):
            continue
        s = {k: cosine_similarity(x[i], x[k]) / temperature for k in others}
        log_all = math.log(sum(math.exp(v) for v in s.values()))
        losses.append(-sum(s[p] - log_all for p in positives) / len(positives))
    return sum(losses) / (len(losses) or 1)


def fisher_triplets(f_a, f_p, f_n, kernel, margin, *, lam, eps, kind):
    """FDT and FDC of given triplets as the authors have them: scatter matrices, summed."""
    size = len(kernel)
    s_w, s_b = eps * np.eye(size), eps * np.eye(size)
    for a, p, n in zip(f_a, f_p, f_n, strict=True):
        s_w += np.outer(a - p, a - p)
        s_b += np.outer(a - n, a - n)
    w, b = np.trace(kernel.T @ s_w @ kernel), np.trace(kernel.T @ s_b @ kernel)
    if kind == "triplet":
        return max(0, margin + (2 - lam) * w - lam * b)
    return (2 - lam) * w + max(0, margin - lam * b)


def fisher(x, labels, margin, *, lam, kind, where=None):
    """(loss, counts) of a batch, by all of its pairs and triplets."""
    rows = [i for i in range(len(x)) if where is None or where[i]]
    d = {(i, j): sum((x[i] - x[j]) ** 2) for i in rows for j in rows if i != j}
    within = [v for (i, j), v in d.items() if labels[i] == labels[j]]
    between = [v for (i, j), v in d.items() if labels[i] != labels[j]]
    counts = dict.fromkeys(("valid", "easy", "semihard", "hard"), 0)
    for (a, p), d_ap in d.items():
        for n in rows:
            if labels[a] == labels[p] != labels[n]:
                effective = lam * d[a, n] - (2 - lam) * d_ap
                easy, hard = effective >= margin, effective <= 0
                counts["easy" if easy else "hard" if hard else "semihard"] += 1
                counts["valid"] += 1
    if not counts["valid"]:
        return 0.0, counts
    pull, push = (2 - lam) * np.mean(within), lam * np.mean(between)
    if kind == "triplet":
        return max(0, margin + pull - push), counts
    return pull + max(0, margin - push), counts


def dynamic_soft_margin(x, labels, histogram, *, momentum, where=None, weights=None):
    """(loss, histogram, weights): F of every triplet, unless it is given."""
    rows = [i for i in range(len(x)) if where is None or where[i]]
    unit = {i: x[i] / math.sqrt(sum(x[i] ** 2)) for i in rows}
    differences = [
        euclidean(unit[a], unit[p])[0] - euclidean(unit[a], unit[n])[0]
        for a in rows
        for p in rows
        for n in rows
        if a != p and labels[a] == labels[p] != labels[n]
    ]
    width = 4 / (len(histogram) - 1)
    batch = np.zeros(len(histogram))
    for v in differences:
        low = math.floor((v + 2) / width)
        share = (v + 2) / width - low
        batch[low] += (1 - share) / len(differences)
        batch[low + 1] += share / len(differences)
    momentum = momentum if sum(histogram) else 1
    after = (1 - momentum) * histogram + momentum * batch
    if weights is None:
        weights = [sum(after[: math.floor((v + 2) / width) + 1]) for v in differences]
    terms = [w * v for w, v in zip(weights, differences, strict=True)]
    return sum(terms) / len(terms), after, weights

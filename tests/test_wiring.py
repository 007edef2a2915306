"""What joins the parts: a small run, computed again from its folder by plain loops.

Nothing of the package's evaluation, loss, optimisers or schedules is used: only what draws batches
and pairs, functions of the seed. The data are made so that whatever is mixed up shows:

- the parts are told apart by their brightness and contrast, so no figure of one is that of another;
- the network is one angle, which training turns from 0.1 to 1.2 and beyond. Who validates is best
  told apart at 0.6, on the way, and who is tested later: so the best epoch is in the middle, and it
  would be another by the test.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn

import margin_jax as mj
from margin_jax.data.pairs import Pairs, sample_pairs
from margin_jax.runs.evaluate import Embedded, evaluate_all_pairs, evaluate_retrieval, evaluate_run

TIMING = ("seconds", "images_per_second", "data_wait")
# Identities and images of each, brightness, contrast, spread, and the angle that tells them apart.
PARTS = {
    "train": (10, 5, 70, 0.5, 6, 1.4),
    "validation": (3, 8, 110, 0.4, 18, 0.7),
    "test": (4, 20, 150, 1.0, 10, 1.1),
}


class Turn(nn.Module):
    """Turns two pixels, and makes the second one count little."""

    @nn.compact
    def __call__(self, x, *, train):
        angle = self.param("angle", lambda key: jnp.float32(0.1))
        u, v = x.reshape(len(x), 2).T
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.stack([cos * u + sin * v, 0.2 * (cos * v - sin * u)], axis=1)


def turned(x, angle):
    """The embeddings of :class:`Turn`, and their derivative by the angle."""
    (u, v), sin, cos = x.T, np.sin(angle), np.cos(angle)
    y = np.stack([cos * u + sin * v, 0.2 * (cos * v - sin * u)], axis=1)
    return y, np.stack([cos * v - sin * u, -0.2 * (cos * u + sin * v)], axis=1)


def people(seed=0):
    """Images [n, 1, 2, 1], in an order that says nothing, names, and parts."""
    rng = np.random.default_rng(seed)
    pixels, names = [], []
    for part, (identities, images, brightness, contrast, spread, angle) in PARTS.items():
        for i, place in enumerate(np.linspace(-1, 1, identities)):
            along = 60 * place + spread * rng.normal(size=images)
            across = 25 * rng.normal(size=images)
            u = np.cos(angle) * along - np.sin(angle) * across
            v = np.sin(angle) * along + np.cos(angle) * across
            pixels.append(brightness + contrast * np.stack([u, v], axis=1))
            names += [f"{part} {i}"] * images
    order = rng.permutation(len(names))
    images = np.clip(np.concatenate(pixels), 0, 255).astype(np.uint8)[order]
    names = np.array(names)[order]
    dataset = mj.Dataset.from_arrays(images.reshape(-1, 1, 2, 1), names)
    alike = [identity in ("test 1", "test 2") for identity in dataset.identities]
    groups = np.where(alike, len(alike), np.arange(len(alike))).astype(np.int32)
    return dataclasses.replace(dataset, groups=groups), names


ENCODER = mj.Encoder(Turn())
CASES = {
    "auc": {"schedule": "dams:margin=0.2,threshold=0.55,increase=0.05", "mining": "all,4:semihard"},
    "loss": {
        "schedule": "dams:margin=0.3,threshold=0.5,increase=0.05",
        "distance": "manhattan",
        "reduction": "mean",
        "learning_rate_schedule": "exponential",
        "learning_rate": 0.095,
        "seed": 1,
    },
}


def train(out, dataset, on_epoch=None, **options):
    split = out.parent / "split.json"
    parts = {part: [name for name in dataset.identities if name.startswith(part)] for part in PARTS}
    split.write_text(json.dumps(parts))
    options = {"epochs": 6, "learning_rate": 0.04, **options}
    config = mj.TrainConfig(
        dataset="own",
        encoder="own",
        identities_per_batch=4,
        images_per_identity=2,
        split=str(split),
        out=str(out),
        **options,
    )
    return mj.fit(config, dataset=dataset, encoder=ENCODER, on_epoch=on_epoch)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("wiring") / "run"
    train(folder, people()[0], select=request.param, **CASES[request.param])
    return folder


def read(folder):
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return (
        json.loads((folder / "config.json").read_text()),
        history,
        json.loads((folder / "report.json").read_text()),
    )


def normalised(names):
    """Images as the network has them: by the mean and the spread of those of the training."""
    values = people()[0].examples.reshape(-1, 2) / 255.0
    own = values[[name.startswith("train") for name in names]]
    return (values - own.mean()) / own.std(), own.mean(), own.std()


def timeless(run, validated=True):
    left_out = (*TIMING, *(() if validated else ("validation_auc", "validation_loss")))
    return [{k: v for k, v in record.items() if k not in left_out} for record in run.history]


def rows_of(part, names):
    return np.flatnonzero([name.startswith(part) for name in names])


def numbered(names):
    return np.unique(names, return_inverse=True)[1]


def distances_of(y, rows, distance):
    norm = {"euclidean": lambda d: np.sqrt((d**2).sum()), "manhattan": lambda d: np.abs(d).sum()}
    return np.array([norm[distance](y[a] - y[b]) for a, b in rows])


def trained_again(config, x, names):
    """The angle after every epoch, and every record, by the oracle's gradient and Adam's rule."""
    rows, labels = rows_of("train", names), numbered(names)
    name, _, values = config["schedule"].partition(":")
    assert name == "dams"
    rule = {key: np.float32(value) for key, value in (v.split("=") for v in values.split(","))}
    margin, angle, m, v, t, total = rule["margin"], 0.1, 0.0, 0.0, 0, 0
    angles, records = [], []
    for epoch in range(config["epochs"]):
        plan, _ = mj.pk_batches(labels[rows], 4, 2, seed=config["seed"], epoch=epoch)
        total = total or len(plan) * config["epochs"]  # steps, as the first epoch promises
        mining = "semihard" if ":" in config["mining"] and epoch >= 3 else "all"
        answers, norms = [], []
        for batch in rows[plan]:
            y, slope = turned(x[batch], angle)
            answer = oracle.batch_all(
                y,
                labels[batch],
                float(margin),
                distance=config["distance"],
                reduction=config["reduction"],
                mining=mining,
            )
            gradient = float(np.sum(answer.to_embeddings * slope))
            t += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            rate = config["learning_rate"]
            if config["learning_rate_schedule"] == "exponential":
                rate *= 0.01 ** ((min(t, total) - 1) / (total - 1))
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            angle -= rate * step
            answers.append(answer)
            norms.append(abs(gradient))
        counts = {name: sum(a.counts[name] for a in answers) for name in answers[0].counts}
        effective = np.concatenate([a.effective for a in answers])
        easy = counts["easy"] / counts["valid"]
        following = margin + rule["increase"] * np.float32(np.float32(easy) >= rule["threshold"])
        records.append(
            {
                "epoch": epoch + 1,
                "margin": float(margin),
                "next_margin": float(following),
                "loss": np.mean([a.loss for a in answers]),
                "gradient_norm": np.mean(norms),
                **counts,
                "easy_fraction": easy,
                "mean_ap": np.concatenate([a.ap for a in answers]).mean(),
                "mean_an": np.concatenate([a.an for a in answers]).mean(),
                "mean_effective": effective.mean(),
                "std_effective": effective.std(),
                "effective_quantiles": None,
                "steps": len(plan),
                "images": plan.size,
                "collapsed": False,
                "memory": None,
                "idle_steps": sum(a.loss == 0 for a in answers),
            }
        )
        angles.append(angle)
        margin = following
    return angles, records


def validated_again(config, x, names, pairs, angle):
    """The figures of an epoch on those who validate: of their pairs, and of batches of them."""
    y, _ = turned(x, angle)
    distances = distances_of(y, pairs["validation_rows"], config["distance"])
    rows, labels = rows_of("validation", names), numbered(names)
    # No more identities than there are; the released code's loss has a margin of 1, whatever ours.
    plan, _ = mj.pk_batches(labels[rows], 3, 2, seed=config["seed"], epoch=0)
    losses = [
        oracle.batch_all(
            y[batch], labels[batch], 1.0, distance=config["distance"], reduction="mean"
        ).loss
        for batch in rows[plan]
    ]
    return {
        "validation_auc": oracle.auc(distances, pairs["validation_same"]),
        "validation_loss": np.mean(losses),
    }


def figures_again(vectors, pairs, distance):
    """All figures of each set of pairs, at the threshold of the validation pairs."""
    measured = {
        name: (distances_of(vectors, pairs[f"{name}_rows"], distance), pairs[f"{name}_same"])
        for name in ("validation", "test", "published", "hard")
    }
    points = oracle.roc(*measured["validation"])[1:]
    threshold = min(points, key=lambda point: (point[0] ** 2 + (1 - point[1]) ** 2, point[2]))[2]
    found = {}
    for name, (distances, same) in measured.items():
        different = int(np.sum(~same))
        found[name] = {
            "auc": oracle.auc(distances, same),
            "eer": oracle.eer(distances, same),
            "threshold": threshold,
            "accuracy": np.mean((distances <= threshold) == same),
            "tpr_at_fpr": {
                text: max(tpr for fpr, tpr, _ in oracle.roc(distances, same) if fpr <= rate)
                for text, rate in (("0.01", 0.01), ("0.001", 0.001))
            },
            "same_pairs": int(np.sum(same)),
            "different_pairs": different,
            "fmr": np.mean(distances[~same] <= threshold),
            "fnmr": np.mean(distances[same] > threshold),
            # Of what is tested also that so few identities give no intervals.
            "warnings": 1 + (different < 1_000) + (name != "validation"),
        }
    return found


def assert_figures(reported, expected):
    assert {*expected} <= {*reported}
    for name, value in expected.items():
        told = len(reported[name]) if name == "warnings" else reported[name]
        # In float32 a pair or two may come before another.
        rates = ("tpr_at_fpr", "accuracy", "eer", "fmr", "fnmr")
        pairs = 2 / expected["same_pairs"] if name in rates else 1e-6
        assert told == pytest.approx(value, rel=1e-4, abs=pairs), name


def test_a_run_is_what_plain_loops_make_of_its_folder(case):
    config, history, report = read(case)
    _, names = people()
    with np.load(case / "pairs.npz") as saved:
        pairs = dict(saved)
    x, mean, std = normalised(names)

    # Who is in which part, and which pairs are the same.
    data = json.loads((case / "data.json").read_text())
    for part in PARTS:
        assert {*data["identities"][part]} == {*names[rows_of(part, names)]}
    rows, labels = rows_of("train", names), numbered(names)
    first, _ = mj.pk_batches(labels[rows], 4, 2, seed=config["seed"], epoch=0)
    used = len(np.unique(first))
    left = {"images": len(rows), "used": used, "small": 0, "left": len(rows) - used, "repeated": 0}
    assert data["coverage"] == left
    assert (data["examples"], data["example_shape"]) == (len(names), [1, 2, 1])
    assert "files" not in pairs, "rows of an array need no names"
    for name in ("validation", "test", "published", "hard"):
        part = "validation" if name == "validation" else "test"
        of = names[pairs[f"{name}_rows"]]
        assert np.all(np.char.startswith(of, part)), name
        np.testing.assert_array_equal(of[:, 0] == of[:, 1], pairs[f"{name}_same"])
        assert len(np.unique(np.sort(pairs[f"{name}_rows"]), axis=0)) == len(of)
        rows, count = rows_of(part, names), 1_000 if name == "published" else 100_000
        drawn = sample_pairs(numbered(names)[rows], count, seed=config["seed"])
        assert name == "hard" or np.array_equal(rows[drawn.rows], pairs[f"{name}_rows"])
    assert {*names[pairs["hard_rows"]].ravel()} == {"test 1", "test 2"}
    sizes = {name: len(pairs[f"{name}_same"]) for name in ("validation", "test", "published")}
    assert sizes == {"validation": 2 * 3 * 28, "test": 2 * 4 * 190, "published": 1_000}

    # Every epoch, and the best one.
    angles, records = trained_again(config, x, names)
    assert len(history) == len(records) == config["epochs"]
    for record, expected, angle in zip(history, records, angles, strict=True):
        expected |= validated_again(config, x, names, pairs, angle)
        assert {*record} - {*TIMING} == {*expected}
        for name, value in expected.items():
            wanted = value if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)
            assert record[name] == wanted, (expected["epoch"], name)
    if config["select"] == "auc":
        best = 1 + int(np.argmax([record["validation_auc"] for record in records]))
    else:
        best = 1 + int(np.argmin([record["validation_loss"] for record in records]))
    assert 1 < best < config["epochs"], "the best epoch is to be in the middle"
    assert report["best_epoch"] == best
    assert report["epochs"] == config["epochs"]
    assert report["margin"] == history[best - 1]["margin"]
    assert history[0]["margin"] < report["margin"] < history[-1]["margin"]

    # Its weights, and the normalisation that goes with them.
    run = mj.load_run(case, encoder=ENCODER)
    assert run.params["angle"] == pytest.approx(angles[best - 1], rel=1e-3)
    assert run.batch_stats["mean"] == pytest.approx([mean], rel=1e-5)
    assert run.batch_stats["std"] == pytest.approx([std], rel=1e-5)
    vectors, _ = turned(x, angles[best - 1])
    np.testing.assert_allclose(run.embed(people()[0].examples), vectors, rtol=1e-2, atol=2e-3)

    # What they are worth on the test, and what the pixels are.
    ours = figures_again(vectors, pairs, config["distance"])
    raw = figures_again(people()[0].examples.reshape(-1, 2).astype(float), pairs, "euclidean")
    assert_figures(report["validation"], ours["validation"])
    for told, figures in ((report["test"], ours), (report["test"]["raw"], raw)):
        assert_figures(told, figures["test"])
        assert_figures(told["published"], figures["published"])
        assert_figures(told["hard"], figures["hard"])


def test_a_run_is_used_with_its_own_distance_and_threshold(case):
    """Pairs of images, all pairs and retrieval, of the embeddings that the run makes."""
    config, _, report = read(case)
    dataset, names = people()
    run = mj.load_run(case, encoder=ENCODER)
    rows, labels = rows_of("test", names), numbered(names)
    vectors = run.embed(dataset.examples)
    with np.load(case / "pairs.npz") as saved:
        pairs, same = saved["test_rows"], saved["test_same"]
    expected = distances_of(vectors, pairs, config["distance"])
    np.testing.assert_allclose(run.distances(dataset.examples, pairs), expected, atol=2e-3)

    embedded = Embedded(vectors, labels, dataset, np.arange(len(labels)), Pairs(pairs, same))
    assert evaluate_run(run, embedded).to_json().items() <= report["test"].items()
    tested = Embedded(vectors[rows], labels[rows], dataset, rows)
    every = np.stack(np.triu_indices(len(rows), 1), axis=1)
    distances = distances_of(tested.vectors, every, config["distance"])
    alike = tested.labels[every[:, 0]] == tested.labels[every[:, 1]]
    found = evaluate_all_pairs(run, tested)
    right = np.mean((distances <= report["test"]["threshold"]) == alike)
    assert found.accuracy == pytest.approx(right, abs=1e-3)
    assert found.auc == pytest.approx(oracle.auc(distances, alike), abs=1e-4)
    some = np.arange(0, len(rows), 3)
    few = Embedded(tested.vectors[some], tested.labels[some], dataset, rows[some])
    recall, map_at_r, _ = oracle.retrieval(
        few.vectors.astype(float), few.labels, config["distance"], (1, 2, 4, 8)
    )
    retrieved = evaluate_retrieval(run, few)
    assert retrieved.recall_at == pytest.approx(recall)
    assert retrieved.map_at_r == pytest.approx(map_at_r)


def test_the_data_tell_apart_what_could_be_mixed_up(case):
    """Or the test above would let it by."""
    config, history, report = read(case)
    dataset, names = people()
    with np.load(case / "pairs.npz") as saved:
        pairs = dict(saved)
    x, mean, std = normalised(names)
    angles, _ = trained_again(config, x, names)
    everything = dataset.examples / 255.0
    assert everything.mean() - mean > 0.1
    assert everything.std() - std > 0.05

    def measured(angle, name):
        distances = distances_of(turned(x, angle)[0], pairs[f"{name}_rows"], config["distance"])
        points = oracle.roc(distances, pairs[f"{name}_same"])[1:]
        nearest = min(points, key=lambda p: (p[0] ** 2 + (1 - p[1]) ** 2, p[2]))[2]
        return oracle.auc(distances, pairs[f"{name}_same"]), nearest

    best = report["best_epoch"]
    tested = [measured(angle, "test")[0] for angle in angles]
    assert 1 + int(np.argmax(tested)) != best
    thresholds = [
        measured(angles[best - 1], "test")[1],
        measured(angles[-1], "validation")[1],
        measured(angles[0], "validation")[1],
    ]
    for other in thresholds:
        assert abs(other / report["test"]["threshold"] - 1) > 0.01
    assert abs(tested[best - 1] - report["validation"]["auc"]) > 0.01
    assert abs(tested[best - 1] - tested[-1]) > 0.005
    assert len({record["margin"] for record in history}) >= 3


def test_the_test_images_decide_nothing_but_the_figures_of_the_test(tmp_path, no_pictures):
    """Of who is tested, nothing reaches the normalisation, training, choice or threshold."""
    dataset, names = people()
    tested = np.array([name.startswith("test") for name in names])
    images = dataset.examples.copy()
    images[tested] = 255 - images[tested][::-1] // 2
    (tmp_path / "other").mkdir()
    runs = [
        train(tmp_path / "run", dataset),
        train(tmp_path / "other" / "run", dataclasses.replace(dataset, examples=images)),
    ]
    one, other = runs
    assert timeless(one) == timeless(other)
    assert float(one.params["angle"]) == float(other.params["angle"])
    for name in ("mean", "std"):
        np.testing.assert_array_equal(one.batch_stats[name], other.batch_stats[name])
    for name in ("best_epoch", "margin", "validation"):
        assert one.report[name] == other.report[name]
    assert one.threshold == other.threshold
    assert one.report["test"]["auc"] != other.report["test"]["auc"]


def test_the_validation_images_decide_nothing_but_the_choice(tmp_path, no_pictures):
    dataset, names = people()
    images = dataset.examples.copy()
    validating = np.array([name.startswith("validation") for name in names])
    images[validating] = 255 - images[validating][::-1] // 2
    (tmp_path / "other").mkdir()
    one = train(tmp_path / "run", dataset)
    other = train(tmp_path / "other" / "run", dataclasses.replace(dataset, examples=images))
    assert timeless(one, validated=False) == timeless(other, validated=False)
    assert timeless(one) != timeless(other)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(one.batch_stats[name], other.batch_stats[name])


class Killed(BaseException):
    """Like a signal."""


def test_a_run_that_goes_on_after_its_best_epoch_still_has_it(case, tmp_path, no_pictures):
    config, _, report = read(case)
    options = {"select": config["select"], **CASES[config["select"]]}

    def kill(record):
        if record["epoch"] == report["best_epoch"] + 1:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "run", people()[0], on_epoch=kill, **options)
    run = train(tmp_path / "run", people()[0], resume=True, **options)
    assert len(run.history) == config["epochs"] > report["best_epoch"] + 1
    whole = mj.load_run(case, encoder=ENCODER)
    assert timeless(run) == timeless(whole)
    assert run.report == whole.report
    assert run.params["angle"] == whole.params["angle"]
    again = mj.load_run(tmp_path / "run", encoder=ENCODER)
    assert again.params["angle"] == whole.params["angle"]

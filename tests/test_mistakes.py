"""Mistakes: against loops over all pairs, and the folder that `evaluate --mistakes` leaves."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.evaluation import blocks
from margin_jax.evaluation.mistakes import find_mistakes
from margin_jax.plots.map import plot_map, principal_components
from margin_jax.runs import mistakes as runs_mistakes
from margin_jax.runs.evaluate import embed_identities

pytestmark = pytest.mark.usefixtures("no_pictures")


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return error.value.code or 0, shown.out, shown.err


@pytest.mark.parametrize("tile", [2**22, 60])
@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_mistakes_are_those_of_loops(tile, distance, monkeypatch):
    monkeypatch.setattr(blocks, "TILE", tile)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(23, 3)), np.array([*rng.integers(0, 5, 22), 9])
    apart = np.array([[np.linalg.norm(a - b, 1 + (distance[0] == "e")) for b in x] for a in x])
    middle = np.unique(apart)[[130, 131]]
    threshold = float(middle.mean())  # no rounding decides
    found = find_mistakes(x, labels, threshold=threshold, distance=distance)
    for i in range(23):
        others = [j for j in range(23) if labels[j] != labels[i]]
        same = [j for j in range(23) if labels[j] == labels[i] and j != i]
        assert found.nearest[i] == min(others, key=lambda j: apart[i, j])
        assert found.farthest[i] == max(same, key=lambda j: apart[i, j], default=-1)
        assert found.false_matches[i] == sum(apart[i, j] <= threshold for j in others)
        assert found.false_non_matches[i] == sum(apart[i, j] > threshold for j in same)
        assert found.nearest_distance[i] == pytest.approx(apart[i, found.nearest[i]], rel=1e-5)
    assert np.isneginf(found.farthest_distance[22])


def test_the_worst_come_first_and_an_image_once():
    x = np.array([[0.0], [1.0], [2.5], [9.0], [9.1], [20.0]])
    labels = np.array([0, 1, 2, 0, 1, 2])
    found = find_mistakes(x, labels, threshold=2.0)
    # 1 to 2.5 are 1.5 apart, but 1 was shown with 0.
    worst = found.worst_false_matches(10)
    assert [pair[1:] for pair in worst] == [(3, 4), (0, 1)]
    np.testing.assert_allclose([pair[0] for pair in worst], [0.1, 1.0], atol=1e-4)
    assert found.worst_false_matches(1) == worst[:1]
    worst = found.worst_false_non_matches(10)
    assert [pair[1:] for pair in worst] == [(2, 5), (0, 3), (1, 4)]
    np.testing.assert_allclose([pair[0] for pair in worst], [17.5, 9.0, 8.1], rtol=1e-5)
    found = find_mistakes(x, labels, threshold=17.5)  # at most that is the same
    assert found.worst_false_non_matches(10) == []
    found = find_mistakes(x, labels, threshold=0.01)
    assert found.worst_false_matches(10) == []


def test_at_the_threshold_it_is_the_same():
    found = find_mistakes(np.array([[0.0], [1.0], [2.0]]), np.array([0, 0, 1]), threshold=1.0)
    assert found.false_matches.tolist() == [0, 1, 1]
    assert found.false_non_matches.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("x", "threshold", "matches"),
    [
        ([[0], [0.1], [5], [5.1]], 0.1, 0),  # the float32 0.1 is above the float64
        ([[0], [0.1], [5], [5.1]], 0.1000001, 2),
        ([[0], [0], [5], [5.1]], -5e-324, 0),  # what `choose_threshold` finds below 0
    ],
)
def test_a_threshold_between_two_float32(x, threshold, matches):
    found = find_mistakes(np.array(x), np.array([0, 1, 2, 2]), threshold=threshold)
    assert found.false_matches.sum() == matches
    assert len(found.worst_false_matches(4)) == matches // 2
    for exact_up_to in (0, 100):
        report = mj.all_pairs_report(
            np.array(x), np.array([0, 1, 2, 2]), threshold=threshold, exact_up_to=exact_up_to
        )
        assert report.fmr == matches / 2 / 5


@pytest.mark.parametrize(
    ("x", "labels", "threshold", "said"),
    [
        (np.zeros((1, 2)), [0], 1, "need two images; got 1"),
        (np.zeros((3, 2)), [0, 1], 1, "expected embeddings"),
        (np.full((2, 2), np.nan), [0, 1], 1, "embeddings must be finite"),
        (np.array([[3e38, 0], [-3e38, 0]]), [0, 1], 1, "distances must be finite; 2 of 2"),
        (np.zeros((2, 2)), [0, 1], np.nan, "NaN"),
    ],
)
def test_bad_arrays(x, labels, threshold, said):
    with pytest.raises(ValueError, match=said):
        find_mistakes(x, np.array(labels), threshold=threshold)


def test_principal_components_are_the_axes_of_most_variance():
    rng = np.random.default_rng(0)
    x = 50 + rng.normal(size=(200, 4)) * [1.0, 5.0, 0.1, 3.0]
    points, shares = principal_components(x.astype(np.float32))
    centred = x - x.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(centred @ axes[:2].T), atol=1e-4)
    np.testing.assert_allclose(shares, (sizes**2 / np.sum(sizes**2))[:2], rtol=1e-5)
    # An axis points where its largest number does.
    assert np.corrcoef(points[:, 0], x[:, 1])[0, 1] > 0.9
    assert np.corrcoef(points[:, 1], x[:, 3])[0, 1] > 0.9
    points, shares = principal_components(np.ones((3, 1)))
    assert points.shape == (3, 2)
    assert shares.tolist() == [0, 0]


def test_the_map_names_the_largest_identities():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(14), np.arange(14))  # 0 has none
    names = [f"$x_{i}" for i in range(14)]
    figure = plot_map(rng.normal(size=(len(labels), 5)), labels, names)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["3 others", *(f"$x_{i} ({i})" for i in range(13, 3, -1))]
    (axes,) = figure.axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    small = {"max_identities": 60, "epochs": 1, "identities_per_batch": 8, "encoder": "mlp"}
    return mj.fit(mj.TrainConfig(**small, image_size=12, out=str(out)))


def test_a_run_s_mistakes_are_left_in_a_folder(run, tmp_path, capsys):
    folder = tmp_path / "new" / "mistakes"
    status, shown, _ = stopped(capsys, "evaluate", run.path, "--mistakes", folder)
    assert status == 0
    embedded = embed_identities(run)
    x, labels = embedded.vectors, embedded.labels
    apart = {
        (i, j): np.linalg.norm(x[i] - x[j]) for i, j in itertools.combinations(range(len(x)), 2)
    }
    matches = [p for p, d in apart.items() if labels[p[0]] != labels[p[1]] and d <= run.threshold]
    missed = [p for p, d in apart.items() if labels[p[0]] == labels[p[1]] and d > run.threshold]
    assert f"false matches: {len(matches):,} of all " in shown
    assert f"false non-matches: {len(missed):,} of all " in shown
    assert f"pictures and tables: {folder}" in shown
    with open(folder / "pairs.csv", encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    worst = min(apart[pair] for pair in matches)
    assert float(pairs[0]["distance"]) == pytest.approx(worst, abs=1e-3)
    assert {pair["kind"] for pair in pairs} == {"false_matches", "false_non_matches"}
    for pair in pairs:
        alike = pair["first_identity"] == pair["second_identity"]
        assert alike == (pair["kind"] == "false_non_matches")
        assert pair["first"].startswith(pair["first_identity"])
    with open(folder / "identities.csv", encoding="utf-8", newline="") as file:
        identities = {row["identity"]: row for row in csv.DictReader(file)}
    assert set(identities) == set(run.data["identities"]["test"])
    for name, row in identities.items():
        own = {i for i in range(len(x)) if embedded.dataset.identities[labels[i]] == name}
        assert int(row["false_matches"]) == sum(bool(own & set(pair)) for pair in matches)
        assert int(row["false_non_matches"]) == sum(pair[0] in own for pair in missed)
        assert int(row["different_pairs"]) == len(own) * (len(x) - len(own))
        assert int(row["same_pairs"]) == len(own) * (len(own) - 1) // 2
    most = max(identities.values(), key=lambda row: int(row["false_matches"]))
    share = int(most["false_matches"]) / len(matches)
    assert f"{share:.1%} with {most['identity']}, " in shown
    for name in ("false_matches", "false_non_matches", "map"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 500


def test_without_mistakes_there_is_no_sheet(run, tmp_path, capsys):
    """An old one would be of another threshold."""
    from margin_jax.data import glyphs
    from margin_jax.runs.mistakes import write_mistakes

    for letter, images in zip("QΩж", glyphs.draw("QΩж", 12), strict=True):
        (tmp_path / "letters" / letter).mkdir(parents=True)
        for i, image in enumerate(images[:3]):
            Image.fromarray(image).save(tmp_path / "letters" / letter / f"{i}.png")
    embedded = embed_identities(run, tmp_path / "letters")
    folder = tmp_path / "mistakes"
    write_mistakes(run, embedded, 0.0, folder)
    assert not (folder / "false_matches.png").exists()
    assert (folder / "false_non_matches.png").exists()
    lines = write_mistakes(run, embedded, 9.0, folder)
    assert lines[0] == "false matches: 27 of all 27 different pairs, 100.00%"
    assert "false non-matches: 0 of all 9 same pairs, 0.00%" in lines
    assert (folder / "false_matches.png").exists()
    assert not (folder / "false_non_matches.png").exists()


def test_of_vectors_there_are_tables_and_the_map(tmp_path, capsys):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(40, 1, 5)) + rng.normal(size=(40, 4, 5))).reshape(-1, 5)
    path = tmp_path / "people.npz"
    np.savez(path, features=features, labels=np.repeat([f"p{i:02}" for i in range(40)], 4))
    config = mj.TrainConfig(dataset="vectors", data_dir=str(path), encoder="linear", epochs=1)
    run = mj.fit(config.replace(identities_per_batch=4, embedding_size=4, out=str(tmp_path / "r")))
    folder = tmp_path / "mistakes"
    status, _, _ = stopped(capsys, "evaluate", run.path, "--mistakes", folder)
    assert status == 0
    assert sorted(p.name for p in folder.iterdir()) == ["identities.csv", "map.png", "pairs.csv"]


def test_only_a_folder_of_mistakes_is_written_again(run, tmp_path, capsys):
    folder, out = tmp_path / "mine", tmp_path / "report.json"
    folder.mkdir()
    (folder / "pairs.csv").write_text("of my own")
    status, _, error = stopped(capsys, "evaluate", run.path, "--mistakes", folder)
    assert status == 2
    assert "mine is not empty and not a folder of mistakes; choose another --mistakes" in error
    assert (folder / "pairs.csv").read_text() == "of my own"
    (folder / "pairs.csv").unlink()
    for _ in range(2):
        assert stopped(capsys, "evaluate", run.path, "--mistakes", folder, "--out", out)[0] == 0


def test_the_report_is_written_before_the_mistakes_are_drawn(run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(runs_mistakes, "plot_map", full)
    out = tmp_path / "report.json"
    status, _, _ = stopped(capsys, "evaluate", run.path, "--mistakes", tmp_path / "m", "--out", out)
    assert status == 2
    assert "auc" in out.read_text()
    assert not list((tmp_path / "m").iterdir())  # half of them would be in the way of the next


def test_bad_input_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "m").mkdir()
    for more, said in (
        (["--mistakes", "/proc/x", "--out", tmp_path / "r.json"], "cannot write /proc/x"),
        (["--out", run.path / "report.json"], "--out must be a file outside of the run"),
        (["--mistakes", tmp_path / "file"], "--mistakes must be a folder"),
        (["--mistakes", "s3://bucket/x"], "must be a path of this machine"),
        (
            ["--mistakes", tmp_path / "m", "--pairs", "pairs.csv", "--data-dir", tmp_path],
            "--mistakes is of every image with every other; got it with --pairs pairs.csv",
        ),
        (
            ["--mistakes", tmp_path / "m", "--out", tmp_path / "m" / "report.json"],
            "--out must not lie in the folder of --mistakes",
        ),
        (
            ["--data-dir", tmp_path, "--mistakes", tmp_path / "m"],
            "--mistakes must not lie in a folder of pictures",
        ),
        (["--repeated-names", "merge"], "--repeated-names is for folders of identities"),
        (
            ["--data-dir", tmp_path, "--pairs", tmp_path / "file", "--repeated-names", "merge"],
            "--repeated-names is not for a list of pairs",
        ),
    ):
        status, shown, error = stopped(capsys, "evaluate", run.path, *more)
        assert (status, shown, error.count("\n")) == (2, "", 1)
        assert said in error

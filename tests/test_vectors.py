"""Vectors in files: what is read, what is refused, and a whole run on them."""

import json
import re
import sys
import zipfile

import jax
import numpy as np
import pytest

import margin_jax as mj
from margin_jax import cli
from margin_jax.data import vectors
from margin_jax.data.moments import moments
from margin_jax.data.rows import is_mapped
from margin_jax.data.views import draw_versions
from margin_jax.runs.evaluate import embed_identities
from margin_jax.runs.identify import evaluate_identification
from margin_jax.runs.listed import evaluate_listed
from margin_jax.runs.run_data import prepare_data
from margin_jax.runs.use import embed_folder, verify_images

pytestmark = pytest.mark.usefixtures("no_pictures")
PEOPLE, EACH, SIZE = 30, 6, 5
CLOCKS = ("seconds", "images_per_second", "data_wait")


def people(dtype="float32"):
    """features, labels and names of rows, in an order that says nothing."""
    rng = np.random.default_rng(0)
    around = rng.normal(size=(PEOPLE, 1, SIZE)) + 0.4 * rng.normal(size=(PEOPLE, EACH, SIZE))
    order = rng.permutation(PEOPLE * EACH)
    labels = np.repeat([f"p{i:02}" for i in range(PEOPLE)], EACH)[order]
    names = np.array([f"{label}/{i}" for i, label in enumerate(labels)])
    return around.reshape(-1, SIZE).astype(dtype)[order], labels, names


def written(path, **changes):
    """A file of vectors, with some of its arrays others, or left out if they are None."""
    features, labels, names = people(changes.pop("dtype", "float32"))
    arrays = {"features": features, "labels": labels, "files": names, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def options(path, out, **more):
    usual = {"identities_per_batch": 4, "epochs": 2, "embedding_size": 8, "learning_rate": 1e-2}
    return mj.TrainConfig(
        dataset="vectors", data_dir=str(path), out=str(out), **{**usual, "encoder": "mlp", **more}
    )


def timeless(run):
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in run.history]


# What is read


def same_sets(one, two):
    np.testing.assert_array_equal(one.examples[np.arange(180)], two.examples[np.arange(180)])
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.identities == two.identities


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_npz_is_mapped_and_a_compressed_one_is_held(tmp_path, dtype):
    features, labels, names = people(dtype)
    found = vectors.load(written(tmp_path / "v.npz", dtype=dtype))
    assert is_mapped(found.examples)
    assert found.examples.dtype == dtype
    np.testing.assert_array_equal(found.examples, features)
    assert [found.identities[i] for i in found.labels] == labels.tolist()
    assert (list(found.files), found.files[3], found.files[1:3][0]) == (
        names.tolist(),
        names[3],
        names[1],
    )
    assert found.groups.tolist() == list(range(PEOPLE))
    np.savez_compressed(tmp_path / "c.npz", features=features, labels=labels)
    held = vectors.load(tmp_path / "c.npz")
    same_sets(held, found)
    assert not is_mapped(held.examples)
    assert held.files[17] == "17"
    assert held.digest() == found.digest()


def test_columns_first_and_bytes_are_read_as_well(tmp_path):
    features, labels, names = people()
    path = written(
        tmp_path / "v.npz",
        features=np.asfortranarray(features),
        labels=labels.astype("S"),
        files=names.astype("S"),
    )
    same_sets(vectors.load(path), vectors.load(written(tmp_path / "w.npz")))
    assert vectors.load(path).files[5] == names[5]


def test_numbers_are_identities_in_their_order(tmp_path):
    labels = np.repeat([100, 9, -1], 60)
    found = vectors.load(written(tmp_path / "v.npz", labels=labels))
    assert found.identities == ("-1", "9", "100")
    assert found.labels[[0, 60, 120]].tolist() == [2, 1, 0]


def test_labels_are_numbered_alike_however_many_are_read_together(tmp_path, monkeypatch):
    path = written(tmp_path / "v.npz")
    whole = vectors.load(path)
    monkeypatch.setattr(vectors, "_CHUNK", 7)
    same_sets(vectors.load(path), whole)


def test_an_npy_has_its_labels_beside_it(tmp_path):
    features, labels, _ = people()
    np.save(tmp_path / "v.npy", features)
    text = "\r\n".join(labels.tolist()) + "\r\n"
    (tmp_path / "v.labels.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = vectors.load(tmp_path / "v.npy")
    assert is_mapped(found.examples)
    same_sets(found, vectors.load(written(tmp_path / "w.npz")))


def table(**more):
    pa = pytest.importorskip("pyarrow")
    features, labels, names = people()
    columns = {"label": labels, "file": names}
    columns |= {f"x{i}": column for i, column in enumerate(features.T)}
    return pa.table({**columns, **more})


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_csv_is_the_same_vectors(tmp_path, ending):
    from pyarrow import csv

    path = tmp_path / f"v.{ending}"
    csv.write_csv(table(), path, csv.WriteOptions(delimiter="," if ending == "csv" else "\t"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = vectors.load(path)
    same_sets(found, vectors.load(written(tmp_path / "w.npz")))
    assert list(found.files) == people()[2].tolist()


def test_a_parquet_has_columns_of_numbers_or_one_of_lists(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    features, labels, names = people()
    groups = [name[1] for name in labels]
    columns = table(group=groups, __index_level_0__=np.arange(180))
    columns = columns.set_column(0, "label", columns["label"].dictionary_encode())
    parquet.write_table(columns, tmp_path / "a.parquet", row_group_size=50)
    lists = {"features": list(features.astype(float)), "label": labels, "other": names}
    parquet.write_table(pa.table(lists), tmp_path / "b.parquet", row_group_size=50)
    expected = vectors.load(written(tmp_path / "w.npz"))
    one, two = (vectors.load(tmp_path / f"{name}.parquet") for name in "ab")
    same_sets(one, expected)
    same_sets(two, expected)
    assert one.files[7] == names[7]
    assert one.groups.tolist() == [int(name[1]) for name in one.identities]
    assert two.notes == ("columns that are not used: other",)


def test_groups_and_parts_are_those_of_the_file(tmp_path):
    _, labels, _ = people()
    groups = np.array([int(label[1:]) // 2 for label in labels])
    parts = np.array(["train", "val", "test"])[groups % 3]
    path = written(tmp_path / "v.npz", groups=groups, splits=parts, more=groups)
    found = mj.load_dataset("vectors", path)
    assert found.notes == ("arrays that are not used: more",)
    assert found.groups.tolist() == [i // 2 for i in range(PEOPLE)]
    data = prepare_data(options(path, tmp_path / "run"), found)
    for part, identities in enumerate(data.split):
        assert identities.tolist() == [i for i in range(PEOPLE) if i // 2 % 3 == part]
    # Another split is asked for: that of the file counts for nothing, and groups stay together.
    data = prepare_data(options(path, tmp_path / "run", split="30/30/40"), found)
    assert {len(np.unique(found.groups[part])) * 2 - len(part) for part in data.split} == {0}
    assert "hard" in data.pairs


def test_some_identities_of_a_mapped_file_are_still_mapped(tmp_path):
    features, labels, names = people()
    whole = vectors.load(written(tmp_path / "v.npz", views=np.stack([features + 1] * 2, axis=1)))
    some = whole.first(8)
    rows = np.flatnonzero(np.isin(labels, [f"p{i:02}" for i in range(8)]))
    assert not isinstance(some.examples, np.ndarray)
    assert some.examples.shape == (48, SIZE)
    np.testing.assert_array_equal(some.examples[np.arange(48)], features[rows])
    np.testing.assert_array_equal(some.views[3:5], np.stack([features[rows[3:5]] + 1] * 2, axis=1))
    assert list(some.files) == names[rows].tolist()
    again = some.first(4)
    assert list(again.files) == [name for name in names[rows] if name < "p04"]
    run = mj.fit(options(tmp_path / "v.npz", tmp_path / "run", max_identities=20))
    assert run.data["examples"] == 120
    assert run.report["test"]["raw"]["auc"] > 0.8


# A whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    room = tmp_path_factory.mktemp("vectors")
    path = written(room / "v.npz")
    return room, path, mj.fit(options(path, room / "run", encoder="head"))


def test_rows_without_names_are_not_taken_for_the_same(trained, tmp_path):
    """Both files call them 0, 1, ..., whatever they are."""
    _, _, run = trained
    features, labels, _ = people()
    for side, moved in (("query", 0.01), ("gallery", 0)):
        np.savez(tmp_path / f"{side}.npz", features=features + moved, labels=labels)
    found = evaluate_identification(run, tmp_path / "gallery.npz", tmp_path / "query.npz")
    assert found.in_both == 0


def test_a_run_on_a_file_is_one_on_the_same_arrays(trained, tmp_path):
    _, _, run = trained
    features, labels, _ = people()
    own = mj.TrainConfig(**{**run.config.experiment(), "dataset": "own", "data_dir": None})
    again = mj.fit(own.replace(out=str(tmp_path)), dataset=mj.Dataset.from_arrays(features, labels))
    assert timeless(again) == timeless(run)
    assert again.report == run.report


def test_a_run_keeps_no_names_of_rows(trained):
    with np.load(trained[2].path / "pairs.npz") as saved:
        assert "files" not in saved
    assert len(json.loads((trained[2].path / "data.json").read_text())["sha256"]) == 64


def test_a_run_on_vectors_is_put_to_use(trained, tmp_path):
    _, path, run = trained
    features, labels, names = people()
    loaded = mj.load_run(run.path)
    vectors_of = loaded.embed(features)

    def apart(i, j):
        return pytest.approx(np.linalg.norm(vectors_of[i] - vectors_of[j]), abs=1e-5)

    assert verify_images(loaded, names[3], names[50]) == apart(3, 50)
    numbered = written(tmp_path / "numbered.npz", files=None)
    assert verify_images(loaded, "3", "50", numbered) == apart(3, 50)
    embedded = embed_folder(loaded, path)
    assert embedded.files == names.tolist()
    np.testing.assert_array_equal(embedded.vectors, vectors_of)
    own = embed_identities(loaded)
    assert len(own.vectors) == 6 * len(run.data["identities"]["test"])
    assert len(embed_identities(loaded, numbered).vectors) == 180
    pairs = np.random.default_rng(0).integers(0, 180, (200, 2))
    lines = [f"{names[i]},{names[j]},{int(labels[i] == labels[j])}" for i, j in pairs]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, f"{names[0]},nobody,0"]))
    listed = evaluate_listed(loaded, None, tmp_path / "pairs.csv")
    report = loaded.verify(
        np.linalg.norm(np.diff(vectors_of[pairs], axis=1)[:, 0], axis=1),
        labels[pairs[:, 0]] == labels[pairs[:, 1]],
    )
    assert listed.verification.auc == pytest.approx(report.auc)
    assert listed.missing == (f"'nobody': no row has this name, as {str(names[0])!r} is one",)
    assert {*listed.trained_on} <= {*run.data["identities"]["train"]}
    assert listed.trained_on
    with pytest.raises(ValueError, match=r"1 of .* rows missing, first 'nobody'"):
        evaluate_listed(loaded, None, tmp_path / "pairs.csv", strict=True)


def test_a_file_that_changed_is_not_the_run_s(trained, tmp_path):
    _, path, run = trained
    whole = path.read_bytes()
    features, *_ = people()
    try:
        written(path, features=features[::-1])
        with pytest.raises(ValueError, match="the examples are not those that"):
            embed_identities(mj.load_run(run.path))
        with pytest.raises(ValueError, match=r"differs in sha256"):
            mj.fit(run.config.replace(resume=True, epochs=3))
    finally:
        path.write_bytes(whole)
    assert embed_identities(mj.load_run(run.path)).pairs is not None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("verify RUN nobody p01/1", "rows missing, first 'nobody': no row has this name, as 'p"),
        ("evaluate RUN --data-dir few.npz", r"must have shape \(n, \*\(5,\)\); got \(4, 3\)"),
        ("embed RUN none.npz", "none.npz: No such file"),
        ("verify RUN twice twice --data-dir twice.npz", "name of two rows, 1 and 2"),
    ],
)
def test_one_line_for_what_a_run_can_not_use(typed, said, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", features=np.ones((4, 3)), labels=[1, 1, 2, 2])
    written("twice.npz", files=np.array(["a", "twice", *["twice"] * 178]))
    with pytest.raises(SystemExit) as stopped:
        cli.main(typed.replace("RUN", str(trained[2].path)).split())
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(said, told), told


def test_a_dataset_of_vectors_is_described_without_a_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    features, *_ = people()
    written("v.npz", views=features[:, None])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["datasets", "describe", "vectors", "--data-dir", "v.npz"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0
    norms = np.linalg.norm(features, axis=1)
    assert f"length of an example: median {np.median(norms):.4g}" in told
    assert "5 numbers of float32: 0.00 GiB, mapped from the file" in told
    assert "1 more versions of each, for training alone" in told
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]


# No example of another part has a say


def test_moments_are_of_the_training_rows_whatever_the_others_are(tmp_path):
    features, *_ = people()
    views = np.stack([features, features], axis=1)
    data = prepare_data(options(written(tmp_path / "v.npz"), tmp_path / "run"))
    expected = moments(data.dataset, data.train)
    own = features[data.train].astype(np.float64)
    np.testing.assert_allclose(expected[0], own.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(expected[1], own.std(axis=0), rtol=1e-6)
    brighter = features + 100 * ~np.isin(np.arange(180), data.train)[:, None]
    path = written(tmp_path / "w.npz", features=brighter.astype(np.float32), views=views + 50)
    data = prepare_data(options(path, tmp_path / "run"))
    np.testing.assert_array_equal(moments(data.dataset, data.train), expected)


def test_what_trains_does_not_depend_on_who_is_tested(trained, tmp_path):
    """Other features for all who are tested: the same weights."""
    _, _, run = trained
    features, labels, _ = people()
    tested = np.isin(labels, run.data["identities"]["test"])
    other = np.where(tested[:, None], features[::-1] * 3 + 9, features)
    path = written(tmp_path / "v.npz", features=other)
    again = mj.fit(run.config.replace(data_dir=str(path), out=str(tmp_path / "run")))
    assert timeless(again) == timeless(run)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, run.params))
    assert again.report["test"] != run.report["test"]


# Views


def test_a_version_is_drawn_for_each_row_of_an_epoch(tmp_path):
    features, *_ = people("float16")
    views = features[:, None].astype("float32") + np.array([100, 200, 300])[:, None]
    dataset = vectors.load(written(tmp_path / "v.npz", features=features, views=views))
    plan = np.random.default_rng(3).integers(0, 180, (100, 40))
    examples, versions = draw_versions(dataset, plan, seed=1, epoch=4)
    read = examples[versions[7]]
    hundreds = np.round((read - features[plan[7]]).mean(axis=1) / 100)
    np.testing.assert_array_equal(hundreds, versions[7] - 4 * plan[7])
    np.testing.assert_allclose(read - 100 * hundreds[:, None], features[plan[7]], atol=1e-3)
    drawn = np.bincount((versions - 4 * plan).ravel(), minlength=4)
    assert drawn.shape == (4,)
    assert np.all(np.abs(drawn - 1000) < 5 * np.sqrt(1000 * 0.75))
    again = draw_versions(dataset, plan, seed=1, epoch=4)[1]
    np.testing.assert_array_equal(again, versions)
    for other in ({"seed": 1, "epoch": 5}, {"seed": 2, "epoch": 4}):
        assert not np.array_equal(draw_versions(dataset, plan, **other)[1], versions)
    # Of rows that were picked, too.
    some = dataset.first(8)
    examples, versions = draw_versions(some, plan % 48, seed=1, epoch=4)
    own = np.flatnonzero(dataset.labels < 8)[plan[7] % 48]
    hundreds = (versions[7] - 4 * (plan[7] % 48))[:, None]
    np.testing.assert_allclose(examples[versions[7]], features[own] + 100 * hundreds, rtol=1e-3)


def test_views_are_trained_on_and_nothing_else_sees_them(trained, tmp_path):
    """Like the examples they change nothing; unlike them they change the training alone."""
    _, _, run = trained
    features, *_ = people()
    path = written(tmp_path / "same.npz", views=np.stack([features] * 2, axis=1))
    same = mj.fit(run.config.replace(data_dir=str(path), out=str(tmp_path / "same")))
    assert timeless(same) == timeless(run)
    noisy = np.stack([features * 0.5, features + 0.3], axis=1)
    path = written(tmp_path / "other.npz", views=noisy)
    asked = run.config.replace(data_dir=str(path), out=str(tmp_path / "other"))
    other = mj.fit(asked)
    assert timeless(other)[0]["loss"] != timeless(run)[0]["loss"]
    assert np.array_equal(other.batch_stats["mean"], run.batch_stats["mean"])
    assert other.report["test"]["raw"] == run.report["test"]["raw"]
    np.testing.assert_array_equal(other.embed(features), embed_folder(other, path).vectors)
    # On more devices, and in two parts of which the first ends within an epoch.
    spread = mj.fit(asked.replace(out=str(tmp_path / "spread"), devices=8))
    for one, two in zip(timeless(other), timeless(spread), strict=True):
        assert {k: v for k, v in two.items() if k in ("valid", "easy", "semihard", "hard")} == {
            k: v for k, v in one.items() if k in ("valid", "easy", "semihard", "hard")
        }
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_run_with_views_goes_on_within_an_epoch(tmp_path, monkeypatch):
    from margin_jax.runs import fit as fitting

    features, *_ = people()
    path = written(tmp_path / "v.npz", views=np.stack([features * 0.5, features + 0.3], axis=1))
    asked = options(path, tmp_path / "whole", checkpoint_steps=3)
    whole = mj.fit(asked)
    asked = asked.replace(out=str(tmp_path / "parted"))
    train_steps, calls = fitting.train_steps, []

    def stop(*given, **more):
        calls.append(1)
        if len(calls) == 3:  # at least one of the first epoch's steps is not done
            raise KeyboardInterrupt
        return train_steps(*given, **more)

    monkeypatch.setattr(fitting, "train_steps", stop)
    with pytest.raises(KeyboardInterrupt):
        mj.fit(asked)
    monkeypatch.setattr(fitting, "train_steps", train_steps)
    assert timeless(mj.fit(asked.replace(resume=True))) == timeless(whole)


# What is refused


def broken(path, kind):
    """A file of that kind, which cannot be read as vectors."""
    features, labels, _ = people()
    if kind == "cut":
        path.write_bytes(written(path).read_bytes()[:-40])
    elif kind == "text":
        path.write_text("no zip")
    elif kind == "bits":
        whole = bytearray(written(path).read_bytes())
        whole[0:4] = b"XXXX"
        path.write_bytes(whole)
    elif kind == "pickled":
        np.savez(path, features=features, labels=labels.astype(object))
    elif kind == "claim":
        with zipfile.ZipFile(path, "w") as archive:
            head = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 512)}
            for name in ("features", "labels"):
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array_header_1_0(file, head)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "is damaged or no .npz file"),
        ("text", "is damaged or no .npz file: File is not a zip file"),
        ("bits", "is damaged or no .npz file"),
        ("pickled", "labels.npy of .*: it holds Python objects, which are never unpickled"),
        ("claim", r"features.npy of .*: its shape \(1000000000000, 512\) is not what it holds"),
    ],
)
def test_a_file_that_is_damaged_is_refused(tmp_path, kind, said):
    with pytest.raises(ValueError, match=said):
        vectors.load(broken(tmp_path / "v.npz", kind))


ROWS = PEOPLE * EACH


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "hold arrays features and labels; labels is missing, got features, f"),
        ({"features": None}, "features is missing, got labels, files"),
        ({"features": np.zeros(ROWS)}, r"shape \[rows, numbers\] and not be empty; got \(180,\)"),
        ({"features": np.zeros((ROWS, 0))}, r"not be empty; got \(180, 0\)"),
        ({"features": np.zeros((0, 5))}, r"not be empty; got \(0, 5\)"),
        ({"features": np.zeros((ROWS, 5), int)}, "float16, float32 or float64; got int64"),
        ({"features": np.zeros((ROWS, 5), complex)}, "or float64; got complex128"),
        ({"labels": np.arange(179)}, r"labels of .* must have shape \(180,\); got \(179,\)"),
        ({"labels": np.zeros(ROWS)}, "labels of .* must be text or whole numbers; got float64"),
        ({"labels": np.zeros(ROWS, int)}, "at least two identities in .*; got 1"),
        ({"labels": np.array(["", *"a" * 179])}, "labels must not be empty; row 0 is"),
        ({"files": np.arange(ROWS)}, "files of .* must be text; got int64"),
        ({"groups": np.arange(ROWS)}, "all rows of an identity must be of one group; 'p"),
        ({"splits": np.array(["tset"] * ROWS)}, "split of a row .*Did you mean 'test'"),
        ({"views": np.zeros((ROWS, 2, 4))}, r"shape \(180, v, 5\); got \(180, 2, 4\)"),
        ({"views": np.zeros((ROWS, 5))}, r"views of .* shape \[rows, versions, numbers\]"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        vectors.load(written(tmp_path / "v.npz", **changes))


def test_parts_that_share_an_identity_are_refused(tmp_path):
    path = written(tmp_path / "v.npz", splits=np.array(["train", "val", "test"] * 60))
    with pytest.raises(
        ValueError,
        match=r"one part of the split; 'p.*' is in .*: choose another split, such as --split 40",
    ):
        prepare_data(options(path, tmp_path / "run"))
    path = written(tmp_path / "v.npz", splits=np.array(["train"] * 180))
    with pytest.raises(
        ValueError, match=r"have 30 \(30, 0 and 0\): choose another, such as --split"
    ):
        prepare_data(options(path, tmp_path / "run"))


@pytest.mark.parametrize("of", ["features", "views"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_before_anything_is_written(tmp_path, of, value):
    features, *_ = people()
    arrays = {"features": features.copy(), "views": np.stack([features] * 2, axis=1)}
    arrays[of][77, ..., 2] = value
    path = written(tmp_path / "v.npz", **arrays)
    with pytest.raises(ValueError, match=f"{'exampl' if of == 'features' else of}.*example 77 is"):
        mj.fit(options(path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have rows; got none"),
        ("label,x\n", "must have rows; got none|must have .* label"),
        ("x,y\n1,2\n", "must have a column label, perhaps .*; got x, y"),
        ("label,file\na,b\n", "columns of numbers, .*; got label, file"),
        ("label,x,x\na,1,2\n", "name each column once; got more of x"),
        (",label,x\n0,a,1\n", "column 1 of .* has no name .pandas"),
        ("label,x\na,1\nb,\n", "column x of .* is empty or no number in row 1"),
        ("label,x\na,1\nb,two\n", "cannot read .*two"),
        ("label,x\na,1\nb,2,3\n", "cannot read .*Expected 2 columns, got 3"),
        ("label,x\na,1\n,3\n", "column label must not be empty; row 1 is"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, said):
    pytest.importorskip("pyarrow")
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(ValueError, match=said) as told:
        vectors.load(tmp_path / "v.csv")
    assert "\n" not in str(told.value).strip()


def test_a_table_of_other_kinds_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    def refused(columns, said):
        parquet.write_table(pa.table(columns), tmp_path / "v.parquet")
        with pytest.raises(ValueError, match=said):
            vectors.load(tmp_path / "v.parquet")

    refused({"label": [1.5, 2.5], "x": [1.0, 2]}, "label of .* text or whole numbers; got double")
    refused({"label": ["a", "b"], "x": ["1", "2"]}, "column x of .* must be numbers, .*got string")
    lists = {"label": ["a", "b"], "features": [[1.0, 2], [1.0]]}
    refused(lists, "lists in column features of .* must be of one length")
    refused({"label": ["a", None], "x": [1.0, 2]}, "column label of .* is empty in row 1")
    (tmp_path / "v.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match="cannot read"):
        vectors.load(tmp_path / "v.parquet")


def test_a_table_may_begin_with_a_blank_line(tmp_path):
    (tmp_path / "v.csv").write_text("\nlabel,x\na,1\nb,2\n")
    np.testing.assert_array_equal(vectors.load(tmp_path / "v.csv").examples, [[1], [2]])


def test_without_its_reader_a_table_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "v.csv").write_text("label,x\na,1\n")
    with pytest.raises(ValueError, match=r"pip install 'margin-jax\[tables\]'"):
        vectors.load(tmp_path / "v.csv")

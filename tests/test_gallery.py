"""Galleries: made, grown, searched and forgotten in, and whole whatever happens."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.runs import gallery as galleries
from margin_jax.runs import index as indexing
from margin_jax.runs.search import search_files
from margin_jax.runs.use import embed_folder

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = {"max_identities": 60, "epochs": 1, "identities_per_batch": 8, "encoder": "mlp"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return mj.fit(mj.TrainConfig(**SMALL, image_size=12, out=str(out)))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four letters in folders, one picture in none, and files that are no pictures."""
    from margin_jax.data import glyphs

    root = tmp_path_factory.mktemp("letters")
    for letter, images in zip("QΩжF", glyphs.draw("QΩжF", 40), strict=True):
        (root / letter).mkdir()
        for i, image in enumerate(images[:3]):
            Image.fromarray(image).save(root / letter / f"{i}.png")
    shutil.copy(root / "Q" / "0.png", root / "alone.png")
    (root / "Q" / "broken.png").write_bytes(b"\x89PNG")
    (root / "Q" / "notes.txt").write_text("no picture")
    return root


@pytest.fixture
def letters(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "letters")


@pytest.fixture
def made(run, letters, tmp_path):
    return mj.index(run, letters, tmp_path / "gallery").gallery


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return error.value.code or 0, shown.out, shown.err


def same(one, two):
    assert list(one.names) == list(two.names)
    assert list(one.identities) == list(two.identities)
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_a_gallery_has_the_embeddings_with_names(run, letters, made):
    embedded = embed_folder(run, letters)
    assert len(made.names) == 13
    assert list(made.names) == embedded.files
    assert list(made.identities) == [name.split("/")[0] for name in embedded.files]
    np.testing.assert_array_equal(made.vectors, embedded.vectors)
    assert made.vectors.dtype == np.float32
    assert isinstance(made.vectors, np.memmap)
    assert (made.distance, made.threshold) == ("euclidean", run.threshold)
    same(mj.load_gallery(made.path), made)


def test_the_nearest_are_found_with_their_identity(run, letters, made):
    others = [i for i, name in enumerate(made.names) if name not in ("Q/0.png", "alone.png")]
    for row in others:
        (answer,) = search_files(made, run, [str(letters / made.names[row])], 3)
        assert answer.identity == made.identities[row]
        assert answer.neighbours[0][1:] == (made.names[row], made.identities[row], row)
        every = np.linalg.norm(made.vectors - made.vectors[row], axis=1)
        assert [n.row for n in answer.neighbours] == np.argsort(every, kind="stable")[:3].tolist()
        found = [n.distance for n in answer.neighbours]
        np.testing.assert_allclose(found, np.sort(every)[:3], atol=1e-3)


def test_beyond_the_threshold_it_is_unknown(made):
    query = made.vectors[[0]]
    far = float(np.linalg.norm(made.vectors[0] + query, axis=1)[0])  # 2: from its opposite
    (answer,) = made.search(-query, 1)
    assert answer.identity is None
    nearest = answer.neighbours[0].distance
    assert nearest <= far
    assert made.search(-query, 1, threshold=nearest)[0].identity is not None
    assert made.search(query, 1, threshold=0.5)[0].identity == made.identities[0]


def test_it_grows_by_what_is_new(run, letters, made, capsys):
    Image.open(letters / "Q" / "1.png").rotate(90).save(letters / "Q" / "3.png")
    (letters / "Q" / "1.png").unlink()  # what is in it stays
    status, shown, error = stopped(capsys, "index", run.path, letters, "--out", made.path)
    assert status == 0
    assert shown == f"1 added; now 14 images of 5 identities in {made.path}\n"
    assert "skipped" in error
    grown = mj.load_gallery(made.path)
    assert list(grown.names) == [*made.names, "Q/3.png"]
    np.testing.assert_array_equal(grown.vectors[:13], made.vectors)
    assert search_files(grown, run, [str(letters / "Q/3.png")])[0].neighbours[0].row == 13
    assert mj.index(run, letters, made.path).added == 0
    assert "12 left out, as their names are known already" in error.splitlines()
    other = letters.parent / "others" / "new"
    other.mkdir(parents=True)
    shutil.copy(letters / "F" / "0.png", other / "5.png")
    both = mj.index(run, other.parent, made.path).gallery
    assert (both.names[14], both.identities[14]) == ("new/5.png", "new")
    assert list(both.folders) == [str(letters), str(other.parent)]
    assert list(both.sources) == [0] * 14 + [1]
    # Nothing of earlier ones is left.
    files = sorted(path.name for path in made.path.iterdir())
    assert files == ["gallery.json", "names-3.json", "vectors-3.npy"]


def test_it_forgets_a_picture_or_an_identity(made, capsys):
    status, shown, _ = stopped(capsys, "forget", made.path, "Ω", "Q/2.png")
    assert status == 0
    assert shown == f"4 forgotten; now 9 images of 4 identities in {made.path}\n"
    left = mj.load_gallery(made.path)
    kept = [i for i, name in enumerate(made.names) if name[0] != "Ω" and name != "Q/2.png"]
    assert list(left.names) == [made.names[i] for i in kept]
    np.testing.assert_array_equal(left.vectors, made.vectors[kept])
    status, _, error = stopped(capsys, "forget", made.path, "F", "nobody")
    assert status == 2
    assert error == f"margin-jax: no picture and no identity of {made.path} is named 'nobody'\n"
    same(mj.load_gallery(made.path), left)
    empty = left.forget(set(left.identities))
    assert len(empty.vectors) == 0
    with pytest.raises(ValueError, match="is empty: index some"):
        mj.load_gallery(made.path).search(made.vectors)


@pytest.mark.parametrize("stage", ["array header", "digest", "write_text"])
def test_killed_while_it_grows_the_old_one_is_whole(run, letters, made, monkeypatch, stage):
    Image.open(letters / "Q" / "1.png").rotate(90).save(letters / "Q" / "3.png")

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched:
        if stage == "array header":
            patched.setattr(np.lib.format, "write_array_header_1_0", die)
        else:
            load = galleries.load_gallery  # which looks at digests, too

            def then_die(path):
                found = load(path)
                patched.setattr(galleries, {"digest": "_digest"}.get(stage, stage), die)
                return found

            patched.setattr(indexing, "load_gallery", then_die)
        with pytest.raises(Killed):
            mj.index(run, letters, made.path)
    same(mj.load_gallery(made.path), made)
    assert len(mj.index(run, letters, made.path).gallery.names) == 14
    assert len(list(made.path.iterdir())) == 3


def test_a_full_disk_leaves_the_old_one(run, letters, made, monkeypatch):
    Image.open(letters / "Q" / "1.png").rotate(90).save(letters / "Q" / "3.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(galleries, "write_text", full)
    with pytest.raises(OSError, match=r"gallery: No space left on device; it is as it was"):
        mj.index(run, letters, made.path)
    same(mj.load_gallery(made.path), made)


def test_a_gallery_that_grows_while_it_is_opened_is_opened_again(made, monkeypatch):
    read, old = galleries.read_json, []

    def read_late(path):
        said = read(path)
        if path.name == "gallery.json" and not old:
            old.append(said)
            made.forget(["F"])
        return said

    monkeypatch.setattr(galleries, "read_json", read_late)
    assert len(galleries.load_gallery(made.path).names) == 10


def test_damage_is_refused(made):
    def refused(said):
        with pytest.raises(ValueError, match=f"gallery is damaged: {said}"):
            mj.load_gallery(made.path)

    for name in ("vectors-1.npy", "names-1.json"):
        path = made.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused(f"{name} is not what was written")
        path.unlink()
        refused(".*No such file")
        path.write_bytes(whole)
    path = made.path / "gallery.json"
    said = json.loads(path.read_text())
    for changes, what in (
        ({"count": 12}, "its vectors and names are not 12"),
        ({"vectors": {"file": "../x", "sha256": ""}}, "'../x' is not one of its files"),
        ({"names": None}, ""),
    ):
        path.write_text(json.dumps({**said, **changes}))
        refused(what)
    path.write_text("{")
    refused("gallery.json")


def test_another_run_is_refused(run, letters, made, tmp_path, capsys):
    other = mj.fit(mj.TrainConfig(**SMALL, image_size=12, seed=1, out=str(tmp_path / "other")))
    before = made.path / "gallery.json"
    said = before.read_text()
    for command in (
        ("index", other.path, letters, "--out", made.path),
        ("search", made.path, letters / "alone.png", "--run", other.path),
    ):
        status, _, error = stopped(capsys, *command)
        assert status == 2
        assert f"has embeddings of another run than {other.path}" in error
    assert before.read_text() == said


def test_a_run_that_has_moved_is_told(run, letters, made, tmp_path, capsys):
    moved = shutil.copytree(run.path, tmp_path / "moved")
    said = json.loads((made.path / "gallery.json").read_text())
    said["run"] = str(tmp_path / "gone")
    (made.path / "gallery.json").write_text(json.dumps(said))
    command = ["search", made.path, letters / "F" / "1.png"]
    status, _, error = stopped(capsys, *command)
    assert (status, error.count("\n")) == (2, 1)
    assert "no finished run in" in error
    assert "if it has moved, --run says where to" in error
    status, shown, _ = stopped(capsys, *command, "--run", moved)
    assert status == 0
    assert shown.startswith(f"{letters}/F/1.png: F\n  0.0")


def test_what_search_says(made, letters, tmp_path, capsys):
    images = [letters / "F" / "1.png", letters / "ж" / "0.png"]
    status, shown, _ = stopped(capsys, "search", made.path, *images, "--count", 2, "--json")
    assert status == 0
    said = json.loads(shown)
    assert said["threshold"] == made.threshold
    assert [query["identity"] for query in said["queries"]] == ["F", "ж"]
    assert [len(query["neighbours"]) for query in said["queries"]] == [2, 2]
    first = said["queries"][0]["neighbours"][0]
    assert (first["name"], first["identity"]) == ("F/1.png", "F")
    assert first["distance"] < 1e-3
    status, shown, _ = stopped(capsys, "search", made.path, images[0], "--threshold", "1e-9")
    assert shown.splitlines()[0] in (f"{images[0]}: F", f"{images[0]}: unknown")
    assert len(shown.splitlines()) == 7
    assert "threshold 0.0000, as given; 13 in the gallery" in shown


def test_a_sheet_is_drawn_though_pictures_are_gone(run, letters, tmp_path, capsys):
    (letters / "F").rename(letters / "中文$")  # which the typeface does not have
    made = mj.index(run, letters, tmp_path / "gallery").gallery
    (letters / "Q" / "0.png").unlink()
    sheet = tmp_path / "sheet.png"
    command = ["search", made.path, letters / "alone.png", "--sheet", sheet, "--count", 13]
    assert stopped(capsys, *command)[0] == 0
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 150
        pixels = np.asarray(picture.convert("L"))
    assert np.mean(pixels == 230) > 0.02  # the place of the one that is gone


BAD = {
    "no gallery": (lambda g, p: ["search", p, p / "alone.png"], "no gallery in"),
    "no picture": (lambda g, p: ["search", g, p / "Q" / "broken.png"], "1 of 1 images unreadable"),
    "no file": (
        lambda g, p: ["search", g, "none.png", p / "alone.png"],
        "1 of 2 images unreadable",
    ),
    "a threshold": (
        lambda g, p: ["search", g, p / "alone.png", "--threshold", "nan"],
        "greater than",
    ),
    "none": (lambda g, p: ["search", g, p / "alone.png", "--count", "0"], "count"),
    "a sheet in it": (
        lambda g, p: ["search", g, p / "alone.png", "--sheet", g / "a.png"],
        "--sheet must be a file outside of the gallery",
    ),
    "a sheet": (lambda g, p: ["search", g, p / "alone.png", "--sheet", "a.txt"], "end in one of"),
    "a file of vectors": (
        lambda g, p: ["search", g, p / "alone.png", "--data-dir", "x"],
        "--data-dir is for runs on vectors",
    ),
    "no name": (lambda g, p: ["forget", g, "X"], "no picture and no identity"),
    "a folder of pictures": (
        lambda g, p: ["index", "RUN", p, "--out", p],
        "is not a gallery: it has",
    ),
    "a file": (lambda g, p: ["index", "RUN", p, "--out", p / "alone.png"], "is a file"),
    "nothing": (
        lambda g, p: ["index", "RUN", p / "none", "--out", g],
        "must be a folder of images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, run, drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = mj.index(run, drawn, tmp_path / "gallery").gallery
    before = sorted(drawn.iterdir())
    command, said = BAD[case]
    typed = [run.path if word == "RUN" else word for word in command(made.path, drawn)]
    status, out, error = stopped(capsys, *typed)
    assert (status, out) == (2, "")
    assert error.count("\n") == 1
    assert said in error
    assert sorted(drawn.iterdir()) == before
    same(mj.load_gallery(made.path), made)


def test_vectors_are_searched_by_their_names(tmp_path, capsys):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 1, 5)) + 0.1 * rng.normal(size=(40, 4, 5))
    labels = np.repeat([f"p{i:02}" for i in range(40)], 4)
    names = [f"{label}/{i}" for i, label in enumerate(labels)]
    path = tmp_path / "people.npz"
    np.savez(path, features=features.reshape(-1, 5), labels=labels, files=names)
    config = mj.TrainConfig(dataset="vectors", data_dir=str(path), encoder="linear", epochs=1)
    run = mj.fit(config.replace(identities_per_batch=4, embedding_size=4, out=str(tmp_path / "r")))
    gallery = mj.index(run, path, tmp_path / "gallery").gallery
    assert list(gallery.names) == names
    assert list(gallery.identities) == labels.tolist()
    assert mj.index(run, path, gallery.path).added == 0
    status, shown, _ = stopped(capsys, "search", gallery.path, "p07/29", "--count", 2)
    assert status == 0
    assert shown.splitlines()[0] == "p07/29: p07"
    assert shown.splitlines()[1].endswith("  p07/29")
    for more, said in ((["--sheet", "a.png"], "--sheet is for pictures"), ([], "rows missing")):
        status, _, error = stopped(capsys, "search", gallery.path, "nobody", *more)
        assert status == 2
        assert said in error
    # A row and an identity of one name: the row alone is forgotten.
    np.savez(path, features=features.reshape(-1, 5), labels=np.arange(160) // 4)
    numbered = mj.index(run, path, tmp_path / "numbered").gallery
    assert list(numbered.forget(["5"]).names) == [str(i) for i in range(160) if i != 5]
    other = tmp_path / "others.npz"
    np.savez(other, features=features.reshape(-1, 5), labels=labels)
    with pytest.raises(ValueError, match=r"rows of .*others\.npz have no names"):
        mj.index(run, other, numbered.path)
    np.savez(path, features=features.reshape(-1, 5), labels=labels, files=["a"] * 160)
    with pytest.raises(ValueError, match="must be unique"):
        mj.index(run, path, tmp_path / "twice")

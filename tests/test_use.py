"""A finished run put to use, from Python and from the command line."""

import dataclasses
import errno
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from PIL import Image

import margin_jax as mj
from margin_jax import cli, plots
from margin_jax.data.pair_files import locate, read_pairs
from margin_jax.evaluation.folds import fold_report
from margin_jax.runs import folder
from margin_jax.runs.evaluate import (
    choose_run_threshold,
    embed_identities,
    evaluate_all_pairs,
    evaluate_retrieval,
    evaluate_run,
    load_own,
)
from margin_jax.runs.given import read_pictures
from margin_jax.runs.listed import evaluate_listed
from margin_jax.runs.use import embed_folder, verify_images

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return mj.fit(mj.TrainConfig(max_identities=60, epochs=2, identities_per_batch=8, out=str(out)))


LEFT_OUT = "2 file(s) or folder(s) left out; first {}.thumbnails: hidden or of the system"


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Pictures of one's own: three letters in colour, one of them in a file that is broken."""
    from margin_jax.data import glyphs

    root = tmp_path_factory.mktemp("letters")
    for letter, images in zip("QΩж", glyphs.draw("QΩж", 40), strict=True):
        (root / letter).mkdir()
        for i, image in enumerate(images[:4]):
            colour = Image.fromarray(np.stack([image, image // 2, image * 0], axis=-1))
            colour.save(root / letter / f"{i}.png")
    (root / "Q" / "broken.png").write_bytes(b"\x89PNG")
    (root / "Q" / "notes.txt").write_text("no picture")
    (root / ".thumbnails").mkdir()
    Image.new("L", (9, 9)).save(root / ".thumbnails" / "1.png")
    return root


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return error.value.code or 0, shown.out, shown.err


def test_evaluating_the_saved_pairs_gives_the_report(run):
    report = evaluate_run(run, embed_identities(mj.load_run(run.path)))
    test = run.report["test"]
    assert report.auc == test["auc"]
    assert report.accuracy == test["accuracy"]
    assert report.threshold == test["threshold"] == run.threshold


def test_more_pairs_than_an_array_can_hold_are_refused(run):
    with pytest.raises(ValueError, match="at most 2,147,483,647; got 1000"):
        evaluate_run(run, embed_identities(run), count=10**20)


def test_figures_have_intervals_over_the_identities(run, letters, tmp_path, capsys):
    embedded = embed_identities(run)
    report = evaluate_run(run, embedded)
    people = len(run.data["identities"]["test"])
    assert report.intervals.identities == people
    assert report.to_json()["intervals"] == run.report["test"]["intervals"]
    for part in (run.report["test"]["published"], run.report["test"]["raw"]):
        assert part["intervals"]["identities"] == people
    assert run.report["validation"]["intervals"] is None
    of_all = evaluate_all_pairs(run, embedded)
    assert of_all.intervals.auc[0] < of_all.auc < of_all.intervals.auc[1]
    status, shown, _ = stopped(capsys, "evaluate", run.path)
    low, high = (f"{end:.4f}"[1:] for end in report.intervals.auc)
    assert status == 0
    assert f"AUC {report.auc:.4f}".replace(" 0", " ") + f" [{low}, {high}]" in shown
    assert f"[95 % intervals, {people} identities resampled]" in shown
    _, shown, _ = stopped(capsys, "evaluate", run.path, "--data-dir", letters)
    assert "note: no intervals: they need 10 identities" in shown
    assert "FMR " in shown


@pytest.mark.parametrize(("rate", "drawn"), [(0.05, 594), (0.006, 5184)])
def test_a_threshold_of_a_false_match_rate_is_chosen_on_validation(
    rate, drawn, run, tmp_path, capsys
):
    """On the saved pairs, or on all different ones where those are too few."""
    own = load_own(run)
    threshold = choose_run_threshold(run, rate, own)
    rows = own.rows(run, "validation")
    vectors, labels = run.embed(own.dataset.examples, rows), own.dataset.labels[rows]
    if drawn == 594:
        saved = own.pairs["validation"]
        pairs = np.searchsorted(rows, saved.rows)[~saved.same]
    else:
        i, j = np.triu_indices(len(rows), 1)
        pairs = np.stack([i, j], axis=1)[labels[i] != labels[j]]
    apart = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    assert len(apart) == drawn
    assert np.mean(apart <= threshold + 1e-4) >= rate - 1 / drawn
    assert np.mean(apart <= threshold - 1e-4) <= rate
    out = tmp_path / "figures.json"
    status, shown, _ = stopped(capsys, "evaluate", run.path, "--fmr", rate, "--out", out)
    said = json.loads(out.read_text())
    assert status == 0
    assert said["threshold"] == threshold != run.threshold
    assert said["threshold_for_fmr"] == rate
    report = evaluate_run(run, embed_identities(run), threshold=threshold)
    assert (said["fmr"], said["fnmr"]) == (report.fmr, report.fnmr)
    assert f"threshold chosen on validation for FMR {rate}" in shown
    assert said["auc"] == run.report["test"]["auc"]


def test_every_way_to_evaluate_takes_that_threshold(run, letters, tmp_path, capsys):
    threshold = choose_run_threshold(run, 0.05)
    (tmp_path / "pairs.csv").write_text("Q/0.png,Q/1.png,1\nQ/0.png,Ω/1.png,0\n")
    for more in ([], ["--pairs", "all"], ["--pairs", tmp_path / "pairs.csv"]):
        out = tmp_path / "figures.json"
        command = ["evaluate", run.path, "--data-dir", letters, *more, "--fmr", "0.05"]
        assert stopped(capsys, *command, "--out", out)[0] == 0
        assert json.loads(out.read_text())["threshold"] == threshold


def test_intervals_of_listed_pairs_need_folders_that_are_identities(run, tmp_path):
    from margin_jax.data import glyphs

    letters = "QWERTYUIOPAS"
    for letter, images in zip(letters, glyphs.draw(letters, 28), strict=True):
        (tmp_path / letter).mkdir()
        for i in range(3):
            Image.fromarray(images[i]).save(tmp_path / letter / f"{i}.png")
    same = [f"{a}/0.png,{a}/{i}.png,1" for a in letters for i in (1, 2)]
    different = [f"{a}/0.png,{b}/1.png,0" for a, b in itertools.pairwise(letters)]
    (tmp_path / "pairs.csv").write_text("\n".join(same + different))
    report = evaluate_listed(run, tmp_path, tmp_path / "pairs.csv").verification
    assert report.intervals.identities == 12
    (tmp_path / "pairs.csv").write_text("\n".join([*same, *different, "Q/0.png,Q/1.png,0"]))
    report = evaluate_listed(run, tmp_path, tmp_path / "pairs.csv").verification
    assert report.intervals is None


def test_a_report_of_an_earlier_version_is_read(run, tmp_path, capsys):
    earlier = tmp_path / "run"
    shutil.copytree(run.path, earlier)
    report = json.loads((earlier / "report.json").read_text())

    def without(value):
        if isinstance(value, dict):
            new = ("fmr", "fnmr", "intervals")
            return {name: without(v) for name, v in value.items() if name not in new}
        return value

    seal = report.pop("sha256")
    old = without(report)
    config = json.loads((earlier / "config.json").read_text())
    assert config.pop("fmr") is None
    (earlier / "config.json").write_text(json.dumps(config))
    (earlier / "report.json").write_text(json.dumps(old))
    seal["report.json"] = folder.sha256(folder.to_json(old).encode())
    seal["config.json"] = folder._digest(earlier, "config.json")
    (earlier / "report.json").write_text(json.dumps({**old, "sha256": seal}))
    loaded = mj.load_run(earlier)
    assert loaded.threshold == run.threshold
    assert "FMR" not in loaded._repr_markdown_()
    assert "FMR" in run._repr_markdown_()
    assert stopped(capsys, "evaluate", earlier)[0] == 0


def test_other_pictures_and_other_pairs(run, letters, tmp_path, capsys):
    drawn = evaluate_run(run, embed_identities(run, letters))
    assert (drawn.same, drawn.different) == (18, 18)
    listed = tmp_path / "pairs.csv"
    listed.write_text("Q/0.png,Q/1.png,1\nQ/0.png,Ω/1.png,0\nж/2.png, ж/3.png, 1\n")
    report = evaluate_listed(run, letters, listed).verification
    assert (report.same, report.different) == (2, 1)
    out = tmp_path / "figures.json"
    status, shown, _ = stopped(
        capsys, "evaluate", run.path, "--data-dir", letters, "--pairs", listed, "--out", out
    )
    assert status == 0
    assert json.loads(out.read_text()) == report.to_json()
    assert f"{report.auc:.4f}" in shown


def test_every_image_with_every_other(run, letters, tmp_path, capsys):
    embedded = embed_identities(run, letters)
    report = evaluate_all_pairs(run, embedded)
    assert (report.same, report.different) == (18, 48)
    assert embedded.skipped == ("Q/broken.png: not an image",)
    out = tmp_path / "figures.json"
    command = ["evaluate", run.path, "--data-dir", letters, "--pairs", "all", "--out", out]
    status, shown, error = stopped(capsys, *command)
    assert status == 0
    assert json.loads(out.read_text()) == report.to_json()
    assert f"{report.auc:.4f}" in shown
    assert error.splitlines() == ["skipped Q/broken.png: not an image", LEFT_OUT.format("")]
    images = 12 * len(run.data["identities"]["test"])
    own = evaluate_all_pairs(run, embed_identities(run))
    assert own.same + own.different == images * (images - 1) // 2


def test_lfw_pairs_are_reported_by_folds(run, tmp_path, capsys):
    from margin_jax.data import glyphs

    names = ["Ö Ä", "BB", "CC", "DD"]  # a name may have a space in it, the file has tabs
    for name, images in zip(names, glyphs.draw("QΩжF", 30), strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images[:4], start=1):
            Image.fromarray(image).save(tmp_path / name / f"{name}_{i:04d}.jpg")
    same = [f"{name}\t{i}\t{i + 1}" for i in (1, 2, 3) for name in names]
    different = [
        f"{name}\t{i}\t{other}\t{i}"
        for i in (1, 2, 3)
        for name, other in zip(names, [*names[1:], names[0]], strict=True)
    ]
    folds = [same[:4] + different[:4], same[4:8] + different[4:8], same[8:] + different[8:]]
    listed = tmp_path / "pairs.txt"
    listed.write_text("3\t4\n" + "\n".join(line for fold in folds for line in fold) + "\n")

    report, by_fold, trained_on, missing, count = evaluate_listed(run, tmp_path, listed)
    assert (missing, count) == ((), 24)
    assert (report.same, report.different) == (12, 12)
    files, vectors, *_ = embed_folder(run, tmp_path)
    vector = dict(zip(files, vectors, strict=True))
    distances = []
    for name, i, *other, j in (line.split("\t") for fold in folds for line in fold):
        pair = (
            vector[f"{n}/{n}_{int(k):04d}.jpg"] for n, k in ((name, i), ((other or [name])[0], j))
        )
        distances.append(np.linalg.norm(np.subtract(*pair)))
    expected = fold_report(
        np.array(distances), np.tile([True] * 4 + [False] * 4, 3), np.arange(24) // 8
    )
    assert by_fold.accuracies == expected.accuracies
    assert by_fold.thresholds == pytest.approx(expected.thresholds, abs=1e-4)
    assert trained_on == ()
    out = tmp_path / "figures.json"
    command = ["evaluate", run.path, "--data-dir", tmp_path, "--pairs", listed, "--out", out]
    status, shown, _ = stopped(capsys, *command)
    assert status == 0
    assert f"3 folds: accuracy {by_fold.accuracy:.2%} ± {by_fold.standard_error:.2%}" in shown
    assert json.loads(out.read_text())["folds"]["accuracies"] == list(by_fold.accuracies)

    listed.write_text(listed.read_text().replace("BB\t1\t2", "BB\t1"))
    status, _, error = stopped(capsys, *command)
    assert status == 2
    assert "line 3: expected NAME I J; got 'BB\\t1'" in error
    listed.write_text("3\t5\n" + "\n".join(same))
    with pytest.raises(
        ValueError, match="3 folds of 5 same and 5 different pairs, 30 lines; got 12"
    ):
        evaluate_listed(run, tmp_path, listed)


def encodings(text):
    return {
        "UTF-8 with mark": text.encode("utf-8-sig"),
        "UTF-16": text.encode("utf-16"),
        "UTF-16, other end first": b"\xfe\xff" + text.encode("utf-16-be"),
        "Latin-1": text.encode("latin-1"),
        "Windows line ends": text.replace("\n", "\r\n").encode(),
        "blank lines": ("\n" + text.replace("\n", "\n\n \n")).encode(),
        "spaces": text.replace("\t", "  ").encode(),
        "spaces at the ends": text.replace("\n", " \n").encode(),
    }


LFW = "2\t1\nÖ Ä\t1\t2\nBB\t1\tÖ Ä\t2\nBB\t2\t10\nÖ Ä\t3\tBB\t4\n"


@pytest.mark.parametrize("form", encodings(""))
def test_lists_as_people_have_them(tmp_path, form):
    path = tmp_path / "pairs.txt"
    path.write_bytes(encodings(LFW)[form])
    files, pairs, folds = read_pairs(path)
    named = [(files[a], files[b]) for a, b in pairs.rows]
    assert named == [
        ("Ö Ä/Ö Ä_0001.jpg", "Ö Ä/Ö Ä_0002.jpg"),
        ("BB/BB_0001.jpg", "Ö Ä/Ö Ä_0002.jpg"),
        ("BB/BB_0002.jpg", "BB/BB_0010.jpg"),
        ("Ö Ä/Ö Ä_0003.jpg", "BB/BB_0004.jpg"),
    ]
    assert pairs.same.tolist() == [True, False, True, False]
    assert folds.tolist() == [0, 0, 1, 1]
    path.write_bytes(encodings(LFW.replace("2\t1\nÖ", "1\nÖ").rpartition("BB\t2\t10")[0])[form])
    files, pairs, folds = read_pairs(path)  # as pairsDevTest.txt
    assert [(files[a], files[b]) for a, b in pairs.rows] == named[:2]
    assert folds is None
    path.write_bytes(encodings("ö/1.png, b/1.png, 1\n")[form])
    assert read_pairs(path).files == ("ö/1.png", "b/1.png")


def test_listed_files_are_found_by_other_names(tmp_path):
    composed, single = "\u00e9", "e\u0301"
    for name in (
        f"{single}/{single}_0001.png",
        "b/1.jpg",
        "b/1.png",
        "b/2.json",
        "b/2.png",
        "b/2.webp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = [f"{composed}/{composed}_0001.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg", "c/1.jpg"]
    found = [str(path.relative_to(tmp_path)) for path in locate(tmp_path, asked)]
    assert found == [f"{single}/{single}_0001.png", "b/1.jpg", "b/2.png", "b/3.jpg", "c/1.jpg"]


def test_pairs_of_more_pictures_than_memory_holds(run, letters, tmp_path):
    listed = tmp_path / "pairs.csv"
    listed.write_text(
        "Q/0.png,Q/1.png,1\nQ/0.png,Ω/1.png,0\nQ/9.png,ж/0.png,0\nж/2.png,Ω/3.png,0\n"
    )
    little = dataclasses.replace(run, config=run.config.replace(memory_limit=0))
    held, streamed = (read_pictures(r, [letters / "Q" / "0.png"]).images for r in (run, little))
    assert isinstance(held, np.ndarray)
    assert not isinstance(streamed, np.ndarray)
    expected, found = (evaluate_listed(r, letters, listed) for r in (run, little))
    assert found.verification == expected.verification
    assert found.missing == expected.missing
    assert embed_folder(little, letters).files == embed_folder(run, letters).files


def test_pairs_without_a_picture_are_left_out_and_counted(run, letters, tmp_path, capsys):
    listed = tmp_path / "pairs.csv"
    whole = "Q/0.png,Q/1.png,1\nQ/0.png,Ω/1.png,0\n"
    listed.write_text(f"{whole}Q/9.png,Q/1.png,1\nQ/broken.png,Ω/1.png,0\n")
    report, _, _, missing, count = evaluate_listed(run, letters, listed)
    assert (report.same, report.different, count) == (1, 1, 4)
    assert [text.split("/")[-1] for text in missing] == [
        "9.png: No such file or directory",
        "broken.png: not an image",
    ]
    command = ["evaluate", run.path, "--data-dir", letters, "--pairs", listed]
    status, _, error = stopped(capsys, *command)
    assert status == 0
    assert "2 of 4 pairs left out, as 2 pictures are missing or unreadable; first" in error
    status, _, error = stopped(capsys, *command, "--strict")
    assert status == 2
    assert "2 of 5 images unreadable, first" in error


def test_identities_that_were_trained_on_are_said(run, tmp_path, capsys):
    from margin_jax.data import glyphs

    letters = [run.data["identities"]["train"][0], run.data["identities"]["test"][0]]
    for letter, images in zip(letters, glyphs.draw(letters, 28), strict=True):
        (tmp_path / letter).mkdir()
        for i in range(2):
            Image.fromarray(images[i]).save(tmp_path / letter / f"{i}.png")
    a, b = letters
    (tmp_path / "pairs.csv").write_text(f"{a}/0.png,{a}/1.png,1\n{a}/0.png,{b}/1.png,0\n")
    assert evaluate_listed(run, tmp_path, tmp_path / "pairs.csv").trained_on == (a,)
    command = ["evaluate", run.path, "--data-dir", tmp_path, "--pairs", tmp_path / "pairs.csv"]
    assert (
        "note: identities that the run was trained on, by name: 1" in stopped(capsys, *command)[1]
    )
    # Also where no list names them; and queries that are in the gallery find themselves.
    command = ["evaluate", run.path, "--data-dir", tmp_path]
    assert "trained on, by name: 1" in stopped(capsys, *command)[1]
    command = ["evaluate", run.path, "--query", tmp_path, "--gallery", tmp_path]
    shown = stopped(capsys, *command)[1]
    assert "trained on, by name: 1" in shown
    assert "note: 4 queries have the file name of an image in the gallery" in shown


def test_retrieval_of_a_run_and_of_other_pictures(run, letters, capsys, tmp_path):
    report = evaluate_retrieval(run, embed_identities(run))
    assert report.queries == report.images == 12 * len(run.data["identities"]["test"])
    assert 0.3 < report.recall_at[1] <= report.recall_at[8] <= 1
    out = tmp_path / "figures.json"
    command = ["evaluate", run.path, "--data-dir", letters, "--retrieval", "--out", out]
    status, shown, _ = stopped(capsys, *command)
    assert status == 0
    other = evaluate_retrieval(run, embed_identities(run, letters))
    assert other.images == 12
    assert f"MAP@R {other.map_at_r:.2%}" in shown
    assert json.loads(out.read_text())["retrieval"] == other.to_json()


def test_embed_names_files_and_skips_what_is_broken(run, letters, tmp_path, capsys):
    files, embeddings, skipped, _ = embed_folder(run, letters)
    assert files == sorted(f"{letter}/{i}.png" for letter in "QΩж" for i in range(4))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert len(skipped) == 1
    out = tmp_path / "e.npz"
    status, shown, errors = stopped(capsys, "embed", run.path, letters, "--out", out)
    assert status == 0
    assert "12 embeddings of length 128" in shown
    assert "broken.png" in errors
    assert LEFT_OUT.format(f"{letters}/") in errors
    with np.load(out) as saved:
        assert saved["files"].tolist() == files
        np.testing.assert_array_equal(saved["embeddings"], embeddings)


def test_what_cannot_be_written_whole_leaves_what_was_there(
    run, letters, tmp_path, capsys, monkeypatch
):
    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "e.npz").write_bytes(b"of yesterday")
    monkeypatch.setattr(np, "savez_compressed", full)
    status, _, error = stopped(capsys, "embed", run.path, letters, "--out", tmp_path / "e.npz")
    assert status == 2
    assert f"cannot write {tmp_path / 'e.npz'}: No space left on device" in error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of yesterday"]


def test_verify_says_same_or_different(run, letters, capsys):
    files, embeddings, *_ = embed_folder(run, letters)
    pairs = [(letters / files[0], letters / other) for other in files[1:]]
    distances = [verify_images(run, *pair) for pair in pairs]
    expected = np.linalg.norm(embeddings[1:] - embeddings[0], axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-3)
    assert verify_images(run, pairs[0][0], pairs[0][0]) < 1e-3
    seen = set()
    for pair, distance in zip(pairs, distances, strict=True):
        status, shown, _ = stopped(capsys, "verify", run.path, *pair)
        answer = "same" if distance <= run.threshold else "different"
        assert status == (0 if answer == "same" else 1)
        assert shown == f"{answer}: distance {distance:.4f}, threshold {run.threshold:.4f}\n"
        seen.add(answer)
    assert seen == {"same", "different"}


@pytest.fixture
def cameras(tmp_path):
    """Four letters from three cameras; the gallery has two of the letters, one of one camera."""
    from margin_jax.data import glyphs

    letters = "QΩжF"
    for letter, images in zip(letters, glyphs.draw(letters, 28), strict=True):
        for i in range(6):
            side = "gallery" if i < {"Q": 3, "Ω": 1}.get(letter, 0) else "query"
            (tmp_path / side / letter).mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(tmp_path / side / letter / f"{i}_c{i % 3}.png")
    return tmp_path


@pytest.mark.parametrize("group_by", [None, r"_c(\d)"])
def test_queries_are_looked_for_in_a_gallery(group_by, run, cameras, capsys):
    sides = []
    for side in ("gallery", "query"):
        files, vectors, *_ = embed_folder(run, cameras / side)
        names = np.array([name.split("/")[0] for name in files])
        sides += [vectors, names, np.array([name[-5] for name in files])]
    groups = {"gallery_groups": sides[2], "query_groups": sides[5]} if group_by else {}
    expected = mj.identification_report(
        sides[0], sides[1], sides[3], sides[4], threshold=run.threshold, **groups
    )
    assert (expected.mated, expected.left_out) == ((7, 1) if group_by else (8, 0))
    assert (expected.unmated, expected.identities) == (12, 2)
    out = cameras / "figures.json"
    command = ["evaluate", run.path, "--query", cameras / "query", "--gallery", cameras / "gallery"]
    more = ["--group-by", group_by] if group_by else []
    status, shown, _ = stopped(capsys, *command, *more, "--out", out)
    assert status == 0
    said = json.loads(out.read_text())
    assert said == expected.to_json()
    assert f"rank-1 {expected.rank_at[1]:.2%}" in shown
    assert f"TPIR {expected.tpir:.2%}, FPIR {expected.fpir:.2%} at threshold" in shown
    assert "note: TPIR at FPIR 0.01 needs 1,000 unmated queries to say much; got 12" in shown
    status, shown, _ = stopped(capsys, *command, *more, "--fmr", "0.05", "--out", out)
    assert json.loads(out.read_text())["threshold"] == choose_run_threshold(run, 0.05)
    assert "threshold chosen on validation for FMR 0.05" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--query Q", "--query and --gallery must be given together"),
        ("--gallery G", "--query and --gallery must be given together"),
        ("--group-by x", "--group-by is for them"),
        ("--query Q --gallery G --retrieval", "cannot be combined with other images"),
        ("--query Q --gallery G --pairs all", "cannot be combined with other images"),
        ("--query Q --gallery G --data-dir Q", "cannot be combined with other images"),
        ("--query Q --gallery G --group-by (", "--group-by must be a regular expression; got \\("),
        ("--query Q --gallery G --group-by c", "--group-by must have one pair of parentheses"),
        ("--query Q --gallery G --group-by d(.)", "--group-by finds nothing of d\\(.\\) in Q/0_c0"),
        ("--query Q --gallery N", "--gallery must be a folder or a file; there is no .*none"),
        ("--query N --gallery G", "--query must be a folder or a file; there is no .*none"),
    ],
)
def test_bad_queries_are_one_line(arguments, message, run, cameras, capsys):
    places = {"Q": cameras / "query", "G": cameras / "gallery", "N": cameras / "none"}
    typed = [places.get(word, word) for word in arguments.split()]
    status, shown, errors = stopped(capsys, "evaluate", run.path, *typed)
    assert (status, shown, errors.count("\n")) == (2, "", 1)
    assert re.search(message, errors), errors


def test_verify_by_a_threshold_of_ones_own_in_json(run, letters, capsys):
    pair = letters / "Q/0.png", letters / "Q/1.png"
    distance = verify_images(run, *pair)
    for threshold, status in ((distance + 0.01, 0), (distance - 0.01, 1)):
        command = ["verify", run.path, *pair, "--json", "--threshold", threshold]
        ended, shown, errors = stopped(capsys, *command)
        assert (ended, errors) == (status, "")
        answer = {"same": status == 0, "distance": distance, "threshold": threshold}
        assert json.loads(shown) == answer
    _, shown, _ = stopped(capsys, "verify", run.path, *pair, "--json")
    assert json.loads(shown)["threshold"] == run.threshold
    assert stopped(capsys, "verify", "--help")[1].count("Exit status: 0 for the same") == 1


BAD = {
    "no run": lambda run, letters: ["evaluate", letters],
    "no folder": lambda run, letters: ["evaluate", letters / "missing"],
    "pairs alone": lambda run, letters: ["evaluate", run, "--pairs", "pairs.csv"],
    "a number of saved pairs": lambda run, letters: ["evaluate", run, "--count", "10"],
    "a seed of all pairs": lambda run, letters: [
        *("evaluate", run, "--data-dir", letters, "--pairs", "all", "--seed", "1")
    ],
    "no images": lambda run, letters: ["embed", run, run / "figures" / "nothing"],
    "nothing to embed": lambda run, letters: ["embed", run, run / "checkpoints"],
    "not an image": lambda run, letters: ["verify", run, letters / "Q/0.png", run / "config.json"],
    "missing image": lambda run, letters: [
        "verify",
        run,
        letters / "Q/0.png",
        letters / "none.png",
    ],
    "one image": lambda run, letters: ["verify", run, letters / "Q/0.png"],
    "no identities": lambda run, letters: ["evaluate", run, "--data-dir", letters / "Q"],
    "no pairs file": lambda run, letters: [
        "evaluate",
        run,
        "--data-dir",
        letters,
        "--pairs",
        letters / "none.csv",
    ],
    "a folder for a report": lambda run, letters: ["evaluate", run, "--out", run / "figures"],
    "an archive of images": lambda run, letters: [
        *("evaluate", run, "--data-dir", run / "pairs.zip"),
    ],
    "a rate of too few pairs": lambda run, letters: ["evaluate", run, "--fmr", "0.001"],
    "no rate": lambda run, letters: ["evaluate", run, "--fmr", "nan"],
    "no threshold": lambda run, letters: [
        *("verify", run, letters / "Q/0.png", letters / "Q/1.png", "--threshold", "nan")
    ],
    "strict without a list": lambda run, letters: ["evaluate", run, "--strict"],
    "unwritable": lambda run, letters: ["embed", run, letters, "--out", run / "none" / "e.npz"],
}


@pytest.mark.parametrize("command", ["evaluate", "embed"])
def test_where_the_result_goes_is_looked_at_before_the_work(command, run, tmp_path, capsys):
    images = {"evaluate": ["--data-dir", tmp_path / "none"], "embed": [tmp_path / "none"]}[command]
    for out, what in ((tmp_path, "that is a folder"), (tmp_path / "a" / "b", "there is no folder")):
        _, _, errors = stopped(capsys, command, run.path, *images, "--out", out)
        assert f"out must be a file in a folder; got {out}: {what}" in errors


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(arguments, run, letters, capsys):
    status, shown, errors = stopped(capsys, *arguments(run.path, letters))
    assert status == 2
    assert shown == ""
    lines = [line for line in errors.splitlines() if not line.startswith("skipped")]
    assert len(lines) == 1
    assert lines[0].startswith("margin-jax: ")
    assert len(lines[0]) > 30


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no pairs in"),
        ("a,b\n", "line 1: expected FIRST,SECOND,1 or 0; got 'a,b'"),
        ("Q/0.png,Q/1.png,1\nQ/0.png,Q/1.png,yes\n", "line 2: expected"),
        ("Q/0.png,Q/9.png,1\n", "0 same and 0 different ones have both .*first .*Q/9.png: No such"),
        ("Q/0.png,Q/1.png,1\n", "1 same and 0 different ones"),
        ('"' + 140_000 * "Q", r"pairs.csv is not a list of pairs: field larger"),
    ],
)
def test_bad_pairs(lines, message, run, letters, tmp_path):
    (tmp_path / "pairs.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        evaluate_listed(run, letters, tmp_path / "pairs.csv")


def keep_files_alone(path):
    with np.load(path) as saved:
        files = saved["files"]
    np.savez(path, files=files)


def change(path, name, value, *within):
    values = json.loads(path.read_text())
    found = values
    for part in within:
        found = found[part]
    assert found[name] != value
    found[name] = value
    path.write_text(json.dumps(values))


def nest(path, end=""):
    path.write_text("[" * 200_000 + "]" * 200_000 + end)


def turn(path, other):
    with np.load(path) as saved:
        arrays = dict(saved)
    np.savez(path, **{**arrays, "test_rows": other(arrays["test_rows"])})


DAMAGE = {
    "config gone": lambda f: (f / "config.json").unlink(),
    "config cut": lambda f: (f / "config.json").write_text('{"dataset": "gly'),
    "config of another version": lambda f: (f / "config.json").write_text('{"datasets": "glyphs"}'),
    "config of no run": lambda f: (f / "config.json").write_text('{"epochs": "many"}'),
    "config no object": lambda f: (f / "config.json").write_text("3"),
    "data gone": lambda f: (f / "data.json").unlink(),
    "data cut": lambda f: (f / "data.json").write_text("{}"),
    "report cut": lambda f: (f / "report.json").write_text('{"test"'),
    "report gone": lambda f: (f / "report.json").unlink(),
    "report empty": lambda f: (f / "report.json").write_text("{}"),
    "report no object": lambda f: (f / "report.json").write_text("[]"),
    "shape of words": lambda f: (f / "data.json").write_text('{"example_shape": ["a"]}'),
    "report of another epoch": lambda f: (f / "report.json").write_text(
        json.dumps(json.loads((f / "report.json").read_text()) | {"best_epoch": 7})
    ),
    "config of another seed": lambda f: change(f / "config.json", "seed", 3),
    "config of another distance": lambda f: change(f / "config.json", "distance", "cosine"),
    "config nested": lambda f: nest(f / "config.json"),
    "config without a text": lambda f: change(f / "config.json", "schedule", None),
    "config with a list": lambda f: change(f / "config.json", "dataset", ["glyphs"]),
    "config half true": lambda f: change(f / "config.json", "strict", "no"),
    "config infinite": lambda f: change(f / "config.json", "margin", float("inf")),
    "data nested": lambda f: nest(f / "data.json"),
    "data of nobody": lambda f: change(f / "data.json", "identities", None),
    "data of other sizes": lambda f: change(f / "data.json", "example_shape", [30, 30, 1]),
    "data infinite": lambda f: change(f / "data.json", "example_shape", [float("inf"), 28, 1]),
    "data not of text": lambda f: (f / "data.json").write_bytes(b'{"images": "\xff"}'),
    "report nested": lambda f: nest(f / "report.json"),
    "report of nothing": lambda f: change(f / "report.json", "test", None),
    "report unsealed": lambda f: change(f / "report.json", "sha256", None),
    "threshold of nothing": lambda f: change(f / "report.json", "threshold", None, "test"),
    "threshold infinite": lambda f: change(f / "report.json", "threshold", float("inf"), "test"),
    "another threshold": lambda f: change(f / "report.json", "threshold", 0.5, "test"),
    "another figure": lambda f: change(f / "report.json", "auc", 1.0, "test"),
    "history nested": lambda f: nest(f / "history.jsonl", "\n"),
    "history of words": lambda f: (f / "history.jsonl").write_text('{"epoch": 1, "loss": "a"}\n'),
    "another history": lambda f: (f / "history.jsonl").write_text(
        (f / "history.jsonl").read_text().replace('"loss": ', '"loss": 1')
    ),
    "pairs gone": lambda f: (f / "pairs.npz").unlink(),
    "pairs negative": lambda f: turn(f / "pairs.npz", lambda rows: -rows),
    "pairs of others": lambda f: turn(f / "pairs.npz", lambda rows: rows[::-1]),
    "pairs beyond": lambda f: turn(f / "pairs.npz", lambda rows: rows + 10**6),
    "pairs of no numbers": lambda f: turn(f / "pairs.npz", lambda rows: rows.astype(str)),
    "pairs of infinity": lambda f: turn(f / "pairs.npz", lambda rows: rows + np.inf),
    "pairs cut": lambda f: (f / "pairs.npz").write_bytes((f / "pairs.npz").read_bytes()[:900]),
    "pairs of nothing": lambda f: keep_files_alone(f / "pairs.npz"),
    "history cut": lambda f: (f / "history.jsonl").write_text("nonsense\n"),
    "weights gone": lambda f: shutil.rmtree(f / "checkpoints"),
    "weights empty": lambda f: [shutil.rmtree(p) for p in (f / "checkpoints").iterdir()],
    "weights cut": lambda f: [shutil.rmtree(p) for p in (f / "checkpoints").glob("*/arrays/d")],
    "record cut": lambda f: [p.write_text("{") for p in (f / "checkpoints").glob("*/record/*")],
    "weights of another network": lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace('"embedding_size": 128', '"embedding_size": 64')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_is_one_line_and_left_alone(damage, run, tmp_path, capfd):
    broken = tmp_path / "broken"
    shutil.copytree(run.path, broken)
    damage(broken)
    before = sorted(path for path in broken.rglob("*"))
    with pytest.raises(SystemExit) as error:
        cli.main(["evaluate", str(broken)])
    errors = capfd.readouterr().err  # what threads print, too
    assert error.value.code == 2
    assert "Traceback" not in errors
    assert errors.count("\n") == 1, errors
    assert str(broken) in errors
    assert sorted(path for path in broken.rglob("*")) == before


class Flat(nn.Module):
    """An encoder of one's own."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(8)(images.reshape(len(images), -1))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Other(Flat):
    """Another one, with weights of the same shapes."""


def test_ones_own_dataset_encoder_and_callback(tmp_path):
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 200, (30, 9, 9, 1))
    names = np.array([f"person {i}" for i in range(30)])
    images = (faces[:, None] + rng.integers(0, 55, (30, 4, 9, 9, 1))).reshape(-1, 9, 9, 1)
    mine = mj.Dataset.from_arrays(images.astype(np.uint8), np.repeat(names, 4))
    encoder = mj.Encoder(Flat())
    config = mj.TrainConfig(
        dataset="own", encoder="own", epochs=2, identities_per_batch=4, out=str(tmp_path / "run")
    )
    seen = []
    run = mj.fit(config, dataset=mine, encoder=encoder, on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == [1, 2]
    assert seen == run.history
    assert set(run.data["identities"]["train"]) < set(names)
    again = mj.load_run(run.path, encoder=encoder)
    np.testing.assert_array_equal(again.embed(mine.examples), run.embed(mine.examples))
    assert plots.plot_margin(run.history).axes[0].get_ylabel() == "margin μ"
    with pytest.raises(ValueError, match=r"is of the network .*Flat\(.*; got .*Other\("):
        mj.load_run(run.path, encoder=mj.Encoder(Other()))
    with pytest.raises(ValueError, match="encoder object and"):
        mj.load_run(run.path)
    with pytest.raises(ValueError, match="given as an object"):
        mj.fit(config.replace(out=str(tmp_path / "other")), encoder=encoder)
    with pytest.raises(ValueError, match="encoder object and"):
        mj.fit(config.replace(out=str(tmp_path / "other")), dataset=mine)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (np.zeros((4, 9, 9, 1), int), np.arange(4), TypeError, "uint8.*got int64"),
        (np.zeros((4, 9, 9), np.uint8), np.arange(4), ValueError, r"shape \(4, 9, 9\)"),
        (np.zeros((4, 9, 9, 2), np.uint8), np.arange(4), ValueError, "1 or 3"),
        (np.zeros((4, 9, 9, 1), np.uint8), np.arange(5), ValueError, r"\(4,\); got \(5,\)"),
    ],
)
def test_ones_own_dataset_is_checked(images, labels, error, message):
    with pytest.raises(error, match=message):
        mj.Dataset.from_arrays(images, labels)


def test_what_may_change_in_a_run_is_not_sealed(run, tmp_path):
    """Such as where the pictures are, which move."""
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    change(moved / "config.json", "epochs", 9)
    assert mj.load_run(moved).report == run.report


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1e308, True, [[1]], {"a": None}])
def test_whatever_a_configuration_says_it_is_read_or_refused_in_words(value):
    good = json.loads(mj.TrainConfig().to_json())
    refused = 0
    for name in good:
        try:
            mj.TrainConfig.from_json(json.dumps({**good, name: value}))
        except ValueError:
            refused += 1
    assert refused > (0 if value is None else 20)

"""Pictures that a file lists."""

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax.data import listing
from margin_jax.runs.evaluate import (
    embed_identities,
)
from margin_jax.runs.run_data import prepare_data

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of each of ten, all in one folder, the shades of theirs."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "deep").mkdir()
    for person in range(10):
        for shot in range(2):
            Image.new("L", (8, 8), 20 * person + shot).save(root / "deep" / f"{person}, {shot}.png")
    return root


def rows(*more):
    """Lines of a list of them; more columns are functions of the person."""
    return [
        [f"deep/{person}, {shot}.png", f"p{person}", *(column(person) for column in more)]
        for person in range(10)
        for shot in range(2)
    ]


def listed(path, head, lines, separator=",", encoding="utf-8", end="\n"):
    cells = [[f'"{cell}"' if "," in cell else cell for cell in line] for line in (head, *lines)]
    path.write_bytes(end.join(map(separator.join, [*cells, []])).encode(encoding))
    return path


def part(person):
    return "train" if person < 4 else "val" if person < 6 else "test"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("plain.csv", {}),
        ("excel.csv", {"encoding": "utf-8-sig", "end": "\r\n"}),
        ("tabs.tsv", {"separator": "\t"}),
        ("unicode.tsv", {"separator": "\t", "encoding": "utf-16", "end": "\r\n"}),
    ],
)
def test_a_list_is_read_as_it_is_written(pictures, name, form):
    lines = [line[::-1] for line in rows()]  # columns in another order
    found = listing.load(listed(pictures / name, ["label", "path"], lines, **form), 8)
    assert found.identities == tuple(f"p{person}" for person in range(10))
    assert found.files[3] == "deep/1, 1.png"
    np.testing.assert_array_equal(found.labels, np.repeat(np.arange(10), 2))
    shades = (20 * np.arange(10)[:, None] + np.arange(2)).ravel()
    np.testing.assert_array_equal(found.examples[:, 4, 4, 0], shades)
    assert found.parts is None
    assert found.groups.tolist() == list(range(10))


def test_its_groups_and_its_split_are_the_run_s(pictures, tmp_path):
    lines = rows(lambda person: f"g{person // 2}", part)
    path = listed(pictures / "split.csv", ["path", "label", "group", "split"], lines)
    config = mj.TrainConfig(
        dataset="list", data_dir=str(path), image_size=8, encoder="mlp", epochs=1, out=str(tmp_path)
    )
    data = prepare_data(config)
    assert [own.tolist() for own in data.split] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert data.dataset.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(data.pairs["hard"].same) > 0
    other = prepare_data(config.replace(split="40/20/40", max_identities=10))
    assert [len(own) for own in other.split] == [4, 2, 4]
    assert config.title == "list-split"
    with pytest.warns(UserWarning, match="a batch has 4 identities of 2 images"):
        run = mj.fit(config)
    assert run.data["identities"]["validation"] == ["p4", "p5"]
    # And pictures that are listed are what a run is evaluated on.
    alike = embed_identities(run, listed(pictures / "few.csv", ["path", "label"], rows()[:4]))
    assert alike.labels.tolist() == [0, 0, 1, 1]


def test_what_can_not_be_read_is_skipped_or_refused(pictures):
    (pictures / "note.txt").write_text("no picture")
    lines = [["note.txt", "p0"], *rows()]
    path = listed(pictures / "note.csv", ["path", "label"], lines)
    found = listing.load(path, 8)
    assert len(found.labels) == len(found.files) == 20
    assert found.skipped == (f"{pictures / 'note.txt'}: not an image",)
    with pytest.raises(ValueError, match=r"1 unreadable file\(s\) of .*note.csv, first .*note.txt"):
        listing.load(path, 8, strict=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no images: expected columns path, label, group, split"),
        ("path,label\n", "lists no images"),
        ("path,who\na,b\n", "must name columns path and label, .*; got path, who"),
        ("path;label\na;b\n", "must name columns .*; got path;label"),
        ("path,label,path\na,b,c\n", "each once; got path, label, path"),
        ("path\na\n", "must name columns path and label"),
        ('path,label\n"deep/0, 0.png",\n', "line 2: expected path, label; got .*''"),
        ("path,label\n\na\n", "line 3: expected path, label; got .'a'."),
        ("path,label\na,b,c\n", "line 2: expected path, label; got"),
        ("path,label\na,b\nc,d\n", r"2 of 2 files in .* are missing, first .*/a \(line 2\)"),
        (
            'path,label\n"deep/0, 0.png",a\n"deep/0, 0.png",b\n',
            "line 3: .*deep/0, 0.png is listed in line 2 already",
        ),
        ('path,label\n"deep/0, 0.png",a\n', "at least two identities .*; got 1"),
        (
            'path,label,group\n"deep/0, 0.png",a,f\n"deep/0, 1.png",a,m\n"deep/1, 0.png",b,m\n',
            "of one group; 'a' has 'f' and 'm'",
        ),
        (
            'path,label,split\n"deep/0, 0.png",a,train\n"deep/1, 0.png",b,tst\n',
            "split of a row must be one of train, validation, val, test; got 'tst'.* 'test'",
        ),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(pictures, text, said):
    path = pictures / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        listing.load(path, 8)


def test_an_identity_in_two_parts_is_refused_unless_another_split_is_asked_for(pictures, tmp_path):
    lines = [[*line, ("train", "test")[i % 2]] for i, line in enumerate(rows())]
    path = listed(pictures / "closed.csv", ["path", "label", "split"], lines)
    config = mj.TrainConfig(dataset="list", data_dir=str(path), image_size=8, encoder="mlp")
    with pytest.raises(
        ValueError,
        match="'p0' is in train and test: choose another split, such as --split 40/10/50",
    ):
        prepare_data(config)
    assert prepare_data(config.replace(split="40/20/40")).pairs


def test_another_ending_is_no_list(tmp_path):
    with pytest.raises(ValueError, match=r"the ending of a list must be one of \.csv, \.tsv; got"):
        listing.load(tmp_path / "list.txt", 8)
    with pytest.raises(ValueError, match=r"cannot read the list .*: No such file"):
        listing.load(tmp_path / "list.csv", 8)

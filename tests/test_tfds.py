"""TensorFlow Datasets. What prepares them needs TensorFlow, and is skipped without it."""

import gzip
import importlib.util
import io
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from margin_jax.data import default_split, load_dataset
from margin_jax.data.presets import PRESETS, get_preset
from margin_jax.data.tfds import prepared

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not HAS_TENSORFLOW, reason="preparing needs TensorFlow")
F = tfds.features

# --- data sets that are prepared without TensorFlow ---
# The mock data of TFDS will not do: without TensorFlow it has no encoded images.


def noise(count, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()


def prepare(folder, name, features, **parts):
    """Writes the records of each part, two shards of them, as TFDS would. Returns the folder."""
    folder.mkdir(parents=True)
    pattern = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    infos = []
    for part, records in parts.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name,
            data_dir=folder,
            split=part,
            filetype_suffix="array_record",
            template=pattern,
        )
        shards = [records[: len(records) // 2], records[len(records) // 2 :]]
        for shard, rows in enumerate(shards):
            path = template.sharded_filepath(shard_index=shard, num_shards=len(shards))
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in rows:
                # Without TensorFlow, encoded images are taken from files only.
                files = {k: io.BytesIO(v) if isinstance(v, bytes) else v for k, v in record.items()}
                writer.write(features.serialize_example(files))
            writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=part,
                shard_lengths=[len(rows) for rows in shards],
                num_bytes=sum(path.stat().st_size for path in folder.glob(f"{name}-{part}.*")),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        filename_template=pattern,
        check_data=False,
    )
    return folder


def prepare_own(root, labels, kind=None, name="own"):
    """A data set that has no builder. Returns its images."""
    images = noise(len(labels))
    features = F.FeaturesDict({"image": F.Image(shape=(None, None, 1)), "label": kind or F.Text()})
    rows = [
        {"image": png(image), "label": label} for image, label in zip(images, labels, strict=True)
    ]
    prepare(root / name / "1.0.0", name.partition("/")[0], features, train=rows)
    return images


def refuse(text, *args, **options):
    with pytest.raises(ValueError, match=text) as caught:
        load_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# What else the official features hold.
BOX = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
MORE = {
    "caltech_birds2011": {"image/filename": "a.jpg", "label_name": "a", "bbox": BOX},
    "cars196": {"bbox": BOX, "id": "1"},
    "omniglot": {"alphabet": 0, "alphabet_char_id": 1},
}


@pytest.mark.parametrize("name", [*PRESETS, "emnist:balanced"])
def test_official_data_is_read_as_its_preset_says(tmp_path, name):
    base = name.partition(":")[0]
    preset = get_preset(name)
    builder = tfds.builder(
        name.replace(":", "/"), data_dir=str(tmp_path), file_format="array_record"
    )
    features = builder.info.features
    if base == "lfw":
        labels = identities = ["Ada Lovelace", "Noël Coward", "محمد", "赵忠尧"]
    else:
        if base == "caltech_birds2011":  # it has the names from a file that it downloads
            features["label"].names = [f"{i:03}.Bird" for i in range(200)]
        labels = [1, 3, 4, 9]
        identities = [features["label"].int2str(label) for label in labels]
    images = noise(12, preset.image_size, preset.channels)
    colour = features["image"].shape[-1] == 3
    rows = []
    for image, label in zip(images, labels * 3, strict=True):
        stored = np.broadcast_to(image, (*image.shape[:2], 3)) if colour else image
        rows.append({"image": png(stored), "label": label, **MORE.get(base, {})})
        if "segmentation_mask" in features:
            rows[-1]["segmentation_mask"] = png(image[..., :1])
    parts = {"train": rows[:8], "test": rows[8:]}
    if base == "lfw":
        parts = {"train": rows}
    if base == "omniglot":  # parts of train
        parts |= {"small1": rows[:2], "small2": rows[2:6]}
    prepare(Path(builder.data_path), base, features, **parts)

    data = load_dataset(f"tfds:{name}", tmp_path, strict=True)
    assert np.array_equal(data.examples, images)
    assert data.identities == tuple(identities)
    assert data.labels.tolist() == [0, 1, 2, 3] * 3
    assert data.files == tuple(f"image {row}" for row in range(12))
    assert data.skipped == ()
    expected = name if name != "emnist" else "emnist:byclass"  # the first of its configurations
    assert prepared(tmp_path) == [expected]


def test_presets_of_few_identities_have_a_split_of_their_own():
    assert default_split("tfds:mnist") == default_split("tfds:fashion_mnist") == "40/20/40"
    assert default_split("tfds:emnist:digits") == default_split("tfds:own") == "40/10/50"


# --- your own ---


@pytest.mark.parametrize("name", ["own", "own/aligned"])
def test_own_data_needs_no_builder(tmp_path, name):
    images = prepare_own(tmp_path, ["b", "a", "b", "a"], name=name)
    name = name.replace("/", ":")
    data = load_dataset(f"tfds:{name}", tmp_path, image_size=8)
    assert np.array_equal(data.examples, images)
    assert data.identities == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1, 0]
    assert load_dataset(f"tfds:{name}", tmp_path).examples.shape == (4, 64, 64, 1)
    assert prepared(tmp_path) == [name]


def test_numbers_name_identities_in_their_order(tmp_path):
    prepare_own(tmp_path, [10, 9, -1, 9], F.Scalar(np.int64))
    data = load_dataset("tfds:own", tmp_path)
    assert data.identities == ("-1", "9", "10")
    assert data.labels.tolist() == [2, 1, 0, 1]


def test_images_without_a_label_are_left_out(tmp_path):
    images = prepare_own(tmp_path, [-1, 2, -1, 0, 2], F.ClassLabel(names=["x", "y", "z"]))
    data = load_dataset("tfds:own", tmp_path, image_size=8, strict=True)
    assert np.array_equal(data.examples, images[[1, 3, 4]])
    assert data.identities == ("x", "z")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.files == ("image 1", "image 3", "image 4")


def test_label_key_leads_to_a_nested_feature(tmp_path):
    features = F.FeaturesDict(
        {
            "image": F.Image(shape=(None, None, 3)),
            "identity": {"Identity_No": np.int64, "Male": np.bool_},
            "image/place": F.Text(),
        }
    )
    rows = [
        {
            "image": png(image),
            "identity": {"Identity_No": n, "Male": True},
            "image/place": f"p{n % 2}",
        }
        for n, image in enumerate(noise(3))
    ]
    prepare(tmp_path / "people" / "1.0.0", "people", features, train=rows)
    data = load_dataset("tfds:people", tmp_path, label_key="identity/Identity_No")
    assert data.identities == ("0", "1", "2")
    assert data.examples.shape == (3, 64, 64, 3)  # as the feature says, though all of them are grey
    data = load_dataset("tfds:people", tmp_path, label_key="image/place")
    assert data.identities == ("p0", "p1")
    # The error offers what can be one, nested features too; a yes or no is none.
    offer = "one of identity/Identity_No, image/place; got "
    for key in (None, "identity", "identity/Male", "identity/Identity_No/x", "image", "no"):
        refuse(offer + str(key), "tfds:people", tmp_path, label_key=key)


def test_which_feature_is_the_image_must_be_clear(tmp_path):
    image = F.Image(shape=(None, None, 1))
    first, second = noise(2)
    for name, keys in [("two", "ab"), ("one", "a"), ("none", ""), ("named", [*"abcdef", "image"])]:
        features = F.FeaturesDict({"label": F.Text(), **dict.fromkeys(keys, image)})
        rows = [
            {"label": label, **{key: png(second if key == "image" else first) for key in keys}}
            for label in "xy"
        ]
        prepare(tmp_path / name / "1.0.0", name, features, train=rows)
    refuse("must have one feature that is an image.*got a, b", "tfds:two", tmp_path)
    refuse("must have one feature that is an image.*got none", "tfds:none", tmp_path)
    assert np.array_equal(load_dataset("tfds:one", tmp_path, 8).examples, [first, first])
    assert np.array_equal(load_dataset("tfds:named", tmp_path, 8).examples, [second, second])


def test_a_corrupt_image_is_skipped_or_refused(tmp_path):
    names = ["a", "b", "c"]
    features = F.FeaturesDict(
        {"image": F.Image(shape=(None, None, 1)), "label": F.ClassLabel(names=names)}
    )
    images = noise(6)
    files = [png(image) for image in images]
    files[2] = files[2][:60]
    files[4] = b"not an image"
    labels = [-1, 0, 1, 0, 2, 1]
    rows = [{"image": file, "label": label} for file, label in zip(files, labels, strict=True)]
    prepare(tmp_path / "own" / "1.0.0", "own", features, train=rows)
    prepare(tmp_path / "alone" / "1.0.0", "alone", features, train=rows[:3])
    for limit in (0, np.inf):
        data = load_dataset("tfds:own", tmp_path, 8, memory_limit=limit)
        assert np.array_equal(data.examples[:], images[[1, 3, 5]])
        assert data.identities == ("a", "b")  # c has no image that can be read
        assert data.labels.tolist() == [0, 0, 1]
        assert data.files == ("image 1", "image 3", "image 5")
        assert [text.split(":")[0] for text in data.skipped] == ["image 2", "image 4"]
    refuse("2 unreadable.*own, first image 2: ", "tfds:own", tmp_path, strict=True)
    refuse("two identities in alone; got 1 .*image 2: ", "tfds:alone", tmp_path)


def test_one_identity_is_too_few(tmp_path):
    prepare_own(tmp_path, ["a", "a"])
    refuse("expected at least two identities in own; got 1", "tfds:own", tmp_path)


# --- in memory or not ---


def test_streamed_images_equal_those_in_memory_also_from_threads(tmp_path):
    images = prepare_own(tmp_path, [f"{i % 7}" for i in range(300)])
    held = load_dataset("tfds:own", tmp_path, 8)
    data = load_dataset("tfds:own", tmp_path, 8, memory_limit=0)
    assert isinstance(held.examples, np.ndarray)
    assert not isinstance(data.examples, np.ndarray)
    assert np.array_equal(held.examples, images)
    assert np.array_equal(data.examples[:], images)
    assert np.array_equal(data.labels, held.labels)
    assert data.identities == held.identities
    rng = np.random.default_rng(1)
    picks = [rng.integers(0, 300, 40) for _ in range(64)]
    with ThreadPoolExecutor(8) as threads:
        for pick, read in zip(picks, threads.map(data.examples.__getitem__, picks), strict=True):
            assert np.array_equal(read, images[pick])


def test_reading_never_imports_tensorflow(tmp_path):
    prepare_own(tmp_path, ["a", "b"])
    script = (
        "import sys; from margin_jax.data import load_dataset; "
        f"print(load_dataset('tfds:own', {str(tmp_path)!r}, memory_limit=0).examples[:].shape, "
        "'tensorflow' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.strip() == "(2, 64, 64, 1) False", ran.stderr


# --- what is not there ---


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    refuse(r"no tfds:mnits, neither .* Did you mean mnist", "tfds:mnits", tmp_path)
    refuse(rf"no tfds:zzz, .* nor prepared in {tmp_path}: .*not found$", "tfds:zzz", tmp_path)
    refuse("tfds:mnist has no configurations; got 'big'", "tfds:mnist:big", tmp_path)
    refuse("byclass, .*; got 'balance'.*'balanced'", "tfds:emnist:balance", tmp_path)
    refuse("label_key .*one of identity/Identity_No, .*got None", "tfds:celeb_a", tmp_path)
    refuse(
        "tfds:imdb_reviews must have one feature that is an image", "tfds:imdb_reviews", tmp_path
    )
    assert list(tmp_path.iterdir()) == []
    assert prepared(tmp_path) == []


def test_preparing_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tensorflow" else find_spec(name, *more),
    )
    refuse(r"needs TensorFlow, once; .*pip install 'margin-jax\[prepare\]'", "tfds:mnist", tmp_path)


def test_manual_dir_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: True)
    missing = tmp_path / "missing"
    refuse(f"there is no folder {missing}", "tfds:mnist", tmp_path, manual_dir=missing)


# --- what is not whole ---


def test_a_folder_that_is_not_finished_is_not_read(tmp_path):
    """TFDS writes in such a folder, and renames it at the end."""
    prepare_own(tmp_path, ["a", "b"])
    whole = tmp_path / "own" / "1.0.0"
    half = whole.with_name("incomplete.ABC_1.0.0")
    whole.rename(half)
    assert prepared(tmp_path) == []
    refuse("no tfds:own", "tfds:own", tmp_path)
    images = prepare_own(tmp_path, ["c", "d", "e"])
    assert prepared(tmp_path) == ["own"]
    data = load_dataset("tfds:own", tmp_path, 8)
    assert data.identities == ("c", "d", "e")
    assert np.array_equal(data.examples, images)


def test_a_copy_that_is_not_whole_is_refused(tmp_path):
    builder = tfds.builder("mnist", data_dir=str(tmp_path), file_format="array_record")
    # More than 64 KiB, below which array_record reads what is cut as empty records.
    for seed, size in enumerate((8, 150)):
        folder = Path(builder.data_path)
        rows = [{"image": png(x), "label": i % 3} for i, x in enumerate(noise(8, size, seed=seed))]
        prepare(folder, "mnist", builder.info.features, train=rows)
        assert len(load_dataset("tfds:mnist", tmp_path).labels) == 8
        shard = folder / "mnist-train.array_record-00001-of-00002"
        whole = shard.read_bytes()
        for bad in (whole[: len(whole) // 2], whole[:-65536], b""):
            shard.write_bytes(bad)
            refuse(f"{folder} is damaged: .*; delete it", "tfds:mnist", tmp_path)
        shard.unlink()
        refuse(f"{folder} is damaged: .*No such file", "tfds:mnist", tmp_path)
        (folder / "dataset_info.json").write_text("{")
        refuse("could not open tfds:mnist: .*JSON", "tfds:mnist", tmp_path)
        (folder / "dataset_info.json").unlink()
        refuse(f"{folder} is damaged: there is no dataset_info.json", "tfds:mnist", tmp_path)
        shutil.rmtree(folder)


def test_tfrecord_is_refused_with_what_to_do(tmp_path):
    builder = tfds.builder("mnist", data_dir=str(tmp_path), file_format="array_record")
    rows = [{"image": png(x), "label": i} for i, x in enumerate(noise(2))]
    official = prepare(Path(builder.data_path), "mnist", builder.info.features, train=rows)
    prepare_own(tmp_path, ["a", "b"])
    for name, folder in [("mnist", official), ("own", tmp_path / "own" / "1.0.0")]:
        load_dataset(f"tfds:{name}", tmp_path)
        path = folder / "dataset_info.json"
        info = json.loads(path.read_text())
        assert info["fileFormat"] == "array_record"
        path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
        refuse("must be prepared as array_record; .*another data_dir", f"tfds:{name}", tmp_path)


# --- preparing ---


@pytest.fixture
def python(tmp_path_factory):
    """Runs a script in a process of its own: TensorFlow warns, stays, and is slow to import."""
    path = tmp_path_factory.mktemp("script") / "script.py"

    def run(script, *arguments):
        path.write_text(script)
        command = [sys.executable, path, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def idx(name, header):
    return np.frombuffer(gzip.decompress((MNIST / f"{name}-ubyte.gz").read_bytes()), np.uint8)[
        header:
    ]


@needs_tensorflow
@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the files of MNIST in ../shared/data/mnist")
def test_mnist_is_prepared_by_its_official_builder(tmp_path, python):
    script = (
        "import sys; from margin_jax.data import load_dataset; "
        "load_dataset('tfds:mnist', sys.argv[1], manual_dir=sys.argv[2])"
    )
    ran = python(script, tmp_path, MNIST)
    assert ran.returncode == 0, ran.stderr
    data = load_dataset("tfds:mnist", tmp_path, strict=True)
    images, labels = (
        np.concatenate([idx(f"{part}-{kind}", header) for part in ("train", "t10k")])
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    assert data.examples.shape == (70_000, 28, 28, 1)
    assert data.identities == tuple("0123456789")

    def count(images, labels):
        rows = zip(labels.tolist(), images.reshape(-1, 28 * 28), strict=True)
        return Counter((label, image.tobytes()) for label, image in rows)

    assert count(data.examples, data.labels) == count(images, labels)


# A builder of noise, that ends in the middle as the environment says.
BUILDER = """
import json, os, resource, signal, sys
import numpy as np
import tensorflow_datasets as tfds
from margin_jax.data import load_dataset

class Noise(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    stop = None

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(64, 64, 1)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        images = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 1), np.uint8)
        for i, image in enumerate(images):
            if i == 50 and self.stop is not None:
                os.kill(os.getpid(), self.stop)
            yield i, {"image": image, "label": i % 4}

def attempt(name, **options):
    try:
        print(json.dumps(load_dataset(name, sys.argv[1], **options).examples.shape))
    except ValueError as error:
        print(json.dumps(" ".join(str(error).split())))
"""


@needs_tensorflow
def test_a_killed_preparation_leaves_nothing_that_is_read(tmp_path, python):
    ran = python(BUILDER + "Noise.stop = signal.SIGKILL; attempt('tfds:noise')", tmp_path)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    (left,) = (tmp_path / "noise").iterdir()
    assert left.name.startswith("incomplete.")
    assert prepared(tmp_path) == []
    refuse("no tfds:noise", "tfds:noise", tmp_path)
    ran = python(BUILDER + "attempt('tfds:noise')", tmp_path)
    assert "[100, 64, 64, 1]" in ran.stdout, ran.stderr
    images = load_dataset("tfds:noise", tmp_path).examples
    expected = noise(100, 64)
    assert Counter(x.tobytes() for x in images) == Counter(x.tobytes() for x in expected)


@needs_tensorflow
def test_what_ends_a_preparation_is_said_in_one_line(tmp_path, python):
    files = tmp_path / "files"
    files.mkdir()
    for part, kind in itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1")):
        (files / f"{part}-{kind}-ubyte.gz").write_bytes(b"cut short")
    script = f"""{BUILDER}
attempt("tfds:mnist", manual_dir=sys.argv[2])
attempt("tfds:imagenet2012")
attempt("tfds:imagenet2012", manual_dir=sys.argv[2])
most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most[1]))  # a file ends as on a full disk
attempt("tfds:noise")
print(json.dumps(os.listdir(sys.argv[1] + "/noise")))
resource.setrlimit(resource.RLIMIT_FSIZE, most)
attempt("tfds:noise")
"""
    ran = python(script, tmp_path / "data", files)
    assert ran.returncode == 0, ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines() if line[:1] in ('"', "[")]
    checksum, by_hand, missing, full, left, again = said
    assert re.match(rf"could not prepare tfds:mnist: .*{files}/t.* has wrong checksum\. ", checksum)
    assert re.search(r"by hand .*manual_dir: t10k-images-idx3-ubyte.gz, .*\.gz$", checksum)
    assert re.match(r"could not prepare tfds:imagenet2012: .*/manual does not exist", by_hand)
    assert re.match(r"could not .*/files/ILSVRC2012_img_val.tar; No such file", missing)
    for line in (by_hand, missing):
        assert "should contain two files: ILSVRC2012_img_train.tar and ILSVRC2012_img_val" in line
    assert re.match("could not prepare tfds:noise: .* File too large; writing .*noise-train", full)
    assert max(map(len, said)) < 600
    assert left == []
    assert again == [100, 64, 64, 1]


@needs_tensorflow
def test_archives_write_nothing_outside_their_folder(tmp_path, python):
    """What TFDS sees to; a reason to leave extracting to it."""
    outside = tmp_path / "outside"
    files, downloads = tmp_path / "files", tmp_path / "downloads"
    for folder in (outside, files):
        folder.mkdir()
    names = ["good.txt", "../up.txt", "a/../../up.txt", f"{outside}/absolute.txt", "link/on.txt"]
    with zipfile.ZipFile(files / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "text")
    for kind in ("tar", "tar.gz"):
        with tarfile.open(files / f"a.{kind}", "w:gz" if kind == "tar.gz" else "w") as archive:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            archive.addfile(link)
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"text"))
    before = set(tmp_path.rglob("*"))
    script = (
        "import sys, tensorflow_datasets as tfds; "
        "tfds.download.DownloadManager(download_dir=sys.argv[1]).extract(sys.argv[2:])"
    )
    ran = python(script, downloads, *files.iterdir())
    assert ran.returncode == 0, ran.stderr
    written = [path for path in tmp_path.rglob("*") if path not in before and path.is_file()]
    inside = [path.relative_to(downloads / "extracted") for path in written]
    expected = {
        f"{kind}.a.{kind.lower().replace('_', '.')}/{name}"
        for kind in ("TAR", "TAR_GZ", "ZIP")
        for name in ("good.txt", "link/on.txt")
    }
    assert {path.as_posix() for path in inside} == expected

"""Features of a dataset in a file: what is in it, and what is left of a job that was stopped."""

import hashlib
import json
import os
import resource
import sys
import zipfile

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.models import PRETRAINED, Weights, pretrained
from margin_jax.models.make import make_module

N = 23
pytestmark = pytest.mark.filterwarnings("ignore:the weights of mlp are drawn at random")


def pictures(n=N, size=6, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def dataset(**options):
    return mj.Dataset.from_arrays(pictures(**options), np.array([f"no{i % 5}" for i in range(N)]))


def flat(examples):
    return examples.reshape(len(examples), -1).astype(np.float32)


def read(path):
    with np.load(path) as file:  # which refuses pickles
        return dict(file)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "rows.npz"


def test_the_file_has_the_features_with_names(out):
    data = dataset()
    assert mj.extract_features(data, flat, out, batch_size=4, about={"by": "hand"}) == out
    found = read(out)
    assert sorted(found) == ["about", "features", "files", "labels"]
    assert found["features"].dtype == np.float32
    np.testing.assert_array_equal(found["features"], flat(data.examples))
    assert found["labels"].tolist() == [f"no{i % 5}" for i in range(N)]
    assert found["files"].tolist() == list(data.files)
    about = json.loads(found["about"].item())
    expected = {"encoder": "flat", "by": "hand", "examples": N, "example_shape": [6, 6, 1]}
    expected |= {"sha256": data.digest(), "margin_jax": mj.__version__}
    assert expected.items() <= about.items()
    with zipfile.ZipFile(out) as archive:  # so that it can be mapped into memory
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert list(out.parent.iterdir()) == [out]


def test_groups_of_several_identities_are_kept(out):
    letters = mj.load_dataset("glyphs").first(9)
    mj.extract_features(letters, flat, out)
    assert "groups" not in read(out)
    grouped = mj.load_dataset("glyphs")
    assert len(set(grouped.groups)) < len(grouped.groups)
    mj.extract_features(grouped, lambda x: flat(x)[:, :3], out, overwrite=True)
    np.testing.assert_array_equal(read(out)["groups"], grouped.groups[grouped.labels])


def test_the_features_of_a_list_are_read_as_vectors(out):
    rows = ["path,label,group,split"]
    for i in range(12):
        Image.fromarray(pictures(1, seed=i)[0, ..., 0]).save(out.parent / f"{i}.png")
        rows.append(f"{i}.png,p{i // 2},g{i // 4},{('train', 'val', 'test')[i // 4]}")
    (out.parent / "list.csv").write_text("\n".join(rows))
    listed = mj.load_dataset("list", out.parent / "list.csv", 8)
    mj.extract_features(listed, flat, out, views=2, augment="flip")
    found = mj.load_dataset("vectors", out)
    np.testing.assert_array_equal(found.examples, flat(listed.examples))
    assert found.views.shape == (12, 2, 64)
    assert found.identities == listed.identities
    assert list(found.files) == list(listed.files)
    for name in ("labels", "parts", "groups"):
        np.testing.assert_array_equal(getattr(found, name), getattr(listed, name))
    assert found.notes == ()


def test_the_network_never_sees_more_than_a_batch(out):
    sizes = []

    def trunk(examples):
        sizes.append(len(examples))
        return flat(examples)

    mj.extract_features(dataset(), trunk, out, batch_size=10)
    assert sizes == [10, 10, 3]


def test_a_network_of_linen_without_parameters(out):
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, examples, *, train):
            return examples.reshape(len(examples), -1)

    data = dataset()
    mj.extract_features(data, mj.Encoder(Flat()), out)
    x = data.examples / 255
    np.testing.assert_allclose(read(out)["features"], flat((x - x.mean()) / x.std()), atol=1e-4)


# Views


def test_views_are_copies_that_the_augmentation_moved(out):
    data = dataset()
    mj.extract_features(data, flat, out, views=3, augment="flip", batch_size=8)
    views = read(out)["views"].reshape(N, 3, 6, 6, 1)
    same = (views == data.examples[:, None]).all(axis=(2, 3, 4))
    mirrored = (views == data.examples[:, None, :, ::-1]).all(axis=(2, 3, 4))
    assert (same | mirrored).all()
    assert 0.2 < same.mean() < 0.8
    assert len({tuple(column) for column in same.T}) == 3


def test_views_depend_on_the_seed_and_on_no_batch(out):
    def views(**options):
        options = {"views": 2, "augment": "shift:2,crop:0.7", "batch_size": 8, **options}
        mj.extract_features(dataset(), flat, out, overwrite=True, **options)
        return read(out)["views"]

    usual = views()
    np.testing.assert_array_equal(views(batch_size=5), usual)
    assert np.mean(views(seed=1) != usual) > 0.5


# Stopped and gone on with


class Stop(Exception):
    pass


def stopping(after):
    """A trunk that fails after so many calls, and the rows that it has seen."""
    seen = []

    def trunk(examples):
        if len(seen) == after:
            raise Stop
        seen.append(len(examples))
        return flat(examples)

    return trunk, seen


@pytest.mark.parametrize("options", [{}, {"views": 1, "augment": "flip"}])
@pytest.mark.parametrize("garbage", [b"", b"half a row"])
def test_a_stopped_job_goes_on_where_it_was(out, options, garbage):
    options = {"batch_size": 4, "about": {"encoder": "mine"}, **options}
    whole = mj.extract_features(dataset(), flat, out.with_name("whole.npz"), **options)
    per_batch = 1 + options.get("views", 0)
    trunk, _ = stopping(after=3 * per_batch)
    with pytest.raises(Stop):
        mj.extract_features(dataset(), trunk, out, **options)
    assert not out.exists()
    rows = out.with_name("rows.npz.partial") / "features.rows"
    assert rows.stat().st_size == 12 * 36 * 4
    rows.write_bytes(rows.read_bytes() + garbage)
    trunk, seen = stopping(after=None)
    mj.extract_features(dataset(), trunk, out, **options)
    # The first batch again, to see that it is the same network, and those that are left.
    assert sum(seen) == (4 + N - 12) * per_batch
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["rows.npz", "whole.npz"]


@pytest.mark.parametrize("rows", [10, N])
def test_a_full_disk_stops_a_job_that_goes_on(out, rows):
    """Full before the last row is written, or when the file is made of them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rows * 36 * 4 + 5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*rows\.npz\.partial/.*: File too large"):
            mj.extract_features(dataset(), flat, out, batch_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not out.exists()
    mj.extract_features(dataset(), flat, out, batch_size=4)
    np.testing.assert_array_equal(read(out)["features"], flat(pictures()))
    assert list(out.parent.iterdir()) == [out]


def stopped(out, **options):
    with pytest.raises(Stop):
        mj.extract_features(dataset(), stopping(after=2)[0], out, batch_size=4, **options)


def test_another_job_is_refused_unless_it_is_overwritten(out):
    about = {"encoder": "mine"}
    stopped(out, about=about)

    def message(data, trunk, **options):
        with pytest.raises(ValueError, match=r"rows\.npz\.partial") as caught:
            mj.extract_features(data, trunk, out, **{"batch_size": 4, "about": about, **options})
        return str(caught.value)

    assert "another job, whose seed is 0 and not 1: add --overwrite" in message(
        dataset(), flat, seed=1
    )
    assert "whose sha256 is" in message(dataset(seed=1), flat)
    assert "features of another network" in message(dataset(), lambda x: 2 * flat(x))
    assert "features of another network" in message(dataset(), lambda x: flat(x)[:, :5])
    mj.extract_features(dataset(), lambda x: 2 * flat(x), out, seed=1, overwrite=True)
    np.testing.assert_array_equal(read(out)["features"], 2 * flat(pictures()))
    assert list(out.parent.iterdir()) == [out]


def test_what_is_not_ours_is_not_touched(out):
    mj.extract_features(dataset(), flat, out)
    with pytest.raises(ValueError, match=r"rows.npz exists: add --overwrite"):
        mj.extract_features(dataset(), flat, out)
    folder = out.with_name("rows.npz.partial")
    folder.mkdir()
    (folder / "job.json.partial").write_text("{")  # of a full disk
    mj.extract_features(dataset(), flat, out, overwrite=True)
    assert not folder.exists()
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and of no job"):
        mj.extract_features(dataset(), flat, out, overwrite=True)
    (folder / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged: job.json: .*; remove it"):
        mj.extract_features(dataset(), flat, out, overwrite=True)
    assert (folder / "letter.txt").read_text() == "dear"


# Networks


def test_published_weights_come_with_their_normalisation(out, tmp_path, monkeypatch):
    """The weights of a trunk that is compiled soon, in place of an image network's."""
    trunk = make_module("mlp", 1).trunk
    variables = trunk.init(jax.random.key(5), np.zeros((1, 6, 6, 3)), train=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"tensors")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    monkeypatch.setitem(PRETRAINED, "mlp", Weights("timm/mlp", mean, std))
    monkeypatch.setattr(pretrained, "load_weights", lambda name, path: (variables["params"], {}))
    data = dataset()  # grey, and the network sees colour
    mj.extract_features(data, "mlp", out, weights=weights, batch_size=16)
    found = read(out)
    x = (np.repeat(data.examples, 3, axis=-1) / 255 - mean) / std
    expected = trunk.apply(variables, x.astype(np.float32), train=False)
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-4)
    sha = hashlib.sha256(b"tensors").hexdigest()
    told = {"name": "mlp", "dtype": "float32", "weights": f"sha256:{sha}"}
    assert json.loads(found["about"].item())["encoder"] == told
    floats = mj.Dataset.from_arrays(np.ones((N, 4)), np.arange(N) // 2)
    with pytest.raises(ValueError, match=r"by name are for pictures, uint8; got .* float64"):
        mj.extract_features(floats, "mlp", out, weights=weights, overwrite=True)


def test_without_weights_they_are_drawn_by_the_seed(out):
    def features(**options):
        mj.extract_features(dataset(), "mlp", out, overwrite=True, **options)
        return read(out)["features"]

    with pytest.warns(UserWarning, match="the weights of mlp are drawn at random"):
        usual = features()
    assert usual.shape == (N, 256)
    np.testing.assert_allclose(features(devices=4, batch_size=8), usual, atol=1e-5)
    assert not np.allclose(features(seed=1), usual, atol=1e-2)


def test_features_of_a_module_that_has_learned(out):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(36, 5, rngs=rngs)

        def __call__(self, x):
            return self.dense(x.reshape(len(x), -1))

    net = Net(nnx.Rngs(3))
    mj.extract_features(dataset(), mj.Encoder(net), out, batch_size=8)
    found = read(out)
    x = pictures() / np.float32(255)
    np.testing.assert_allclose(
        found["features"], net((x - x.mean()) / x.std()), rtol=1e-4, atol=1e-5
    )
    assert "185 parameters" in json.loads(found["about"].item())["encoder"]


def test_features_of_a_network_of_torch(out):
    """As the guide has it for timm."""
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())

    def trunk(images):
        x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        with torch.inference_mode():
            return model(x).numpy()

    data = dataset(channels=3)
    mj.extract_features(data, trunk, out, batch_size=8)
    np.testing.assert_allclose(read(out)["features"], trunk(data.examples), atol=1e-5)


def test_features_of_examples_that_are_no_pictures(out):
    x = np.random.default_rng(0).normal(size=(N, 3, 4))
    data = mj.Dataset.from_arrays(x, np.arange(N) // 3)
    mj.extract_features(data, lambda x: x.mean(axis=1), out, feature_dtype="float16")
    found = read(out)["features"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, x.mean(axis=1), atol=1e-3)


# What is refused


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("small_cnn", {}, "a trunk, which encoder small_cnn does not have"),
        ("head:hidden=8,dropout=0", {}, "a trunk, which encoder head does not have"),
        ("mpl", {}, "Did you mean 'mlp'"),
        ("mlp", {"pretrained": True}, "--encoder with pretrained weights must be one of"),
        (flat, {"pretrained": True}, "for an encoder by name"),
        (flat, {"views": 2}, "views and augment need each other, .*; got 2 and 'none'"),
        (flat, {"augment": "flip"}, "views and augment need each other"),
        (flat, {"batch_size": 0}, "batch_size must be at least 1 and at most"),
        (flat, {"feature_dtype": "float"}, "feature_dtype must be one of float32, float16"),
        (flat, {"views": 1, "augment": "shift:6"}, "shift:6 needs images larger than 6 pixels"),
        (lambda x: x, {}, r"features must have shape \(23, d\); got \(23, 6, 6, 1\)"),
        (lambda x: flat(x)[1:], {}, r"features must have shape \(23, d\); got \(22, 36\)"),
        (lambda x: flat(x) * [np.nan] * 36, {}, "finite numbers of float32; those of example 0"),
        (lambda x: 1e4 * flat(x), {"feature_dtype": "float16"}, "finite numbers of float16"),
    ],
)
def test_what_can_not_be_is_refused(out, encoder, options, message):
    with pytest.raises(ValueError, match=message):
        mj.extract_features(dataset(), encoder, out, **options)
    assert not out.exists()


def test_what_is_no_encoder_is_refused(out):
    with pytest.raises(TypeError, match="encoder must be a name, an Encoder or a function; got 3"):
        mj.extract_features(dataset(), 3, out)


def test_bad_weights_are_noticed_before_examples_are_loaded(out):

    def load():
        raise AssertionError

    with pytest.raises(ValueError, match=r"there is no file no\.safetensors"):
        mj.extract_features(load, "efficientnet_lite0", out, weights="no.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        mj.extract_features(load, flat, out.with_suffix(".npy"))


# The command


def test_the_command_reads_a_folder(tmp_path, capsys, out):
    for i, picture in enumerate(pictures(8, size=9)):
        path = tmp_path / "people" / f"p{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(path)
    (tmp_path / "people" / "p0" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    command = f"features {tmp_path / 'people'} --encoder mlp --image-size 8 --out {out}"
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split())
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert "skipped p0/cut.png" in told.err
    assert f"{out}: 8/8 examples" in told.err
    found = read(out)
    assert found["features"].shape == (8, 256)
    assert found["files"].tolist()[:2] == ["p0/0.png", "p0/2.png"]
    about = json.loads(found["about"].item())
    assert about["dataset"] == "folder-people"
    assert about["encoder"] == {"name": "mlp", "dtype": "float32"}
    data = mj.load_dataset("folder", tmp_path / "people", 8)
    with pytest.warns(UserWarning, match="drawn"):
        mj.extract_features(data, "mlp:dtype=float32", out, overwrite=True)
    np.testing.assert_array_equal(read(out)["features"], found["features"])


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_the_command_line_goes_over_the_file_and_a_name_may_be_no_text(tmp_path, capsys, out):
    people = tmp_path / os.fsdecode(b"caf\xe9")
    for i, picture in enumerate(pictures(4)):
        (people / f"p{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(people / f"p{i % 2}" / f"{i}.png")
    said = {"dataset": "list", "data_dir": "other.csv", "encoder": "mlp", "image_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["features", str(people), "--config", f"{tmp_path}/config.json", "--out", str(out)]
        )
    assert ended.value.code == 0
    assert json.loads(read(out)["about"].item())["dataset"] == r"folder-caf\udce9"
    assert capsys.readouterr().out == f"{out}\n"


def test_an_interrupted_command_tells_how_to_go_on(tmp_path, capsys, monkeypatch, out):
    from margin_jax.runs import features

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "_grow", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(f"features --encoder mlp --max-identities 6 --out {out}".split())
    assert ended.value.code == 130
    told = capsys.readouterr().err
    assert f"what is done is kept in {out}.partial; the same command goes on" in told

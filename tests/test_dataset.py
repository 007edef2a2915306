"""Examples that are no pictures: read, normalised, trained on and compared."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import margin_jax as mj
from margin_jax import plots
from margin_jax.data.dataset import read_rows
from margin_jax.data.moments import moments
from margin_jax.runs import run_data
from margin_jax.runs.describe import describe
from margin_jax.runs.evaluate import (
    embed_identities,
)
from margin_jax.runs.run_data import prepare_data
from margin_jax.runs.use import embed_folder, verify_images

pytestmark = pytest.mark.usefixtures("no_pictures")
OWN = mj.TrainConfig(dataset="own", encoder="own", identities_per_batch=8, learning_rate=1e-2)


class Pooled(nn.Module):
    """Takes series of vectors, float[batch, time, features], and single ones alike."""

    @nn.compact
    def __call__(self, examples, *, train):
        x = nn.relu(nn.Dense(16)(examples))
        x = nn.Dense(8)(x.reshape(len(x), -1, 16).mean(axis=1))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def people(shape, dtype, seed=0):
    """60 of them, six examples each, around a point for each; no two features are alike."""
    rng = np.random.default_rng(seed)
    around = rng.normal(0, 1, (60, 1, *shape)) + rng.normal(0, 0.7, (60, 6, *shape))
    values = (around * np.geomspace(0.1, 30, shape[-1]) + np.arange(shape[-1])).astype(dtype)
    return values.reshape(-1, *shape), np.repeat(np.arange(60), 6)


def timeless(history):
    clocks = ("seconds", "images_per_second", "data_wait")
    return [{k: v for k, v in record.items() if k not in clocks} for record in history]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((12,), "float64"), ((5, 6), "float16")], ids=["vectors", "series"]
)
def test_floats_are_trained_on_as_pictures_are(shape, dtype, tmp_path):
    examples, labels = people(shape, dtype)
    np.save(tmp_path / "examples.npy", examples)
    mapped = np.load(tmp_path / "examples.npy", mmap_mode="r")
    dataset = mj.Dataset.from_arrays(mapped, labels)
    assert np.shares_memory(dataset.examples, mapped)  # nothing was read
    encoder = mj.Encoder(Pooled())
    asked = OWN.replace(out=str(tmp_path / "run"))
    run = mj.fit(asked.replace(epochs=3), dataset=dataset, encoder=encoder)
    assert run.report["test"]["auc"] > 0.8
    assert run.report["test"]["raw"]["auc"] > 0.6  # of the examples themselves
    assert run.history[0]["validation_auc"] < run.history[-1]["validation_auc"]
    assert (run.data["example_shape"], run.data["example_dtype"]) == ([*shape], dtype)

    # In two parts, and from a folder, it is the same run.
    parted = asked.replace(epochs=2, out=str(tmp_path / "parted"))
    mj.fit(parted, dataset=dataset, encoder=encoder)
    whole = mj.fit(parted.replace(epochs=3, resume=True), dataset=dataset, encoder=encoder)
    assert timeless(whole.history) == timeless(run.history)
    again = mj.load_run(run.path, encoder=encoder)
    vectors = run.embed(examples)
    assert (vectors.shape, vectors.dtype) == ((360, 8), "float32")
    np.testing.assert_array_equal(again.embed(mapped), vectors)
    np.testing.assert_allclose(again.embed(mapped, [3, 1]), vectors[[3, 1]], atol=1e-6)
    # Whatever the float dtype, examples are computed with in float32.
    np.testing.assert_array_equal(run.embed(examples.astype(np.float32)), vectors)
    pairs = np.array([[0, 1], [0, 300]])
    found = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    np.testing.assert_allclose(run.distances(examples, pairs), found, atol=1e-6)

    with pytest.raises(TypeError, match="examples must be floats, as the run's are; got uint8"):
        run.embed(np.zeros((2, *shape), np.uint8))
    with pytest.raises(ValueError, match=r"must have shape \(n, \*\(.*\); got \(2, 3\)"):
        run.embed(np.zeros((2, 3)))
    broken = examples.copy()
    broken.reshape(360, -1)[7, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite numbers of float32; example 7 is not"):
        run.embed(broken)
    # Nor are files read for it, but those of vectors.
    (tmp_path / "folder").mkdir()
    vectors = "data_dir must be a file of vectors" if len(shape) == 1 else None
    arrays = "was trained on arrays: give data_dir" if len(shape) == 1 else None
    for use, said in (
        (lambda: embed_folder(run, tmp_path / "folder"), vectors),
        (lambda: embed_identities(run, tmp_path / "folder"), vectors),
        (lambda: verify_images(run, tmp_path / "1.png", tmp_path / "2.png"), arrays),
    ):
        series = f"on square pictures; .* was trained on {dtype} of shape"
        with pytest.raises(ValueError, match=said or series):
            use()


def test_a_comparison_and_an_encoder_by_name_take_vectors(tmp_path):
    dataset = mj.Dataset.from_arrays(*people((12,), np.float32))
    asked = OWN.replace(encoder="mlp", embedding_size=8, epochs=1, out=str(tmp_path / "comparison"))
    schedules = ["constant:0.2", "constant:0.1"]
    arms = mj.vary(asked, schedule=schedules)
    found = mj.compare(arms, [0], dataset=dataset)
    assert all(found.values(schedule, "auc") > 0.6 for schedule in schedules)


def of_dtype(values, dtype):
    return np.asarray(jnp.asarray(values, dtype)) if dtype == "bfloat16" else values.astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("values", [1, 100, 10**6], ids="of {} values".format)
def test_moments_are_those_of_the_training_examples(monkeypatch, dtype, values):
    monkeypatch.setattr("margin_jax.data.moments._VALUES", values)
    examples, labels = people((4, 5), np.float64)
    examples[..., 2] = 0.1  # what never changes has a spread of nothing, and is left as it is
    examples[..., 3] += 1000  # as little as it changes, it can be told
    data = prepare_data(OWN, mj.Dataset.from_arrays(of_dtype(examples, dtype), labels))
    mean, std = moments(data.dataset, data.train)
    own = data.dataset.examples[data.train].astype(np.float32).astype(np.float64).reshape(-1, 5)
    np.testing.assert_allclose(mean, own.mean(axis=0), rtol=1e-12)
    expected = own.std(axis=0)
    assert std[2] == 1
    np.testing.assert_allclose(np.delete(std, 2), np.delete(expected, 2), rtol=1e-10)
    assert (mean.dtype, std.dtype) == (np.float64, np.float64)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_an_example_that_is_not_finite_is_named_before_anything_is_written(tmp_path, part, value):
    examples, labels = people((3,), np.float64)
    dataset = mj.Dataset.from_arrays(examples, labels)
    _, rows = run_data.split_dataset(OWN, dataset)
    examples[rows[part][[5, 9]]] = value
    asked = OWN.replace(out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=f"finite numbers of float32; example {rows[part][5]} is"):
        mj.fit(asked, dataset=dataset, encoder=mj.Encoder(Pooled()))
    assert not (tmp_path / "run").exists()


def test_what_takes_pictures_says_so_of_others(tmp_path):
    dataset = mj.Dataset.from_arrays(*people((12,), np.float32))
    with pytest.raises(ValueError, match=r"sheet is of pictures, uint8; got float32 of shape \(3"):
        plots.plot_contact_sheet(dataset)
    asked = OWN.replace(out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"images to augment must be uint8\[n, .*float32\[1, 12\]"):
        mj.fit(asked.replace(augment="flip"), dataset=dataset, encoder=mj.Encoder(Pooled()))
    with pytest.raises(ValueError, match=r"small_cnn takes examples of shape \(height, .*\(12,\)"):
        mj.fit(asked.replace(encoder="small_cnn"), dataset=dataset)
    pretrained = {"encoder": "efficientnet_lite0", "weights": "/no/file"}
    maps = mj.Dataset.from_arrays(*people((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="weights are for pictures, uint8; got examples of float3"):
        prepare_data(asked.replace(**pretrained), maps)
    assert not (tmp_path / "run").exists()


def test_vectors_are_described_as_such():
    text = "\n".join(describe(OWN, mj.Dataset.from_arrays(*people((12,), np.float16))))
    assert "own: 360 examples of 60 identities, 12 numbers of float16: 0.00 GiB, in memory" in text
    assert "examples of an identity: 6 to 6" in text
    assert "image" not in text


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        (np.zeros(4), ValueError, r"\[n, ..., features\]; got \(4,\)"),
        (np.zeros((4, 0)), ValueError, r"must not be empty; got shape \(4, 0\)"),
        (np.zeros((4, 9), np.int32), TypeError, "uint8, as pictures are, or floats; got int32"),
        (np.zeros((4, 9), complex), TypeError, "or floats; got complex128"),
        (np.zeros((4, 9), np.uint8), ValueError, r"examples be floats; got uint8 of shape \(4, 9"),
    ],
)
def test_other_examples_are_refused(examples, error, message):
    with pytest.raises(error, match=message):
        mj.Dataset.from_arrays(examples, np.arange(4))


def test_rows_are_read_as_they_are_computed_with():
    floats = np.arange(12.0).reshape(6, 2)
    for dtype in ("float16", "float32", "float64", "bfloat16"):
        read = read_rows(of_dtype(floats, dtype), np.array([4, 0]))
        assert read.dtype == np.float32
        assert read.tolist() == [[8, 9], [0, 1]]
    assert read_rows(floats, np.array([], int)).shape == (0, 2)
    pictures = np.zeros((6, 2, 2, 1), np.uint8)
    assert read_rows(pictures, np.array([1])).dtype == np.uint8


def test_labels_of_bytes_are_text():
    names = np.array([b"al", b"al", "b\u00f6".encode(), "b\u00f6".encode()])
    assert mj.Dataset.from_arrays(np.zeros((4, 2)), names).identities == ("al", "b\u00f6")


def test_a_digest_knows_floats_of_any_dtype():
    examples, labels = people((12,), np.float32)
    digests = {
        mj.Dataset.from_arrays(of_dtype(values, dtype), labels).digest()
        for values in (examples, -examples)
        for dtype in ("float16", "float32", "bfloat16")
    }
    assert len(digests) == 6

"""An encoder that is exported: used without margin-jax, it does what the run does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from safetensors.numpy import load_file

import margin_jax as mj
from margin_jax import cli
from margin_jax.models.make import make_encoder
from margin_jax.runs.card import use
from margin_jax.runs.export import stablehlo
from margin_jax.runs.given import read_pictures
from margin_jax.runs.portable import MODEL, STABLEHLO, Model
from margin_jax.runs.weights import WEIGHTS, arrays_by_name

pytestmark = pytest.mark.usefixtures("no_pictures")
SIZE = 24


def train(tmp_path_factory, name, images, **options):
    root = tmp_path_factory.mktemp(name)
    for i, image in enumerate(images):
        folder = root / "pictures" / str(i // 4)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    folder = {"dataset": "folder", "data_dir": str(root / "pictures"), "out": str(root / "run")}
    small = {"epochs": 1, "identities_per_batch": 2, "image_size": SIZE, "width": 0.25}
    return mj.fit(mj.TrainConfig(**small, **folder, **options))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (80, 10, 14, 3), np.uint8)
    return train(tmp_path_factory, "colour", images)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return run.export(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A large one, in colour, lying on its side; and an upright one in grey."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8))
    lying = Image.Exif()
    lying[0x0112] = 6
    small.resize((200, 140), Image.Resampling.BICUBIC).save(root / "a.jpg", exif=lying)
    small.convert("L").resize((31, 83)).save(root / "b.jpg")
    return root


def called(folder):
    """The program of a folder, with its weights."""
    program = jax.jit(jax.export.deserialize((folder / STABLEHLO).read_bytes()).call)
    weights = load_file(folder / WEIGHTS)
    return lambda examples: np.asarray(program(weights, examples))


BARE = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"margin_jax", "flax", "optax", "orbax", "chex", "typer"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
"""


def test_the_lines_of_the_card_need_no_margin_jax(run, exported, photographs, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "elsewhere")
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photographs / name, folder)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    saved = 'np.save("embeddings.npy", np.stack([a, b]))\n'
    command = [sys.executable, "-W", "error", "-c", BARE + lines + saved]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    pictures = read_pictures(run, [photographs / name for name in ("a.jpg", "b.jpg")]).images
    ours = run.embed(pictures)
    np.testing.assert_array_equal(np.load(folder / "embeddings.npy"), ours)
    distance = run.distances(pictures, np.array([[0, 1]]))[0]
    answer, number = ended.stdout.split()
    assert answer == ("same" if distance <= run.threshold else "different")
    assert float(number) == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_card_reads_pictures_as_the_run_does(run, photographs, fit, channels):
    from margin_jax.data.decode import Reading, decode

    model = run._model()
    described = Model(
        model.config.replace(fit=fit),
        {**model.data, "example_shape": [SIZE, SIZE, channels]},
        *model[2:],
    )
    lines = use(described)
    made = {}
    start, end = lines.index("def read"), lines.index("a, b =")
    exec("import numpy as np\nfrom PIL import Image, ImageOps\n" + lines[start:end], made)
    for path in sorted(photographs.iterdir()):
        ours = decode(path, SIZE, channels, Reading(fit)).pixels
        np.testing.assert_array_equal(made["read"](path), ours)


def test_the_card_reads_arrays_that_no_file_of_a_picture_gives(run):
    model = run._model()
    lines = use(Model(model.config, {**model.data, "example_shape": [16, 24, 3]}, *model[2:]))
    assert 'np.load("examples.npy").astype(np.uint8)  # [n, 16, 24, 3]' in lines
    assert "PIL" not in lines


@pytest.mark.parametrize(
    "distance", ["euclidean", "squared_euclidean", "cosine", "manhattan", "chebyshev"]
)
def test_the_card_measures_as_the_run_does(run, distance):
    from margin_jax.evaluation.embedding import pair_distances

    model = run._model()
    lines = use(Model(model.config.replace(distance=distance), *model[1:]))
    (formula,) = re.findall(r"^distance = (.*)$", lines, re.MULTILINE)
    vectors = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    found = eval(formula, {"np": np, "a": vectors[0], "b": vectors[1]})
    expected = pair_distances(vectors, np.array([[0, 1]]), distance)[0]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_it_is_equal_to_the_last_bit_for_any_batch(run, exported, count):
    images = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(called(exported)(images), run.embed(images))


def test_it_is_made_for_every_platform(exported):
    program = jax.export.deserialize((exported / STABLEHLO).read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    # The weights are beside it, and not in it.
    assert (exported / STABLEHLO).stat().st_size < (exported / WEIGHTS).stat().st_size
    assert "params/Conv_0/kernel" in load_file(exported / WEIGHTS)
    assert not re.findall(rb"[\w/.-]+\.py", (exported / STABLEHLO).read_bytes())  # no paths


def test_what_is_exported_again_is_the_same(exported, tmp_path, capsys):
    """As after a JAX that has refused the program; over the folder itself, too."""
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    (folder / STABLEHLO).unlink()
    with pytest.raises(SystemExit) as error:
        cli.main(["export", str(folder), "--out", str(folder), "--overwrite"])
    assert not error.value.code
    assert "encoder.jaxexport" in capsys.readouterr().out
    for path in exported.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_bad_input_costs_one_line(run, exported, tmp_path, capsys):
    damaged = Path(shutil.copytree(exported, tmp_path / "damaged"))
    program = bytearray((damaged / STABLEHLO).read_bytes())
    program[len(program) // 2] ^= 1
    (damaged / STABLEHLO).write_bytes(program)
    bare = tmp_path / "bare"
    bare.mkdir()
    for arguments, said in (
        ([damaged, "--out", tmp_path / "a"], "encoder.jaxexport is damaged"),
        ([bare, "--out", tmp_path / "a"], "no finished run in"),
        ([exported, "--out", run.path], "is not empty and not a model folder"),
        ([exported, "--out", exported], "holds a model: add --overwrite"),
        ([exported, "--out", exported / MODEL / "a"], "cannot write"),
        ([exported, "--out", "gs://bucket/a"], "'--out': it must be a path of this machine"),
    ):
        with pytest.raises(SystemExit) as error:
            cli.main(["export", *map(str, arguments)])
        told = capsys.readouterr()
        assert (error.value.code, told.out) == (2, "")
        assert said in told.err
        assert len(told.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "damaged"]


def test_vectors(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 12)).astype(np.float16)
    np.savez(tmp_path / "vectors.npz", features=features, labels=np.arange(80) // 4)
    data = {"dataset": "vectors", "data_dir": str(tmp_path / "vectors.npz")}
    small = {"epochs": 1, "identities_per_batch": 2, "encoder": "head:hidden=8,dropout=0.5"}
    run = mj.fit(mj.TrainConfig(**small, **data, out=str(tmp_path / "run")))
    folder = run.export(tmp_path / "model")
    np.testing.assert_array_equal(
        called(folder)(features[:8].astype(np.float32)), run.embed(features[:8])
    )
    np.save(folder / "examples.npy", features)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "PIL" not in lines
    command = [sys.executable, "-W", "error", "-c", BARE + lines]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    distance = run.distances(features, np.array([[0, 1]]))[0]
    assert float(ended.stdout.split()[1]) == pytest.approx(distance, abs=1e-5), ended.stderr


class Counts(nn.Module):
    """A network that asks how many examples there are, as a batch of any size cannot tell."""

    @nn.compact
    def __call__(self, examples, *, train):
        return nn.Dense(4)(examples.reshape(len(examples), -1))


class Calls(nn.Module):
    """A network that asks this process, when it does not train."""

    @nn.compact
    def __call__(self, examples, *, train):
        x = nn.Dense(4)(examples.reshape(len(examples), -1))
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return x if train else jax.pure_callback(np.asarray, like, x, vmap_method="sequential")


def test_a_network_of_ones_own(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", encoder=mj.Encoder(Counts()), epochs=1)
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1), np.uint8)
    found = called(run.export(tmp_path / "model"))(images)
    np.testing.assert_allclose(found, run.embed(images), rtol=1e-5, atol=1e-6)


class Halves(nn.Module):
    @nn.compact
    def __call__(self, examples, *, train):
        return nn.Dense(4)(examples.reshape(len(examples), -1)).astype(jnp.bfloat16)


def test_embeddings_are_float32_whatever_the_network_returns(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", encoder=mj.Encoder(Halves()), epochs=1)
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1), np.uint8)
    found = called(run.export(tmp_path / "model"))(images)
    assert found.dtype == run.embed(images).dtype == np.float32
    np.testing.assert_allclose(found, run.embed(images), rtol=0.02, atol=0.02)


def test_a_network_that_can_not_be_exported(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", encoder=mj.Encoder(Calls()), epochs=1)
    with pytest.raises(ValueError, match=r"^the network cannot be exported: .*callback.*$"):
        run.export(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    run.save_pretrained(tmp_path / "model")


# Those that compile quickly; all others were exported by hand.
@pytest.mark.parametrize("name", ["small_cnn", "head", "linear", "mlp"])
def test_encoders(name):
    shape = (40,) if name in ("head", "linear") else (16, 16, 3)
    encoder = make_encoder(name, 8)
    params, batch_stats = encoder.init(jax.random.key(0), shape)
    kind = "float32" if len(shape) == 1 else "uint8"
    model = Model(None, {"example_shape": shape, "example_dtype": kind}, {}, [], {})
    program = jax.export.deserialize(stablehlo(encoder, params, batch_stats, model))
    examples = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(kind)
    apply = jax.jit(lambda p, s, x: encoder.apply(p, s, x, train=False, key=None)[0])
    np.testing.assert_array_equal(
        jax.jit(program.call)(arrays_by_name(params, batch_stats), examples),
        apply(params, batch_stats, examples),
    )

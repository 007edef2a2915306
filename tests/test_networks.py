"""Networks, weights and optimisers by name, in a run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj
from margin_jax.models import ENCODERS, pretrained
from margin_jax.models.make import make_encoder
from margin_jax.runs import setting

pytestmark = pytest.mark.usefixtures("no_pictures")
MLP = {"encoder": "mlp", "embedding_size": 8, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (60, 1, 6, 6, 1))
    pixels = np.clip(faces + rng.normal(0, 60, (60, 6, 6, 6, 1)), 0, 255).astype(np.uint8)
    return mj.Dataset.from_arrays(pixels.reshape(-1, 6, 6, 1), np.arange(360) // 6)


@pytest.fixture(scope="module")
def fit(images, tmp_path_factory):
    def run(name, **options):
        options = {"identities_per_batch": 8, "epochs": 2, **MLP, **options}
        out = tmp_path_factory.mktemp(name) / "run"
        return mj.fit(mj.TrainConfig(dataset="own", out=out, **options), dataset=images)

    return run


@pytest.fixture(scope="module")
def plain(fit):
    return [record["loss"] for record in fit("plain").history]


# In bfloat16 whatever is float32 has been made so; in float32 there is nothing to go wrong.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "bfloat16") for name in ENCODERS), ("mlp", "float32")],
)
def test_every_encoder_gives_float32_embeddings_from_float32_parameters(name, dtype):
    encoder = make_encoder(name, 16, dtype=dtype)
    assert encoder is make_encoder(name, 16, dtype=dtype)
    init = functools.partial(encoder.init, example_shape=(64, 48, 1))
    params, batch_stats = jax.eval_shape(init, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves((params, batch_stats))} == {"float32"}
    apply = functools.partial(encoder.apply, train=True)
    one = jax.ShapeDtypeStruct((3, 64, 48, 1), np.uint8)
    vectors, after = jax.eval_shape(apply, params, batch_stats, one, key=jax.random.key(0))
    assert (vectors.shape, vectors.dtype.name) == ((3, 16), "float32")
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, batch_stats)
    if name != "small_cnn":
        assert set(params) == ({"head"} if name in ("head", "linear") else {"trunk", "head"})


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "nn2", "efficientnet_lite0", "resnet50"])
def test_a_small_stem_looks_at_more_places(name):
    costs = []
    for small_stem in (False, True):
        encoder = make_encoder(name, 16, small_stem=small_stem)
        params, batch_stats = jax.eval_shape(
            functools.partial(encoder.init, example_shape=(32, 32, 3)), jax.random.key(0)
        )
        one = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
        apply = functools.partial(encoder.apply, train=False, key=None)
        costs.append(jax.jit(apply).lower(params, batch_stats, one).cost_analysis()["flops"])
    assert costs[1] > 2 * costs[0]


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mobilenet_v3_small", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("vit_tiny", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),  # which has no batch statistics
    ],
)
def test_published_weights_take_the_place_of_drawn_ones(monkeypatch, name, mean, std):
    encoder = make_encoder(name, 16, colour=True)
    key, shape = jax.random.key(0), (32, 32, 1)
    drawn = jax.eval_shape(functools.partial(encoder.init, example_shape=shape), key)
    published = jax.tree.map(
        lambda x: np.ones(x.shape, x.dtype),
        (drawn[0]["trunk"], drawn[1]["module"].get("trunk", {})),
    )
    monkeypatch.setattr(pretrained, "fetch", lambda name: f"cache of {name}")
    files = {(name, f"cache of {name}"): published, (name, "/file"): published}
    monkeypatch.setattr(pretrained, "load_weights", lambda *asked: files[asked])
    for options in ({"pretrained": True}, {"weights": "/file"}):
        given = mj.TrainConfig(encoder=name, **options)
        read = setting._published(given)
        params, batch_stats = setting._begin_with(read, given, encoder, key, shape)
        assert all(np.all(x == 1) for x in jax.tree.leaves(params["trunk"]))
        assert all(np.all(x == 1) for x in jax.tree.leaves(batch_stats["module"]))
        np.testing.assert_allclose(batch_stats["mean"], mean)
        np.testing.assert_allclose(batch_stats["std"], std)
        assert jax.tree.structure(params) == jax.tree.structure(drawn[0])
        assert jax.tree.structure(batch_stats) == jax.tree.structure(drawn[1])


def test_beside_a_given_trunk_the_rest_is_drawn_as_ever():
    encoder = make_encoder("mlp", 8)
    key, shape = jax.random.key(1), (6, 6, 1)
    params, stats = encoder.init(key, shape)
    given = jax.tree.map(jnp.ones_like, params["trunk"])
    begun, begun_stats = encoder.init_with_trunk(key, shape, given, {})
    chex.assert_trees_all_equal(begun, {**params, "trunk": given})
    chex.assert_trees_all_equal(begun_stats, stats)


def test_a_network_in_colour_takes_images_in_grey(tiny_encoder, tmp_path, no_pictures):
    encoder = mj.Encoder(tiny_encoder.module, colour=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1)).astype(np.uint8)
    config = mj.TrainConfig(
        dataset="own", encoder="own", epochs=1, identities_per_batch=4, out=str(tmp_path / "run")
    )
    mine = mj.Dataset.from_arrays(images, np.arange(60) // 3)
    run = mj.fit(config, dataset=mine, encoder=encoder)
    assert run.params["Dense_0"]["kernel"].shape == (6 * 6 * 3, 8)
    mean = run.batch_stats["mean"]
    assert mean.shape == (3,)
    np.testing.assert_allclose(mean, images.mean() / 255, atol=0.02)  # of a part of them


def test_a_frozen_trunk_stays_for_its_epochs(fit):
    def moved(run):
        key, _ = jax.random.split(jax.random.key(run.config.seed))
        before, _ = make_encoder("mlp", 8).init(key, (6, 6, 1))
        return {
            part: any(
                np.any(a != b)
                for a, b in zip(
                    jax.tree.leaves(before[part]), jax.tree.leaves(run.params[part]), strict=True
                )
            )
            for part in ("trunk", "head")
        }

    assert moved(fit("held", epochs=1, freeze=1)) == {"trunk": False, "head": True}
    later = fit("later", epochs=3, freeze=1, select="loss")
    assert later.report["best_epoch"] > 1
    assert moved(later) == {"trunk": True, "head": True}


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "rmsprop", "learning_rate": 1e-3},
        {"optimizer": "adagrad"},
        {"learning_rate_schedule": "warmup_linear"},
        {"learning_rate_schedule": "exponential"},
        {"dtype": "bfloat16"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options_of_training_take_effect(fit, plain, options):
    run = fit("one", **options)
    losses = [record["loss"] for record in run.history]
    assert losses != plain
    assert np.all(np.isfinite(losses))
    assert mj.load_run(run.path).embed(np.zeros((1, 6, 6, 1), np.uint8)).dtype == np.float32


def test_a_schedule_over_the_run_cannot_be_made_longer(fit, images):
    run = fit("run", learning_rate_schedule="exponential")
    longer = run.config.replace(epochs=4, resume=True, out=run.path)
    with pytest.raises(ValueError, match="epochs is 2, asked for 4"):
        mj.fit(longer, dataset=images)

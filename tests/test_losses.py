"""A loss as a value: what a step asks of one, its own parameters, and one's own in a whole run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import margin_jax as mj
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows
from margin_jax.losses import LOSSES, make_loss

RATE, CLASSES, DIM = 0.1, 4, 3


@dataclasses.dataclass(frozen=True)
class Centers:
    """The squared distance to a trained centre of each class; triplets are counted beside it."""

    distance: str = "euclidean"

    def init(self, key, embedding_size, classes):
        return {"centers": jax.random.normal(key, (classes, embedding_size))}

    def __call__(self, params, embeddings, labels, margin, *, where=None, axis_name=None):
        away = embeddings - params["centers"][labels]
        loss = jnp.mean(jnp.sum(away * away, axis=1))
        loss = loss if axis_name is None else jax.lax.pmean(loss, axis_name)
        return loss, mj.triplet_stats(
            embeddings, labels, margin, distance=self.distance, where=where, axis_name=axis_name
        )


LOSS = Centers()


def linear(params, batch_stats, examples, *, train, key):
    return examples @ params, batch_stats


def new_state(optimizer, *, schedule=None):
    params = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    loss_params = LOSS.init(jax.random.key(3), DIM, CLASSES)
    schedule = schedule or mj.constant(0.4)
    key = jax.random.key(0)
    return mj.create_state(params, {}, optimizer, schedule, key, loss_params=loss_params)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), 4)
    return rng.normal(size=(16, 5)).astype(np.float32) + labels[:, None], labels


def test_both_are_trained_by_the_gradient_of_the_loss():
    """By plain loops over the rows."""
    optimizer = optax.sgd(RATE)
    state, (examples, labels) = new_state(optimizer), batch()
    after, output = mj.make_train_step(linear, optimizer, LOSS)(state, examples, labels)
    params, centers = (
        np.asarray(v, np.float64) for v in (state.params, state.loss_params["centers"])
    )
    loss, to_params, to_centers = 0.0, np.zeros_like(params), np.zeros_like(centers)
    for x, label in zip(examples, labels, strict=True):
        away = x @ params - centers[label]
        loss += away @ away / len(labels)
        to_params += 2 * np.outer(x, away) / len(labels)
        to_centers[label] -= 2 * away / len(labels)
    np.testing.assert_allclose(output.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(after.params, params - RATE * to_params, rtol=1e-4, atol=1e-6)
    found = after.loss_params["centers"]
    np.testing.assert_allclose(found, centers - RATE * to_centers, rtol=1e-4, atol=1e-6)
    length = np.sqrt(np.sum(to_params**2) + np.sum(to_centers**2))
    np.testing.assert_allclose(output.gradient_norm, length, rtol=1e-4)
    _, counted = mj.batch_all_triplet_loss(examples @ params.astype(np.float32), labels, 0.4)
    assert output.stats.totals() == counted.totals()


@pytest.mark.parametrize(("devices", "microbatch"), [(4, None), (8, 8)])
def test_on_any_number_of_devices_and_by_parts_it_is_the_same(devices, microbatch):
    """Adam as well, which keeps moments of the loss's parameters; those are on every device."""
    optimizer = optax.adam(RATE)
    alone = mj.make_train_step(linear, optimizer, LOSS)
    mesh = make_mesh(devices, microbatch or 16)
    shared = mj.make_train_step(linear, optimizer, LOSS, mesh=mesh, microbatch=microbatch)
    one, many = new_state(optimizer), place_copies(new_state(optimizer), mesh)
    for seed in range(3):
        examples, labels = batch(seed)
        one, expected = alone(one, examples, labels)
        many, output = shared(many, place_rows(examples, mesh), place_rows(labels, mesh))
        assert output.stats.totals() == expected.stats.totals()
        np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(many.trained), jax.tree.leaves(one.trained), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert a.sharding.is_fully_replicated


def test_the_triplet_loss_is_the_function():
    examples, labels = batch()
    options = {"distance": "cosine", "reduction": "sum", "soft": True}
    loss = mj.TripletLoss(**options)
    assert jax.tree.leaves(loss.init(jax.random.key(0), DIM, CLASSES)) == []
    found, stats = loss({}, examples, labels, 0.3)
    expected, counts = mj.batch_all_triplet_loss(examples, labels, 0.3, **options)
    assert found == expected
    assert stats.totals() == counts.totals()
    swapped = mj.TripletLoss(swap=True, mining="semihard")({}, examples, labels, 0.3)[0]
    told = {"swap": True, "mining": "semihard"}
    assert swapped == mj.batch_all_triplet_loss(examples, labels, 0.3, **told)[0]
    assert swapped != mj.TripletLoss(mining="semihard")({}, examples, labels, 0.3)[0]
    assert hash(loss) == hash(mj.TripletLoss(**options))


def test_an_optimizer_sees_what_it_is_given_when_the_loss_has_no_parameters():
    optimizer = optax.masked(optax.sgd(RATE), {"w": True})
    params = {"w": jnp.ones((5, DIM))}
    state = mj.create_state(params, {}, optimizer, mj.constant(0.2), jax.random.key(0))
    assert state.trained is state.params
    assert state.loss_params == {}


def test_statistics_without_a_gradient():
    examples, labels = batch()

    def with_stats(x, margin):
        stats = mj.triplet_stats(x, labels, margin)
        return stats.sum_ap.sum() + stats.easy_fraction

    slopes = jax.grad(with_stats, argnums=(0, 1))(jnp.asarray(examples), 0.3)
    assert not any(np.any(slope) for slope in slopes)


# Text


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("triplet", mj.TripletLoss(reduction="mean")),
        ("triplet:swap=true,soft=True", mj.TripletLoss(reduction="mean", swap=True, soft=True)),
        ("triplet:reduction=sum, distance=cosine", mj.TripletLoss("cosine", "sum")),
        ("triplet:mining=batch_hard", mj.TripletLoss(reduction="mean", mining="batch_hard")),
    ],
)
def test_what_a_text_means(text, loss):
    assert make_loss(text, {"reduction": "mean", "no parameter": 1}) == loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tripet", "loss must be one of triplet, .*; got 'tripet'. Did you mean 'triplet'"),
        ("triplet:swap=1", "got 'triplet:swap=1', where swap is neither true nor false"),
        ("triplet:swap", "where swap is neither true nor false"),
        ("triplet:distance=", "where distance is empty"),
        ("triplet:distance=l2", "distance must be one of euclidean, .*; got 'l2'"),
        ("triplet:margin=0.2", "a parameter of triplet must be one of distance, .*; got 'margin'"),
        ("triplet:reduction=none", "reduction must be one of mean_active, mean, sum; got 'none'"),
        ("triplet:swap=true,mining=batch_hard", "swap is for mining .*; got it with batch_hard"),
        ("arcface:scale=0", "scale must be above 0 and finite; got 0"),
        ("balancing_margin:counts=3", "a parameter of balancing_margin must be .*; got 'counts'"),
    ],
)
def test_texts_that_mean_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        make_loss(text, {})
    with pytest.raises(ValueError, match=message):
        mj.TrainConfig(loss=text)


def test_a_configuration_knows_the_distance_that_its_loss_says():
    config = mj.TrainConfig(loss="triplet:distance=cosine,swap=true", reduction="mean")
    assert (config.distance, config.reduction) == ("cosine", "mean")
    assert config.make_loss(1) == mj.TripletLoss("cosine", "mean", swap=True)
    assert mj.TrainConfig.from_json(config.to_json()).make_loss(1) == config.make_loss(1)
    with pytest.raises(ValueError, match="got it with batch_hard"):
        mj.TrainConfig(loss="triplet:swap=true", mining="all,4:batch_hard")


def test_a_loss_that_leaves_no_choice_of_a_distance_decides_it():
    config = mj.TrainConfig(loss="arcface:scale=30")
    assert config.distance == "cosine"
    assert config.make_loss(1) == mj.ArcFaceLoss(scale=30.0)
    assert mj.TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "manhattan"}, "distance is for triplet; got manhattan with loss arcface"),
        ({"reduction": "sum"}, "reduction is for .*; got sum with loss arcface"),
        ({"mining": "all,4:hard"}, "mining is for .*; got all,4:hard with loss arcface"),
        ({"memory": 64}, "memory is for losses over triplets; got it with loss arcface"),
    ],
)
def test_options_that_a_loss_has_not(options, message):
    with pytest.raises(ValueError, match=message):
        mj.TrainConfig(loss="arcface", **options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("distance=cosine", {"distance": "manhattan"}),
        ("reduction=sum", {"reduction": "mean"}),
        ("mining=hard", {"mining": "semihard"}),
        ("mining=all", {"mining": "semihard"}),
        ("mining=all", {"mining": "all,4:semihard"}),
    ],
)
def test_an_option_may_not_contradict_the_text_of_the_loss(text, options):
    (name, value), (given,) = text.split("="), options.values()
    with pytest.raises(ValueError, match=f"{name} must be {value}, as .*{text} says; got {given}$"):
        mj.TrainConfig(loss=f"triplet:{text}", **options)
    config = mj.TrainConfig(loss=f"triplet:{text}")
    assert getattr(config, name) == value
    assert mj.TrainConfig.from_json(config.to_json()) == config


def test_another_loss_inherits_nothing_that_the_old_one_settled():
    summed = mj.TrainConfig(loss="triplet:reduction=sum,mining=hard", memory=64)
    changed = summed.replace(loss="triplet:reduction=mean")
    assert (changed.reduction, changed.mining, changed.memory) == ("mean", "all", 64)
    assert summed.replace(loss="triplet", mining="semihard").mining == "semihard"
    assert summed.replace(loss="arcface", memory=None).distance == "cosine"
    assert mj.TrainConfig(loss="arcface").replace(loss="triplet").distance == "euclidean"
    assert summed.replace(epochs=3).mining == "hard"
    assert mj.TrainConfig(reduction="sum").replace(loss="triplet:soft=true").reduction == "sum"


def test_a_mining_that_the_text_of_the_loss_overruled_is_read_as_it_was_trained():
    old = json.loads(mj.TrainConfig(loss="triplet:mining=hard").to_json())
    assert (
        mj.TrainConfig.from_json(json.dumps({**old, "mining": "all,4:semihard"})).mining == "hard"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_is_one(name):
    assert isinstance(make_loss(name, {}), mj.Loss)


# One's own


@dataclasses.dataclass(frozen=True)
class Unhashable(Centers):
    weights: list = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Unhashable(), "a loss must be hashable, .* got Unhashable: unhashable type: 'list'"),
        (Centers, "is called as loss.*; got type"),
        (mj.batch_all_triplet_loss, "a loss has a distance, init.*; got function"),
    ],
)
def test_what_is_no_loss(loss, message):
    with pytest.raises(TypeError, match=message):
        mj.make_train_step(linear, optax.sgd(RATE), loss)


def test_a_memory_needs_references():
    optimizer, (examples, labels) = optax.sgd(RATE), batch()
    state = new_state(optimizer).replace(memory=mj.Memory.empty(8, DIM))
    with pytest.raises(ValueError, match=r"memory needs a loss that takes references.*got Centers"):
        mj.make_train_step(linear, optimizer, LOSS)(state, examples, labels)


CONFIG = mj.TrainConfig(
    loss="own",
    schedule="dams:threshold=0.0,increase=0.1",
    epochs=3,
    encoder="mlp",
    image_size=12,
    max_identities=40,
    identities_per_batch=4,
    embedding_size=8,
)


@functools.cache
def seen_labels():
    return []


@dataclasses.dataclass(frozen=True)
class Watched(Centers):
    """Notes which labels it is called with."""

    def __call__(self, params, embeddings, labels, margin, **options):
        jax.debug.callback(lambda v: seen_labels().extend(v.tolist()), labels)
        return super().__call__(params, embeddings, labels, margin, **options)


def test_one_s_own_loss_trains_validates_and_goes_on(tmp_path):
    """Its parameters are saved: what goes on after two epochs ends where three at once do."""
    whole = mj.fit(CONFIG.replace(out=str(tmp_path / "whole")), loss=Watched())
    jax.effects_barrier()
    classes = len(whole.data["identities"]["train"])
    assert set(seen_labels()) == set(range(classes))
    margins = [record["margin"] for record in whole.history]
    np.testing.assert_allclose(margins, [0.2, 0.3, 0.4], rtol=1e-6)  # the schedule goes on counting
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.data["loss"] == "Watched(distance='euclidean')"

    part = CONFIG.replace(out=str(tmp_path / "part"), epochs=2)
    mj.fit(part, loss=Watched())
    resumed = mj.fit(part.replace(epochs=3, resume=True), loss=Watched())
    timeless = {"seconds", "images_per_second", "data_wait"}
    for record, other in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in record.items() if k not in timeless} == {
            k: v for k, v in other.items() if k not in timeless
        }
    assert resumed.report["test"]["auc"] == whole.report["test"]["auc"]

    loaded = mj.load_run(tmp_path / "whole")  # to compare images takes no loss
    assert loaded.threshold == whole.threshold
    with pytest.raises(ValueError, match="another network"):
        mj.fit(part.replace(epochs=4, resume=True), loss=Centers())
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["loss"] == "own"


@pytest.mark.parametrize(
    ("config", "loss", "message"),
    [
        (CONFIG, None, "a loss object and loss='own' .* together; .* says 'own'"),
        (CONFIG.replace(loss="triplet"), Centers(), "the configuration says 'triplet'"),
        (CONFIG, Centers("cosine"), "distance, 'euclidean', .*; got 'cosine'"),
    ],
)
def test_a_loss_that_is_not_what_the_configuration_says(config, loss, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        mj.fit(config.replace(out=str(tmp_path / "run")), loss=loss)
    assert not (tmp_path / "run" / "config.json").exists()

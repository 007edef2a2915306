"""The samplers: what a batch holds, what an epoch covers, and that both follow from the seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj
from margin_jax.data.sampler import SAMPLERS, choose_batch, pk_batches


def long_tail(n=200, seed=0):
    """Labels of `n` identities with 1 to 50 images."""
    sizes = np.random.default_rng(seed).geometric(0.15, n).clip(1, 50)
    return np.repeat(np.arange(n), sizes)


def faces():
    """A tail like that of LFW: half of the images are of few, one has 530, most have one."""
    sizes = np.concatenate([[530], (240 / np.arange(1, 680)).astype(int).clip(2), np.ones(1500)])
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes.astype(int)))


# labels, P, K
SETS = {
    "long tail": (long_tail(), 8, 4),
    "all small": (long_tail(), 4, 16),
    "one batch": (np.repeat(np.arange(5), [4, 4, 4, 4, 1]), 4, 4),
    "two batches": (np.repeat(np.arange(5), [3, 3, 2, 2, 2]), 4, 2),
    "one large": (np.repeat(np.arange(4), [101, 8, 5, 2]), 3, 2),
    "hardly room": (np.repeat(np.arange(4), [10, 9, 11, 2]), 4, 2),
    "digits": (np.arange(70_000) % 10, 4, 16),
    "faces": (faces(), 32, 2),
}


@pytest.fixture(params=SETS)
def case(request):
    return SETS[request.param]


# --- both ---


@pytest.mark.parametrize("policy", ["drop", "repeat"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_coverage_adds_up(case, sampler, policy):
    labels, p, k = case
    small = np.flatnonzero(np.bincount(labels)[labels] < k)
    for fillers in {0, min(3, len(small)), len(small)} if policy == "drop" else {0}:
        plan, coverage = pk_batches(
            *case, seed=0, epoch=0, small_identities=policy, sampler=sampler, fillers=fillers
        )
        assert plan.shape[1] == p * k + fillers
        used = np.unique(plan)
        assert coverage.images == len(labels)
        assert coverage.used == len(used)
        dropped = len(np.setdiff1d(small, used))
        assert coverage.small == (dropped if policy == "drop" else 0)
        assert coverage.used + coverage.small + coverage.left == len(labels)
        assert coverage.left >= 0
        assert coverage.repeated == plan.size - len(used)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_are_a_function_of_seed_and_epoch(sampler):
    labels = long_tail()
    before = labels.copy()

    def plan(seed, epoch):
        return pk_batches(labels, 8, 4, seed=seed, epoch=epoch, sampler=sampler, fillers=3)[0]

    assert np.array_equal(plan(1, 2), plan(1, 2))
    assert not np.array_equal(plan(1, 2)[0], plan(1, 3)[0])
    assert not np.array_equal(plan(1, 2)[0], plan(2, 2)[0])
    assert np.array_equal(labels, before)


def test_sampler_errors():
    labels = np.repeat(np.arange(5), [1, 2, 4, 4, 4])
    with pytest.raises(ValueError, match=r"2 of 5 identities have fewer than 4.*smallest has 1"):
        pk_batches(labels, 2, 4, seed=0, epoch=0, small_identities="error")
    with pytest.raises(ValueError, match=r"needs 4 .* at least 4 images; got 3 of 5 .* at most 3"):
        pk_batches(labels, 4, 4, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"got 0 of 5 .* lower images_per_identity"):
        pk_batches(labels, 4, 5, seed=0, epoch=0)
    with pytest.raises(ValueError, match="identities_per_batch 1"):
        pk_batches(labels, 1, 4, seed=0, epoch=0)
    with pytest.raises(ValueError, match="Did you mean 'drop'"):
        pk_batches(labels, 2, 4, seed=0, epoch=0, small_identities="dorp")
    with pytest.raises(ValueError, match="Did you mean 'balanced'"):
        pk_batches(labels, 2, 4, seed=0, epoch=0, sampler="balance")
    with pytest.raises(ValueError, match=r"labels must have shape \(images,\); got \(15, 1\)"):
        pk_batches(labels[:, None], 2, 4, seed=0, epoch=0)
    with pytest.raises(ValueError, match="seed and epoch must be at least 0; got -1 and 0"):
        pk_batches(labels, 2, 4, seed=-1, epoch=0)
    with pytest.raises(TypeError, match="seed must be a whole number; got Array"):
        pk_batches(labels, 2, 4, seed=jax.random.key(0), epoch=0)
    with pytest.raises(TypeError, match=r"identities_per_batch must be a whole number; got 2\.5"):
        pk_batches(labels, 2.5, 4, seed=0, epoch=0)


def test_what_python_has_for_labels_and_epochs_will_do():
    labels = np.repeat(np.arange(5), 4)
    plan, _ = pk_batches(labels, 2, 2, seed=0, epoch=3)
    epoch = mj.ScheduleState(jnp.float32(0.2), jnp.int32(3)).epoch
    np.testing.assert_array_equal(pk_batches(labels.tolist(), 2, 2, seed=0, epoch=epoch)[0], plan)


# --- pk ---


@pytest.mark.parametrize("policy", ["drop", "repeat"])
def test_batches_hold_p_identities_of_k_images(policy):
    labels = long_tail()
    plan, _ = pk_batches(labels, 8, 4, seed=0, epoch=0, small_identities=policy)
    assert plan.shape[1] == 32
    assert len(plan) > 10
    for batch in plan:
        by_identity = labels[batch].reshape(8, 4)
        assert (by_identity == by_identity[:, :1]).all()
        assert len(set(by_identity[:, 0])) == 8
    sizes = np.bincount(labels)
    used, times = np.unique(plan, return_counts=True)
    # Without replacement: only an identity with too few images may show one twice.
    assert sizes[labels[used[times > 1]]].max(initial=0) < 4
    assert (policy == "drop") == (times.max() == 1)


@pytest.mark.parametrize(
    ("policy", "plan"),
    [
        ("drop", [[1, 2, 7, 9, 17, 18], [5, 3, 11, 12, 6, 8]]),
        ("repeat", [[0, 0, 7, 9, 17, 18], [5, 3, 6, 8, 11, 12], [14, 10, 1, 2, 16, 15]]),
    ],
)
def test_a_seed_always_gives_the_same_batches(policy, plan):
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 7])
    drawn, _ = pk_batches(labels, 3, 2, seed=7, epoch=1, small_identities=policy)
    assert drawn.tolist() == plan


def test_the_epoch_ends_when_fewer_than_p_identities_remain():
    labels = long_tail()
    plan, _ = pk_batches(labels, 8, 4, seed=0, epoch=0)
    left = np.bincount(np.delete(labels, plan.ravel()), minlength=200)
    assert np.count_nonzero(left >= 4) < 8


def test_every_eligible_image_turns_up_in_some_epoch():
    labels = long_tail()
    seen = np.concatenate([pk_batches(labels, 8, 4, seed=0, epoch=e)[0].ravel() for e in range(40)])
    eligible = np.flatnonzero(np.bincount(labels)[labels] >= 4)
    assert set(seen) == set(eligible)


# --- balanced ---


@pytest.mark.parametrize("policy", ["drop", "repeat"])
def test_balanced_batches_use_every_image(case, policy):
    labels, p, k = case
    plan, coverage = pk_batches(*case, seed=0, epoch=0, small_identities=policy, sampler="balanced")
    sizes = np.bincount(labels)
    eligible = sizes >= (k if policy == "drop" else 1)
    assert np.array_equal(np.unique(plan), np.flatnonzero(eligible[labels]))
    assert coverage.left == 0

    by_identity = labels[plan].reshape(-1, p, k)
    assert (by_identity == by_identity[..., :1]).all()
    groups = -(-sizes // k) * eligible
    steps = len(plan)
    assert steps == -(-groups.sum() // p)
    # Dealt evenly: in each batch an identity has its share of groups, rounded up or down.
    dealt = np.array([np.bincount(batch, minlength=len(sizes)) for batch in by_identity[..., 0]])
    assert (dealt >= groups // steps).all()
    assert (dealt <= -(-groups // steps)).all()
    # Repeated: what completes last groups, and what completes the last batch.
    assert (dealt.sum(axis=0) >= groups).all()
    assert coverage.repeated == steps * p * k - sizes[eligible].sum()
    # No batch has an image twice, if its identity has K.
    rows = np.where((sizes >= k)[labels[plan]], plan, -1 - np.arange(p * k))
    assert (np.diff(np.sort(rows), axis=1) > 0).all()


def test_balanced_batches_are_random():
    """Over seeds, each image completes groups as often, and identities meet as often."""
    labels = np.repeat(np.arange(6), [5, 5, 5, 4, 2, 2])
    times, together = np.zeros(len(labels)), np.zeros((6, 6))
    for seed in range(600):
        plan, _ = pk_batches(labels, 3, 2, seed=seed, epoch=0, sampler="balanced")
        times += np.bincount(plan.ravel(), minlength=len(labels))
        present = np.array([np.bincount(batch, minlength=6) > 0 for batch in labels[plan]])
        together += present.T.astype(int) @ present
    for identity in range(6):
        np.testing.assert_allclose(
            times[labels == identity], times[labels == identity].mean(), rtol=0.1
        )
    assert together[4, 5] > 0.5 * together[4, :3].mean() / 3
    np.testing.assert_allclose(together[3, :3], together[3, :3].mean(), rtol=0.1)


def test_balanced_batches_spread_an_identity_over_the_epoch():
    labels = np.repeat(np.arange(30), 10)
    plan, _ = pk_batches(labels, 3, 2, seed=0, epoch=0, sampler="balanced")
    steps = np.array([np.flatnonzero((labels[plan] == i).any(axis=1)) for i in range(30)])
    assert steps.shape == (30, 5)  # never twice in one batch
    assert (np.ptp(steps, axis=1) > 4).all()  # nor in five that follow each other


# --- fillers ---


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("fillers", [1, 7, 40, 41])
def test_fillers_are_small_ones_each_as_often(sampler, fillers):
    labels = np.repeat(np.arange(80), [4, 5, 2, 3, 9, 1, 30, 8] * 10)
    labels = np.concatenate([labels, [80] * 3, [81] * 3])
    small = np.flatnonzero(np.bincount(labels)[labels] < 4)
    assert len(small) == 66
    options = {"seed": 1, "epoch": 2, "sampler": sampler}
    bare, without = pk_batches(labels, 8, 4, **options)
    plan, coverage = pk_batches(labels, 8, 4, **options, fillers=fillers)
    assert np.array_equal(plan[:, :32], bare)
    rows = plan[:, 32:]
    assert rows.shape == (len(bare), fillers)
    assert set(rows.ravel()) <= set(small)
    assert all(len(set(batch)) == fillers for batch in rows)
    times = np.bincount(rows.ravel(), minlength=len(labels))[small]
    assert times.max() - times.min() <= 1
    assert coverage.used == without.used + np.count_nonzero(times)
    assert coverage.left == without.left
    # Every pass is shuffled: no image has its place.
    if fillers == 1 and len(rows) >= 2 * len(small):
        assert not np.array_equal(rows[: len(small)], rows[len(small) : 2 * len(small)])


def test_all_small_images_can_fill_every_batch():
    labels = np.repeat(np.arange(8), [4, 4, 4, 4, 1, 2, 3, 1])
    plan, coverage = pk_batches(labels, 2, 4, seed=0, epoch=0, fillers=7)
    assert (np.sort(plan[:, 8:]) == np.arange(16, 23)).all()
    assert (np.diff(plan[:, 8:], axis=0) != 0).any()
    assert (coverage.small, coverage.left, coverage.used) == (0, 0, 23)


@pytest.mark.parametrize("policy", ["drop", "repeat"])
def test_fillers_need_small_identities(policy):
    labels = np.repeat(np.arange(5), [1, 2, 4, 4, 4])
    most = 3 if policy == "drop" else 0
    for fillers in (-1, most + 1):
        with pytest.raises(ValueError, match=rf"between 0 and {most}, .* got {fillers}"):
            pk_batches(labels, 2, 4, seed=0, epoch=0, small_identities=policy, fillers=fillers)
    with pytest.raises(ValueError, match="between 0 and 0"):
        pk_batches(labels[3:], 2, 4, seed=0, epoch=0, small_identities="error", fillers=1)


@pytest.mark.parametrize(
    ("sizes", "given", "expected"),
    [
        ([2] * 32, (), (32, 2)),
        ([90] * 500, (), (32, 2)),
        ([10] * 16, (), (16, 4)),
        ([3] * 16, (), (16, 3)),
        ([9] * 25 + [1] * 40, (), (25, 2)),  # who has one picture is no help
        ([6000] * 4, (), (4, 16)),
        ([2] + [1000] * 9, (), (9, 7)),  # with the tenth, an epoch would be one batch
        ([5, 5], (), (2, 5)),
        ([5, 1], (), (2, 2)),  # refused later, with the batches
        ([10] * 16, (8, None), (8, 2)),
        ([10] * 16, (None, 4), (16, 4)),
        ([10] * 16 + [4] * 30, (None, 8), (16, 8)),
        ([10] * 16, (99, 7), (99, 7)),
        ([1] * 40, (None, None, "repeat"), (32, 2)),
    ],
)
def test_p_and_k_follow_the_images(sizes, given, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    p, k = choose_batch(labels, *given)
    assert (p, k) == expected
    if not given and sum(size > 1 for size in sizes) > 1:
        plan, coverage = pk_batches(labels, p, k, seed=0, epoch=0)
        assert len(plan) > 0
        assert coverage.used >= 0.4 * (coverage.images - sizes.count(1))

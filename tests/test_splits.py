"""Splits: percentages, halves, explicit lists."""

import itertools
import json

import numpy as np
import pytest

from margin_jax.data import load_dataset
from margin_jax.data.splits import check_split, make_split, split_identities


def long_tail(n=200, seed=0):
    """Labels of `n` identities with 1 to 50 images."""
    sizes = np.random.default_rng(seed).geometric(0.15, n).clip(1, 50)
    return np.repeat(np.arange(n), sizes)


def make(text, n=200, groups=None, seed=3):
    """A split of `n` identities called "0", "1", ..."""
    groups = np.arange(n) if groups is None else np.asarray(groups)
    return make_split(text, long_tail(n), groups, [*map(str, range(n))], seed=seed)


# --- percentages ---


def test_split_is_a_stratified_partition():
    labels = long_tail()
    split = split_identities(labels, np.arange(200), seed=3)
    assert sorted(np.concatenate(split)) == list(range(200))
    assert [len(part) for part in split] == [80, 20, 100]
    # Stratified: the parts' shares of images are near their shares of identities.
    images = np.bincount(labels)
    shares = [images[part].sum() / len(labels) for part in split]
    np.testing.assert_allclose(shares, [0.4, 0.1, 0.5], atol=0.03)


def test_split_depends_on_the_seed_alone():
    labels = long_tail()
    first, again, other = (split_identities(labels, np.arange(200), seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.train, other.train)


def test_a_seed_always_gives_the_same_split():
    split = split_identities(
        np.repeat(np.arange(20), np.arange(1, 21)), np.arange(20) // 2 * 2, seed=5
    )
    assert [part.tolist() for part in split] == [
        [6, 7, 10, 11, 14, 15, 16, 17],
        [4, 5],
        [0, 1, 2, 3, 8, 9, 12, 13, 18, 19],
    ]


def test_the_largest_identity_is_not_always_in_the_same_part():
    labels = np.concatenate([long_tail(), np.full(500, 200)])
    parts = {
        next(i for i, part in enumerate(split) if 200 in part)
        for split in (split_identities(labels, np.arange(201), seed=s) for s in range(20))
    }
    assert len(parts) > 1


def test_groups_stay_together():
    letters = load_dataset("glyphs", None, None, False)
    for seed, text in itertools.product(range(3), ["40/10/50", "halves"]):
        split = make_split(text, letters.labels, letters.groups, letters.identities, seed=seed)
        sides = [set(letters.groups[part]) for part in split]
        assert not any(a & b for a, b in itertools.combinations(sides, 2))
        total = len(letters.identities)
        assert sum(map(len, split)) == total
        np.testing.assert_allclose([len(p) / total for p in split], [0.4, 0.1, 0.5], atol=0.05)


def test_percentages_are_fractions_in_words():
    expected = split_identities(long_tail(), np.arange(200), seed=3)
    assert all(map(np.array_equal, make("40/10/50"), expected))
    assert [len(part) for part in make("60/20/20")] == [120, 40, 40]
    assert [len(part) for part in make("62.5/12.5/25")] == [125, 25, 50]
    assert [len(part) for part in make("33.333/33.333/33.334")] == [67, 66, 67]


@pytest.mark.parametrize(
    "text",
    [
        *("", "half", "Halves", "40/60", "40/10/40", "0/50/50", "-10/60/50", "40/10/50/0"),
        *("40,10,50", "nan/50/50", "1e1/40/50", "40/10/50%", "lists.csv", "100/0/0", "٤٠/10/50"),
    ],
)
def test_another_text_is_an_error_that_shows_the_forms(text):
    with pytest.raises(ValueError, match=r"sum to 100.*40/10/50; or halves; .*\.json") as caught:
        make(text)
    assert str(caught.value).endswith(f"got {text!r}")
    with pytest.raises(ValueError, match="sum to 100"):
        check_split(text)


def test_the_text_is_checked_without_data():
    for text in ("40/10/50", "halves", "missing.json"):
        check_split(text)


@pytest.mark.parametrize("text", ["40/10/50", "10/80/10", "70/0.5/29.5", "98/1/1"])
def test_too_few_identities_says_how_many_are_needed(text):
    with pytest.raises(
        ValueError, match=rf"a {text} split needs at least \d+ identities"
    ) as caught:
        make(text, 6)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert min(map(len, make(text, least))) == 2
    with pytest.raises(ValueError, match=f"at least {least} .* got {least - 1} "):
        make(text, least - 1)


def test_too_few_identities_suggests_other_percentages():
    with pytest.raises(ValueError, match="got 10") as caught:
        make("40/10/50", 10)
    assert str(caught.value) == (
        "a 40/10/50 split needs at least 15 identities for two in each part; got 10 (4, 1 and 5); "
        "--split 40/20/40 would do with 10"
    )
    for n in range(6, 15):
        with pytest.raises(ValueError, match=f"would do with {n}") as caught:
            make("40/10/50", n)
        make(str(caught.value).split("; ")[-1].split()[1], n)
    with pytest.raises(
        ValueError, match=r"got 5 \(2, 1 and 2\); two identities for each part are six"
    ):
        make("40/10/50", 5)


def test_too_few_groups_are_counted_as_groups():
    groups = [0] * 20 + [*range(1, 10)]
    with pytest.raises(
        ValueError, match=r"15 groups of .* got 10 \(4, 1 and 5\); --split 40/20/40"
    ):
        make("40/10/50", 29, groups)
    assert min(map(len, make("40/20/40", 29, groups))) >= 2


def test_fractions_must_be_of_the_whole():
    with pytest.raises(ValueError, match="sum to 1"):
        split_identities(np.arange(80), np.arange(80), seed=0, fractions=(0.5, 0.1, 0.5))


# --- halves ---


@pytest.mark.parametrize(
    ("n", "sizes"), [(200, [80, 20, 100]), (196, [78, 20, 98]), (16, [6, 2, 8]), (33, [13, 3, 17])]
)
def test_halves_train_on_the_first(n, sizes):
    split = make("halves", n)
    assert [len(part) for part in split] == sizes
    assert split.test.tolist() == [*range(n // 2, n)]
    assert sorted([*split.train, *split.validation]) == [*range(n // 2)]


def test_the_seed_of_halves_decides_the_validation_alone():
    first, again, other = (make("halves", seed=seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert np.array_equal(first.test, other.test)
    assert not np.array_equal(first.validation, other.validation)
    sizes = np.bincount(long_tail())
    validations = [sizes[make("halves", seed=seed).validation].sum() for seed in range(10)]
    np.testing.assert_allclose(np.divide(validations, sizes[:100].sum()), 0.2, atol=0.03)


def test_halves_keep_groups_whole_in_the_order_they_appear():
    groups = np.array([*range(10, 20), *[5] * 3, *[2] * 4, *[5] * 3, *range(20, 40)])
    for seed in range(5):  # 10 + 6 + 4 = 20 of 40
        assert make("halves", 40, groups, seed).test.tolist() == [*range(20, 40)]
    groups[20] = 2  # too many by one, so the group of four and one is in the test
    for seed in range(5):
        assert make("halves", 40, groups, seed).test.tolist() == [13, 14, 15, 16, *range(20, 40)]


@pytest.mark.parametrize(("n", "groups"), [(15, None), (40, [0] * 40), (40, [0] * 20 + [1] * 20)])
def test_halves_of_too_few(n, groups):
    with pytest.raises(ValueError, match=rf"halves needs at least two .* 16 .* got {n} \("):
        make("halves", n, groups)


# --- lists ---


@pytest.fixture
def write(tmp_path):
    def write(content, name="lists.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


LISTS = {"train": ["7", "2", "5"], "validation": ["0", "1"], "test": ["9", "8"]}


def test_lists_are_taken_as_they_are(write):
    for content in (LISTS, {"images": 10, "identities": LISTS, "coverage": {}}):
        split = make(write(content), 10)
        assert [part.tolist() for part in split] == [[2, 5, 7], [0, 1], [8, 9]]
        assert all(part.dtype == int for part in split)


def test_a_split_written_down_is_the_same_split(write):
    split = make("40/10/50")
    lists = {part: [*map(str, getattr(split, part))] for part in split._fields}
    assert all(map(np.array_equal, make(write(lists), seed=99), split))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "must hold lists train, validation, test; train is missing"),
        ({"identities": ["1"]}, "train is missing"),
        ({"train": ["1"], "test": ["2"]}, "validation is missing"),
        ({**LISTS, "test": "9"}, "test must be a list of names; got '9'"),
        ({**LISTS, "test": ["9", 8]}, "test must be a list of names; got 8 in it"),
        (
            {**LISTS, "train": ["7", "99", "x", "y", "z"]},
            "4 of 9 names .* 10 identities: '99', 'x', 'y' and 1 more. Did you mean '9'",
        ),
        ({**LISTS, "train": ["7", "2", "9"]}, "once; got more of '9', in train and test"),
        ({**LISTS, "train": ["7", "2", "7"]}, "once; got more of '7', in train$"),
        ({**LISTS, "train": ["7"]}, r"at least two identities; got 5 \(1, 2 and 2\)"),
    ],
)
def test_lists_that_cannot_be_used(write, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(write(content), 10)
    assert "lists.json" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the split .*none.json: No such file"):
        make(str(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes(b'{"train": ["\xe9"]}')
    with pytest.raises(ValueError, match="not JSON"):
        make(str(tmp_path / "latin.json"))


def test_names_must_be_unambiguous(write):
    with pytest.raises(ValueError, match="several have the same: '1'"):
        make_split(write(LISTS), np.arange(4), np.arange(4), ["0", "1", "2", "1"], seed=0)

"""Identification against plain loops; groups, ties, blocks and bad input."""

import numpy as np
import pytest

import margin_jax as mj
from margin_jax.evaluation import blocks


def plain(x, whose, q, of_query, threshold, own=None, other=None, ranks=(1, 5, 10)):
    """Every query by itself, its candidates sorted by distance and then by index."""
    mated, unknown, left_out = [], [], 0
    for i, label in enumerate(of_query):
        near = []
        for j, name in enumerate(whose):
            if own is not None and name == label and own[j] == other[i]:
                continue
            near.append((float(np.abs(q[i] - x[j]).sum()), j, name))
        near.sort()
        if label not in set(whose):
            unknown.append(near[0][0])
        elif label not in {name for _, _, name in near}:
            left_out += 1
        else:
            mated.append((near[0][0], [name == label for _, _, name in near]))
    found = {
        "rank_at": {k: np.mean([any(right[:k]) for _, right in mated]) for k in ranks},
        "tpir": np.mean([right[0] and d <= threshold for d, right in mated]),
        "fpir": np.mean([d <= threshold for d in unknown]) if unknown else None,
        "mated": len(mated),
        "unmated": len(unknown),
        "left_out": left_out,
        "tpir_at_fpir": dict.fromkeys((0.01, 0.001)),
    }
    for rate in found["tpir_at_fpir"] if unknown else ():
        limits = [-np.inf, *(d for d, _ in mated), *unknown]
        found["tpir_at_fpir"][rate] = max(
            np.mean([right[0] and d <= limit for d, right in mated])
            for limit in limits
            if np.mean([d <= limit for d in unknown]) <= rate
        )
    return found


def drawn(seed, whole=False, queries=60):
    rng = np.random.default_rng(seed)
    whose, of_query = rng.integers(0, 12, 50), rng.integers(0, 16, queries)
    faces = rng.normal(size=(16, 3)) * 1.5
    x, q = faces[whose] + rng.normal(size=(50, 3)), faces[of_query] + rng.normal(size=(queries, 3))
    if whole:
        x, q = np.round(x), np.round(q)  # many distances are equal
    return x, whose, q, of_query, rng.integers(0, 3, 50), rng.integers(0, 3, queries)


def shown(report):
    names = ("rank_at", "tpir", "fpir", "mated", "unmated", "left_out", "tpir_at_fpir")
    return {name: getattr(report, name) for name in names}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops(seed, whole, grouped, monkeypatch):
    x, whose, q, of_query, own, other = drawn(seed, whole)
    x, q = x.astype(np.float32), q.astype(np.float32)
    groups = {"gallery_groups": own, "query_groups": other} if grouped else {}
    options = {"distance": "manhattan", "threshold": 2.0, "ranks": (1, 2, 7, 100), **groups}
    report = mj.identification_report(x, whose, q, of_query, **options)
    expected = plain(
        x, whose, q, of_query, 2.0, *((own, other) if grouped else ()), ranks=(1, 2, 7, 100)
    )
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value), name
    assert report.rank_at[100] == 1
    assert (report.gallery, report.identities) == (50, len(set(whose)))
    monkeypatch.setattr(blocks, "TILE", 7 * len(x))  # the last block is not full
    assert mj.identification_report(x, whose, q, of_query, **options) == report


def test_tpir_at_fpir_where_some_unknown_may_be_named():
    """Of 1,000 unmated queries ten may be, at 1 %, or one; and of a tie none."""
    rng = np.random.default_rng(0)
    of_query = np.repeat([0, 1], [200, 1000])
    q = np.where(of_query == 0, rng.random(1200), 0.5 + rng.random(1200))
    report = mj.identification_report(np.zeros((1, 1)), np.zeros(1, int), q[:, None], of_query)
    near = np.sort(q[of_query == 1].astype(np.float32))
    for rate, allowed in ((0.01, 10), (0.001, 1)):
        expected = np.mean(q[of_query == 0].astype(np.float32) < near[allowed])
        assert report.tpir_at_fpir[rate] == expected
    assert report.warnings == (
        "TPIR at FPIR 0.001 needs 10,000 unmated queries to say much; got 1,000",
    )
    q[of_query == 1] = 0.5
    tied = mj.identification_report(np.zeros((1, 1)), np.zeros(1, int), q[:, None], of_query)
    assert tied.tpir_at_fpir[0.01] == np.mean(q[of_query == 0].astype(np.float32) < 0.5)


def test_ties_go_to_the_lower_index():
    x, q = np.zeros((2, 1)), np.zeros((1, 1))
    first = mj.identification_report(x, np.array([0, 1]), q, np.array([0]), threshold=0.0)
    second = mj.identification_report(x, np.array([1, 0]), q, np.array([0]), ranks=(1, 2))
    assert (first.rank_at[1], first.tpir) == (1, 1)
    assert second.rank_at == {1: 0, 2: 1}


def test_names_and_groups_may_be_text_and_other_cameras_stay():
    x = np.array([[0.0], [1.0], [2.0], [0.5]])
    whose, own = np.array(["al", "al", "bo", "bo"]), np.array(["c1", "c2", "c1", "c1"])
    report = mj.identification_report(
        x, whose, np.array([[0.1]]), np.array(["al"]), gallery_groups=own, query_groups=["c1"]
    )
    assert report.rank_at[1] == 0, "bo, of the same camera, is a candidate, and al's first not"
    assert report.rank_at[5] == 1
    alone = mj.identification_report(
        x,
        whose,
        np.array([[0.1], [2.0]]),
        np.array(["al", "bo"]),
        gallery_groups=own,
        query_groups=["c1", "c1"],
    )
    assert (alone.mated, alone.left_out, alone.unmated) == (1, 1, 0)
    assert "1 queries left out" in alone.lines()[-1]


@pytest.mark.parametrize("kind", [np.uint64, object])
def test_the_same_identities_in_other_types(kind):
    """Beyond 2^53 numpy compares signed with unsigned numbers as floats, which are equal."""
    gallery, queries = np.array([[0.0], [5.0]]), np.array([[1.0], [5.0]])
    enrolled, names = np.array([2**60, 2**60 + 1]), np.array([2**60 + 1] * 2)
    if kind is object:  # as a table has text
        enrolled, names = enrolled.astype(str), names.astype(str)
    report = mj.identification_report(gallery, enrolled, queries, names.astype(kind))
    assert report.rank_at[1] == 0.5


def test_what_is_written_and_said():
    x, whose, q, of_query, *_ = drawn(0)
    report = mj.identification_report(x, whose, q, of_query, threshold=2.0)
    written = report.to_json()
    assert written["rank_at"] == {str(k): share for k, share in report.rank_at.items()}
    assert written["tpir_at_fpir"]["0.01"] == report.tpir_at_fpir[0.01]
    assert written["warnings"] == list(report.warnings)
    said = report._repr_markdown_()
    assert f"rank-1 {report.rank_at[1]:.2%}" in said
    assert f"TPIR {report.tpir:.2%}, FPIR {report.fpir:.2%} at threshold 2.0000" in said
    assert f"note: {report.warnings[0]}" in said
    known = mj.identification_report(x, whose, q[of_query < 3], of_query[of_query < 3])
    assert (known.unmated, known.fpir, known.tpir, known.threshold) == (0, None, None, None)
    assert known.tpir_at_fpir == {0.01: None, 0.001: None}
    assert known.warnings == ("no query is unmated, so nothing is known of false positives",)
    assert "FPIR" not in " ".join(known.lines())


LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": np.zeros(2)}, r"got shapes \(2,\) and \(2,\)"),
        ({"gallery": np.zeros((0, 2)), "gallery_labels": LABELS[:0]}, "n at least 1"),
        ({"queries": np.zeros((2, 3))}, r"got shapes \(2, 2\) and \(2, 3\)"),
        ({"queries": np.full((2, 2), np.inf)}, "embeddings must be finite"),
        ({"gallery": np.full((2, 2), 1e30)}, "distances must be finite; 4 of 4"),
        ({"query_labels": LABELS + 2}, "no query is of an identity in the gallery; got 2 queries"),
        ({"query_labels": np.array(["a", "b"])}, "both be numbers or both text; got int64 and <U1"),
        ({"ranks": (0, 1)}, "ranks must be at least 1"),
        ({"threshold": np.nan}, "got NaN"),
        ({"query_groups": LABELS}, "must be given together"),
        ({"query_groups": LABELS, "gallery_groups": LABELS[:1]}, r"got \(1,\) and \(2,\)"),
        ({"query_groups": LABELS, "gallery_groups": LABELS}, "only in images of its own group"),
        ({"distance": "euclid"}, "Did you mean 'euclidean'"),
    ],
)
def test_bad_input(change, message):
    given = {
        "gallery": np.zeros((2, 2)),
        "gallery_labels": LABELS,
        "queries": np.zeros((2, 2)),
        "query_labels": LABELS,
    }
    with pytest.raises(ValueError, match=message):
        mj.identification_report(**{**given, **change})

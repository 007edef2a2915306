"""What came of a comparison: intervals and p values are those of scipy, and words say no more."""

import math

import numpy as np
import pytest
from scipy import stats

import margin_jax as mj
from margin_jax.runs.comparison import holm


def comparison(*, baseline="base", **auc):
    """Of made-up test AUCs, by arm."""
    reports = {
        name: {seed: {"test": {"auc": value}} for seed, value in enumerate(values)}
        for name, values in auc.items()
    }
    seeds = tuple(range(len(auc[baseline])))
    return mj.Comparison(tuple(auc), seeds, reports, {}, baseline)


def test_summaries_are_paired_t_intervals():
    rng = np.random.default_rng(0)
    auc = {"dams": rng.random(5), "base": rng.random(5)}
    summary = comparison(**auc).summary("dams", "auc")
    low, high = stats.ttest_1samp(auc["dams"], 0).confidence_interval(0.95)
    assert summary.mean == pytest.approx((low + high) / 2)
    assert summary.interval == pytest.approx((high - low) / 2)
    paired = stats.ttest_rel(auc["dams"], auc["base"])
    low, high = paired.confidence_interval(0.95)
    assert summary.difference == pytest.approx((low + high) / 2)
    assert summary.difference_interval == pytest.approx((high - low) / 2)
    assert summary.p_value == pytest.approx(paired.pvalue)
    alone = comparison(base=[0.9]).summary("base", "auc")
    assert math.isnan(alone.interval)
    assert math.isnan(alone.p_value)


def test_differences_without_spread_have_a_p_value():
    found = comparison(base=[0.5, 0.5], more=[0.75, 0.75], same=[0.5, 0.5])
    assert found.summary("more", "auc").p_value == 0
    assert found.summary("same", "auc").p_value == 1


def test_the_correction_is_holms():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1, "b": 1}
    assert holm({}) == {}


BASE = (0.90, 0.91, 0.92, 0.93, 0.94)


def plus(*differences):
    return [b + d for b, d in zip(BASE, differences, strict=True)]


def test_the_verdict_says_what_is_clear_and_what_is_not():
    said = comparison(
        base=BASE,
        up=plus(0.010, 0.011, 0.012, 0.013, 0.014),
        down=plus(-0.02, -0.02, -0.021, -0.02, -0.02),
        noise=plus(0.01, -0.01, 0.01, -0.01, 0.002),
        other=plus(0.02, -0.01, 0.0, -0.01, 0.002),
        equal=BASE,
    ).verdict()
    assert said == (
        "AUC: up (+0.0120 ± 0.0020) is clearly ahead of base; down (-0.0202 ± 0.0006) is clearly "
        "behind base; noise and other are not clearly different from base; equal is equal to base "
        "with every seed. 5 seeds, paired; corrected for 4 comparisons (Holm)."
    )


def test_what_is_clear_alone_may_not_be_among_many():
    near = plus(0.010, 0.030, 0.002, 0.020, 0.028)  # p = 0.028
    alone = comparison(base=BASE, near=near)
    assert 0.025 < alone.summary("near", "auc").p_value < 0.05
    assert "near (+0.0180 ± 0.0148) is clearly ahead of base. 5 seeds, paired." in alone.verdict()
    noise = plus(0.01, -0.01, 0.01, -0.01, 0.002)
    among = comparison(base=BASE, near=near, noise=noise)
    assert "AUC: near and noise are not clearly different from base." in among.verdict()


def test_few_seeds_are_told():
    two = comparison(base=BASE[:2], up=[0.95, 0.96])
    assert two.verdict().endswith(
        "With so few seeds differences are a hint at best: use 3 or more."
    )
    three = comparison(base=BASE[:3], up=[0.95, 0.96, 0.98])
    assert three.verdict().endswith("3 seeds, paired.")
    one = comparison(base=BASE[:1], up=[0.99])
    assert one.verdict().startswith("One seed shows no spread, so nothing is clear")
    assert "nothing to compare it with" in comparison(base=BASE).verdict()

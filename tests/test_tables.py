"""Lines and tables of figures, every one of which is another number."""

from margin_jax.evaluation import tables


def figures(n, **more):
    """What verification writes, of which each number tells where it is from."""
    return {
        "auc": 0.9 + n / 1000,
        "eer": 0.1 + n / 1000,
        "accuracy": 0.8 + n / 1000,
        "tpr_at_fpr": {"0.01": 0.3 + n / 1000, "0.001": 0.2 + n / 1000},
        "same_pairs": 1000 + n,
        "different_pairs": 2000 + n,
        **more,
    }


def test_errors_and_intervals_are_said_below():
    assert tables.certainty(TEST) == [], "a report of an earlier version"
    more = {"fmr": 0.012, "fnmr": 0.4, "threshold": 0.5, "intervals": None}
    assert tables.certainty(figures(0, **more)) == ["FMR .0120, FNMR .4000 at threshold 0.5000"]
    more["intervals"] = {
        "auc": [0.8, 1.0],
        "eer": [0.09, 0.11],
        "fmr": [0.0, 0.02],
        "fnmr": [0.31, 0.5],
        "tpr_at_fpr": {"0.01": [0.25, 0.35], "0.001": [0.15, 0.24]},
        "identities": 1234,
    }
    assert tables.certainty(figures(0, **more)) == [
        "AUC .9000 [.8000, 1.0000], EER .1000 [.0900, .1100] "
        "[95 % intervals, 1,234 identities resampled]",
        "TPR@FPR 0.01 .3000 [.2500, .3500], TPR@FPR 0.001 .2000 [.1500, .2400]",
        "FMR .0120 [.0000, .0200], FNMR .4000 [.3100, .5000] at threshold 0.5000",
    ]


RAW = figures(4, published=figures(5), hard=figures(6))
TEST = figures(1, published=figures(2), hard=figures(3), raw=RAW)


def test_a_line_has_each_figure_under_its_name():
    header = tables.HEADER
    line = tables.figures("embedding", TEST)
    told = {
        name: line[: header.index(name) + len(name)].split()[-1]
        for name in ("AUC", "EER", "accuracy", "TPR@FPR 0.01", "pairs")
    }
    assert told == {
        "AUC": "0.9010",
        "EER": "10.10%",
        "accuracy": "80.10%",
        "TPR@FPR 0.01": "30.10%",
        "pairs": "3,002",
    }
    assert line.split()[0] == "embedding"


def test_a_table_has_the_same_columns():
    head, _, first, second = tables.table([("one", TEST), ("  other", RAW)]).splitlines()
    assert head == "| | AUC | EER | accuracy | TPR@FPR 0.01 | pairs |"
    assert first == "| one | 0.9010 | 10.10% | 80.10% | 30.10% | 3,002 |"
    assert second == "| &emsp;other | 0.9040 | 10.40% | 80.40% | 30.40% | 3,008 |"


def test_every_set_of_pairs_has_its_name():
    def rows(test):
        return [(name, report["same_pairs"] - 1000) for name, report in tables.report_rows(test)]

    assert rows(TEST) == [
        ("embedding", 1),
        ("  paper's pair count", 2),
        ("  hard pairs", 3),
        ("raw values", 4),
        ("  hard pairs", 6),
    ]
    without = {name: value for name, value in TEST.items() if name != "hard"}
    assert rows(without) == [row for row in rows(TEST) if row[1] != 3]
    assert rows({**TEST, "raw": None}) == rows(TEST)[:3]


def test_where_the_margin_and_the_easy_triplets_went():
    history = [{"margin": 0.1 * n, "easy_fraction": 0.2 * n} for n in (1, 2, 3)]
    assert tables.training_line({"best_epoch": 2, "epochs": 3}, history) == (
        "best epoch 2 of 3; margin 0.10 -> 0.30; easy triplets 20.0% -> 60.0%"
    )

"""Figures as people read them: lines of text in a terminal, Markdown in a notebook."""

import math
from collections.abc import Sequence
from typing import Any

HEADER = "                             AUC     EER  accuracy  TPR@FPR 0.01          pairs"
_NAMES = ("AUC", "EER", "accuracy", "TPR@FPR 0.01", "pairs")

# A name, and the figures of a verification as JSON has them.
Row = tuple[str, dict[str, Any]]


def figures(name: str, report: dict[str, Any]) -> str:
    """A line under `HEADER`."""
    auc, eer, accuracy, tpr, pairs = _cells(report)
    return f"  {name:<22}{auc:>8}{eer:>8}{accuracy:>10}{tpr:>14}{pairs:>15}"


def table(rows: Sequence[Row]) -> str:
    """The same figures in Markdown; a name that begins with spaces is set in."""
    lines = [f"| | {' | '.join(_NAMES)} |", "|---|" + "---:|" * len(_NAMES)]
    for name, report in rows:
        shown = name.replace("  ", "&emsp;")
        lines.append(f"| {shown} | {' | '.join(_cells(report))} |")
    return "\n".join(lines)


def certainty(report: dict[str, Any]) -> list[str]:
    """Lines below a table: 95 % intervals, and the errors at the threshold.

    A report of an earlier version has neither.
    """
    if "fmr" not in report:
        return []
    ends = report["intervals"] or {}

    def shown(name: str, value: float, interval: Sequence[float] | None) -> str:
        return f"{name} {_share(value)}" + (
            "" if interval is None else f" [{_share(interval[0])}, {_share(interval[1])}]"
        )

    lines = []
    if ends:
        names = f"[95 % intervals, {ends['identities']:,} identities resampled]"
        figures = [shown(n.upper(), report[n], ends[n]) for n in ("auc", "eer")]
        lines.append(f"{', '.join(figures)} {names}")
        rates = report["tpr_at_fpr"].items()
        lines.append(
            ", ".join(shown(f"TPR@FPR {n}", tpr, ends["tpr_at_fpr"][n]) for n, tpr in rates)
        )
    errors = [shown(n.upper(), report[n], ends.get(n)) for n in ("fmr", "fnmr")]
    lines.append(f"{', '.join(errors)} at threshold {report['threshold']:.4f}")
    return lines


def for_rate(fmr: float | None) -> str:
    """What a threshold was chosen for, if it is a false match rate."""
    return "" if fmr is None else f" for FMR {fmr:g}"


def report_rows(test: dict[str, Any]) -> list[Row]:
    """All that ``report.json`` has under "test"."""
    raw = test["raw"]
    return [
        ("embedding", test),
        ("  paper's pair count", test["published"]),
        *([("  hard pairs", test["hard"])] if "hard" in test else []),
        *([("raw values", raw)] if raw else []),
        *([("  hard pairs", raw["hard"])] if raw and "hard" in raw else []),
    ]


def training_line(report: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """The best epoch, and where the margin and the easy triplets went."""
    first, last = history[0], history[-1]
    return (
        f"best epoch {report['best_epoch']} of {report['epochs']}; margin "
        f"{first['margin']:.2f} -> {last['margin']:.2f}; easy triplets "
        f"{_percent(first['easy_fraction'])} -> {_percent(last['easy_fraction'])}"
    )


def _percent(value: float | None) -> str:
    """NaN, in JSON null, is said of an epoch without triplets."""
    return "none" if value is None or math.isnan(value) else f"{value:.1%}"


def _cells(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['auc']:.4f}",
        f"{report['eer']:.2%}",
        f"{report['accuracy']:.2%}",
        f"{report['tpr_at_fpr']['0.01']:.2%}",
        f"{report['same_pairs'] + report['different_pairs']:,}",
    ]


def _share(value: float) -> str:
    """Four digits and no nought before them: a share of pairs in a line with many."""
    return f"{value:.4f}".removeprefix("0")

"""Figures as people read them: lines of text in a terminal, Markdown in a notebook."""

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


def report_rows(test: dict[str, Any]) -> list[Row]:
    """All that ``report.json`` has under "test"."""
    raw = test["raw"]
    return [
        ("embedding", test),
        ("  published number", test["published"]),
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
        f"{first['easy_fraction']:.1%} -> {last['easy_fraction']:.1%}"
    )


def _cells(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['auc']:.4f}",
        f"{report['eer']:.2%}",
        f"{report['accuracy']:.2%}",
        f"{report['tpr_at_fpr']['0.01']:.2%}",
        f"{report['same_pairs'] + report['different_pairs']:,}",
    ]

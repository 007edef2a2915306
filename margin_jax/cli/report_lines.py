"""The lines that show figures of a verification."""

from typing import Any

HEADER = "                             AUC     EER  accuracy  TPR@FPR 0.01          pairs"


def figures(name: str, report: dict[str, Any]) -> str:
    """A line under `HEADER`."""
    pairs = report["same_pairs"] + report["different_pairs"]
    return (
        f"  {name:<22}{report['auc']:8.4f}{report['eer']:8.2%}{report['accuracy']:10.2%}"
        f"{report['tpr_at_fpr']['0.01']:14.2%}{pairs:15,}"
    )

"""Verification in folds, as LFW is reported: each fold decided by what the others taught."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from margin_jax.evaluation.verification import most_accurate_threshold


@dataclass(frozen=True)
class FoldReport:
    """Accuracy over folds.

    Attributes:
        accuracies: of each fold, at the threshold that is most accurate on all others.
        thresholds: those thresholds, distances.
    """

    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.accuracies))

    @property
    def standard_error(self) -> float:
        """Of that mean: the standard deviation of the folds' accuracies, over √folds."""
        return float(np.std(self.accuracies, ddof=1) / np.sqrt(len(self.accuracies)))

    def to_json(self) -> dict[str, Any]:
        """The figures, ready for ``json.dumps``."""
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "accuracies": list(self.accuracies),
            "thresholds": list(self.thresholds),
        }


def fold_report(distances: np.ndarray, same: np.ndarray, folds: np.ndarray) -> FoldReport:
    """Accuracy of each fold at the threshold that is most accurate on the others.

    Args:
        distances: float[pairs].
        same: bool[pairs].
        folds: int[pairs], which fold a pair belongs to.

    Raises:
        ValueError: fewer than two folds; shapes that differ, a distance that is not finite, or
            folds whose others have pairs of one kind only.

    References:
        Huang et al. 2007, "Labeled Faces in the Wild": View 2, ten folds.
    """
    folds = np.asarray(folds)
    names = np.unique(folds)
    if folds.shape != np.shape(distances) or len(names) < 2:
        raise ValueError(
            f"expected a fold for each of the pairs, at least two folds; got {len(names)} for "
            f"{folds.shape} of {np.shape(distances)}"
        )
    accuracies, thresholds = [], []
    for name in names:
        own, others = folds == name, folds != name
        threshold = most_accurate_threshold(distances[others], same[others])
        thresholds.append(threshold)
        accuracies.append(float(np.mean((distances[own] <= threshold) == same[own])))
    return FoldReport(tuple(accuracies), tuple(thresholds))

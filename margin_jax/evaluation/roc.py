"""The ROC of pairs, FPR and TPR at every distance there is, and their equal error rate."""

import numpy as np


def check_finite(bad: int, pairs: int) -> None:
    """Raises ValueError if the distances of some, `bad`, pairs are not finite."""
    if bad:
        raise ValueError(f"distances must be finite; {bad} of {pairs} are not")


def check_kinds(same: int, pairs: int) -> None:
    """Raises ValueError if all pairs are of one kind."""
    if same in (0, pairs):
        raise ValueError(f"verification needs same and different pairs; got {same} same of {pairs}")


def roc(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FPR, TPR and threshold at every distance there is, after that at which none is the same."""
    distances, same = np.asarray(distances, np.float64), np.asarray(same)
    if distances.ndim != 1 or distances.shape != same.shape:
        raise ValueError(
            f"distances and same must be one-dimensional and of one length; "
            f"got shapes {distances.shape} and {same.shape}"
        )
    if same.dtype != np.bool_:
        raise TypeError(f"same must be boolean; got {same.dtype}")
    check_finite(int(np.count_nonzero(~np.isfinite(distances))), len(distances))
    check_kinds(int(np.count_nonzero(same)), len(same))
    order = np.argsort(distances, kind="stable")
    distances = distances[order]
    last = np.append(np.flatnonzero(np.diff(distances)), len(order) - 1)  # of equal distances
    true = np.append(0, np.cumsum(same[order])[last])
    false = np.append(0, 1 + last) - true
    return false / false[-1], true / true[-1], np.append(-np.inf, distances[last])


def equal_error_rate(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """Where FPR − (1 − TPR), which rises from −1 to 1 along the ROC, crosses 0."""
    excess = fpr - (1 - tpr)
    after = int(np.argmax(excess >= 0))
    before = after - 1
    part = -excess[before] / (excess[after] - excess[before])
    return float(fpr[before] + part * (fpr[after] - fpr[before]))

"""Records results of PyTorch Metric Learning for tests/test_golden_losses.py.

    pip install torch==2.13.0 && pip install --no-deps pytorch-metric-learning==2.9.0
    python experiments/make_loss_golden.py

Values and gradients in float64 of ArcFaceLoss and CosFaceLoss (with their proxies given),
SupConLoss, and DynamicSoftMarginLoss with the histogram after each of three batches. The last one
is changed in two points to agree with the authors' code: no gradient flows through the histogram
(with gradients it fails in a second step), and a batch enters it with the weight `momentum`,
whatever its number of triplets. Its bins end at 2, as in that code. The result is
``tests/golden/losses_golden.json``.
"""

import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "losses_golden.json"
LIBRARIES = ("pytorch-metric-learning", "torch")
ROWS, DIM, CLASSES = 10, 5, 4


class DynamicSoftMarginLoss(losses.DynamicSoftMarginLoss):
    """With the histogram of the authors' code."""

    def __init__(self, **options):
        super().__init__(**options)
        self.delta = 2 * abs(self.min_val) / (self.num_bins - 1)

    def update_histogram(self, data):
        """The library's own of this batch alone, mixed with what was before."""
        before, self.hist_ = self.hist_, torch.zeros_like(self.hist_)
        super().update_histogram(data.detach())
        momentum = self.momentum if before.sum() else 1.0
        self.hist_ = (1 - momentum) * before + momentum * self.hist_


def batch(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, ROWS)
    # Of any length, and near their class, so that some angles are small.
    x = rng.normal(size=(ROWS, DIM)) + np.eye(CLASSES, DIM)[labels]
    return torch.tensor(x), torch.tensor(labels)


def told(loss_fn, x, labels, proxies=None):
    """Value and gradients, as lists."""
    x = x.detach().requires_grad_()
    value = loss_fn(x, labels)
    value.backward()
    found = {"loss": value.item(), "to_embeddings": x.grad.tolist()}
    if proxies is not None:
        found["to_proxies"] = proxies.grad.T.tolist()
    return found


def classifier(loss_fn, weights, x, labels):
    loss_fn = loss_fn.double()
    loss_fn.W = torch.nn.Parameter(weights.T.clone())
    return told(loss_fn, x, labels, loss_fn.W)


def main():
    torch.set_default_dtype(torch.float64)
    batches = [batch(seed) for seed in range(3)]
    weights = torch.tensor(np.random.default_rng(9).normal(size=(CLASSES, DIM)))
    x, labels = batches[0]
    cases = []
    for margin in (0.0, 0.5, 2.5):
        for scale in (1.0, 16.0):
            arc = losses.ArcFaceLoss(CLASSES, DIM, margin=math.degrees(margin), scale=scale)
            cos = losses.CosFaceLoss(CLASSES, DIM, margin=margin, scale=scale)
            case = {"margin": margin, "scale": scale}
            cases.append({"name": "arcface", **case, **classifier(arc, weights, x, labels)})
            cases.append({"name": "cosface", **case, **classifier(cos, weights, x, labels)})
    for temperature in (0.1, 0.5):
        loss_fn = losses.SupConLoss(temperature=temperature)
        cases.append({"name": "supcon", "temperature": temperature, **told(loss_fn, x, labels)})
    for bins, momentum in ((16, 0.01), (512, 0.3)):
        loss_fn = DynamicSoftMarginLoss(num_bins=bins, momentum=momentum)
        steps = []
        for rows, own in batches:
            step = told(loss_fn, rows, own)
            steps.append({**step, "histogram": loss_fn.hist_.tolist()})
        case = {"name": "dynamic_soft_margin", "bins": bins, "momentum": momentum}
        cases.append({**case, "steps": steps})
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    record = {
        "made by": {name: version.partition("+")[0] for name, version in versions.items()},
        "batches": [{"embeddings": x.tolist(), "labels": y.tolist()} for x, y in batches],
        "proxies": weights.tolist(),
        "cases": cases,
    }
    GOLDEN.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

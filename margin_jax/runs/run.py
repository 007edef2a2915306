"""A finished run: its weights, its figures, and what it is asked for."""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from margin_jax.config import TrainConfig
from margin_jax.data.dataset import Examples
from margin_jax.devices.meshes import local_mesh, place_copies
from margin_jax.evaluation.embedding import embed_examples, pair_distances
from margin_jax.evaluation.tables import certainty, for_rate, report_rows, table, training_line
from margin_jax.evaluation.verification import VerificationReport, verification_report
from margin_jax.models.encoder import Encoder
from margin_jax.runs import hub
from margin_jax.runs.export import save
from margin_jax.runs.portable import Model, model_of


@dataclass(frozen=True)
class Run:
    """A trained encoder with its configuration, records and results.

    Attributes:
        path: the run folder.
        config: the configuration.
        history: one record per epoch, as in ``history.jsonl``.
        report: as in ``report.json``; the test results are under "test".
        data: as in ``data.json``.
        encoder: the network and the normalisation of its examples, as pure functions.
        params, batch_stats: the weights of the best epoch.
    """

    path: Path
    config: TrainConfig
    history: list[dict[str, Any]] = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    encoder: Encoder = field(repr=False)
    params: chex.ArrayTree = field(repr=False)
    batch_stats: chex.ArrayTree = field(repr=False)

    @property
    def threshold(self) -> float:
        """The distance up to which two examples count as the same, chosen on validation."""
        return float(self.report["test"]["threshold"])

    @property
    def embeds_pictures(self) -> bool:
        """Whether it was trained on images (uint8) rather than floats."""
        return bool(self.data["example_dtype"] == "uint8")

    @property
    def embeds_vectors(self) -> bool:
        """Whether it was trained on vectors, float[features]."""
        return not self.embeds_pictures and len(self.data["example_shape"]) == 1

    def embed(self, examples: Examples, rows: np.ndarray | None = None) -> np.ndarray:
        """float32[n, embedding_size]: embeddings, of length 1 unless your own network differs.

        Args:
            examples: of the same kind as in training: images, uint8[n, height, width, channels], of
                the same size and channels, or float[n, ...] of the same shape and any float dtype.
            rows: int[rows], the rows to embed, at least one. Default: all.

        Raises:
            TypeError: examples that are not uint8, or not floats, if those of the run are.
            ValueError: examples of another shape or that are not finite, or rows out of range.
        """
        if not isinstance(examples, Examples):
            examples = np.asarray(examples)
        expected = tuple(self.data["example_shape"])
        if self.embeds_pictures and examples.dtype != np.uint8:
            raise TypeError(f"pictures must be uint8, 0 to 255; got {examples.dtype}")
        if not self.embeds_pictures and not jnp.issubdtype(examples.dtype, jnp.floating):
            raise TypeError(f"examples must be floats, as the run's are; got {examples.dtype}")
        if examples.shape[1:] != expected or len(examples) == 0:
            raise ValueError(f"examples must have shape (n, *{expected}); got {examples.shape}")
        rows = np.arange(len(examples)) if rows is None else np.asarray(rows)
        known = rows.dtype.kind in "iu" and rows.ndim == 1 and len(rows) > 0
        if not (known and np.min(rows) >= 0 and np.max(rows) < len(examples)):
            raise ValueError(f"rows must be integers from 0 to {len(examples) - 1}; got {rows}")
        mesh, weights = self._placed
        return embed_examples(self.encoder.apply, *weights, examples, rows, mesh)

    @functools.cached_property
    def _placed(self) -> tuple[Mesh, tuple[chex.ArrayTree, chex.ArrayTree]]:
        """The weights on a device, brought there once and not for every query."""
        mesh = local_mesh()
        return mesh, place_copies((self.params, self.batch_stats), mesh)

    def distances(self, examples: Examples, pairs: np.ndarray) -> np.ndarray:
        """float32[pairs]: distances between the embeddings of pairs of examples.

        Args:
            examples: as in :meth:`embed`.
            pairs: int[pairs, 2], rows of `examples`; only these are embedded.

        Raises:
            TypeError, ValueError: as :meth:`embed`, and for pairs of another shape.
        """
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must have shape (pairs, 2); got {pairs.shape}")
        rows, places = np.unique(pairs, return_inverse=True)
        return pair_distances(
            self.embed(examples, rows), places.reshape(-1, 2), self.config.distance
        )

    def verify(
        self,
        distances: np.ndarray,
        same: np.ndarray,
        *,
        identities: np.ndarray | None = None,
        threshold: float | None = None,
    ) -> VerificationReport:
        """The verification report of pairs with known distances.

        Args:
            distances: float[pairs], as from :meth:`distances`.
            same: bool[pairs].
            identities: [pairs, 2], the identities of the images, for intervals; see
                :func:`~margin_jax.verification_report`.
            threshold: a distance. Default: the run's own.
        """
        threshold = self.threshold if threshold is None else threshold
        return verification_report(distances, same, threshold=threshold, identities=identities)

    def export(self, path: str | Path, *, onnx: bool = False, overwrite: bool = False) -> Path:
        """Writes a model folder with the encoder as StableHLO, which runs without margin-jax.

        The folder holds what :meth:`save_pretrained` writes, and ``encoder.jaxexport``, a
        ``jax.export`` program for CPU, CUDA and TPU, which needs only JAX and takes any number of
        examples. Its arguments are the arrays of ``weights.safetensors``, by name, and the
        examples. The model card has the Python code that runs it.

        Args:
            path: the folder; it is written completely or not at all.
            onnx: also write ``encoder.onnx``, which includes the weights and computes in float32.
            overwrite: replace the model that is there.

        Raises:
            ValueError: if the folder is not empty, your own network cannot be exported, or (with
                `onnx`) the package onnx is missing.
            OSError: if it cannot be written.
        """
        return self._save(path, program=True, onnx=onnx, overwrite=overwrite)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a model folder, from which :func:`load_pretrained` loads this run.

        It holds ``weights.safetensors``, ``model.json`` and a model card, ``README.md``: the
        weights of the best epoch, the results, and how it was trained. It contains no pairs,
        checkpoints or paths, and no names of identities or files.

        Args:
            folder: it is written completely or not at all.
            overwrite: replace the model that is there.

        Raises:
            ValueError: if the folder is not empty.
            OSError: if it cannot be written.
        """
        return self._save(folder, program=False, onnx=False, overwrite=overwrite)

    def push_to_hub(self, name: str, *, private: bool | None = None) -> str:
        """Exports to a Hugging Face repository, creating it if needed; returns its address.

        Args:
            name: "USER/NAME"; ``load_pretrained("hub:USER/NAME")`` reads it.
            private: whether to make it private. Default: the hub's default.

        Raises:
            ValueError: if it fails: no network, no login, or huggingface_hub is missing.
        """
        with tempfile.TemporaryDirectory() as room:
            return hub.push(self.export(Path(room, "model")), name, private)

    def _save(self, path: str | Path, **how: bool) -> Path:
        return save(path, self._model(), self.encoder, self.params, self.batch_stats, **how)

    def _model(self) -> Model:
        return model_of(self.config, self.data, self.report, self.history)

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it: the figures that the command line prints."""
        test = self.report["test"]
        return "\n\n".join(
            [
                training_line(self.report, self.history),
                table(report_rows(test)),
                *certainty(test),
                *(f"note: {warning}" for warning in test["warnings"]),
                f"threshold {self.threshold:.4f}, chosen on validation"
                f"{for_rate(self.config.fmr)}; run folder `{self.path}`",
            ]
        )

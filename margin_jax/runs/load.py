"""Finished runs, loaded from a run folder, a model folder or the hub."""

import os
from pathlib import Path

import jax

from margin_jax.devices.meshes import check_devices
from margin_jax.files import local_path, read_json, to_json
from margin_jax.models.encoder import Encoder
from margin_jax.runs import hub
from margin_jax.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    HISTORY,
    REPORT,
    check_sealed,
    is_saved,
    read_config,
    read_history,
    read_report,
)
from margin_jax.runs.own import get_encoder
from margin_jax.runs.portable import MODEL, is_model, read_model
from margin_jax.runs.run import Run
from margin_jax.runs.validation import best_epoch
from margin_jax.runs.weights import WEIGHTS, read_weights, weights_like
from margin_jax.training.checkpoint import Checkpoint


def load_pretrained(path: str | Path, *, encoder: Encoder | None = None) -> Run:
    """Loads a model folder that :meth:`Run.export` or :meth:`Run.save_pretrained` wrote.

    Nothing in the folder can run code: weights are in safetensors, and every value in
    ``model.json`` is checked. Training examples and names of identities are not in the folder.

    Args:
        path: the folder, or "hub:USER/NAME", a repository of the Hugging Face hub;
            "hub:USER/NAME@REVISION" fixes the revision.
        encoder: your own network, if it was trained with ``TrainConfig(encoder="own")``.

    Raises:
        ValueError: if there is no model of this version, or it is damaged.
    """
    name = os.fspath(path)
    folder = hub.fetch(name) if name.startswith(hub.PREFIX) else local_path("model", path)
    if not is_model(folder):
        raise ValueError(f"no model in {folder}: there is no {MODEL}")
    check_devices()
    try:
        model = read_model(folder)
        encoder = get_encoder(model.config, encoder)
        params, batch_stats = read_weights(
            folder, model.digests[WEIGHTS], weights_like(encoder, model.data["example_shape"])
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot load the model in {folder}: {error}") from error
    data = {**model.data, "identities": {part: [] for part in model.data["counts"]}}
    return Run(
        folder, model.config, model.history, model.report, data, encoder, params, batch_stats
    )


def load_run(path: str | Path, *, encoder: Encoder | None = None) -> Run:
    """Loads a run with its best weights from a run folder, a model folder or the hub.

    Args:
        path: the run folder, or what :func:`load_pretrained` takes.
        encoder: your own network, if it was trained with ``TrainConfig(encoder="own")``.

    Raises:
        ValueError: if there is no finished run of this version, or it is damaged; if your network
            is another one, by its attributes or number of parameters.
    """
    if os.fspath(path).startswith(hub.PREFIX) or is_model(local_path("run", path)):
        return load_pretrained(path, encoder=encoder)
    folder = local_path("run", path)
    if not (folder / REPORT).is_file():
        missing = REPORT if folder.exists() else "such folder"
        raise ValueError(f"no finished run in {folder}: there is no {missing}")
    check_devices()
    try:
        config = read_config(folder)
        report = read_report(folder)
        for name in (CONFIG, DATA):
            check_sealed(folder, name)
        data = read_json(folder / DATA)
        history = read_history(folder)
        example_shape = tuple(data["example_shape"])
        reported = report["epochs"], report["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the run in {folder} is damaged: {error}") from error
    encoder = get_encoder(config, encoder)
    if "network" in data and (got := encoder.description(example_shape)) != data["network"]:
        raise ValueError(f"the run in {folder} is of the network {data['network']}; got {got}")
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), example_shape))
    if not is_saved(folder):
        raise ValueError(f"the run in {folder} is damaged: nothing is saved in {CHECKPOINTS}")
    with Checkpoint(folder / CHECKPOINTS, read_only=True) as checkpoint:
        arrays, record = checkpoint.restore({"best": like})
    trained = record["history"]
    saved = len(trained), best_epoch(trained, config.select) if trained else 0
    if saved != reported or record["part"]["steps"]:
        raise ValueError(
            f"the run in {folder} is not finished: its report is about epoch {reported[1]} of "
            f"{reported[0]}, its checkpoint holds epoch {saved[1]} of {saved[0]}; resume it"
        )
    if to_json(trained) != to_json(history):
        raise ValueError(f"the run in {folder} is damaged: {HISTORY} is not what was written")
    params, batch_stats = arrays["best"]
    return Run(folder, config, history, report, data, encoder, params, batch_stats)

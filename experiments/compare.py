r"""The grid: every schedule tuned with the same budget, then trained on the same reported seeds.

    python experiments/compare.py --data DATA

DATA is a folder with `omniglot` (images_background_small1.zip of brendenlake/omniglot, unpacked)
and `lfw` (a folder for each person, of LFW deep-funneled; 96 pixels a side are enough). For the
wider grid add `cub` (the folder `images` of CUB-200-2011), MNIST by
`margin-jax datasets describe tfds:mnist --data-dir DATA`, and features of a pretrained network
(`docs/guide/studies.md` has the command):

    python experiments/compare.py --data DATA --schedules all --seeds 10 \
        --datasets omniglot,lfw,cub,mnist,lfw_features,cub_features

A cell is a dataset, a reduction of the loss, a schedule and a seed. It writes one line of JSON into
`experiments/results/cells`: results, a summary of the epochs, and the command that repeats it. An
interrupted grid continues when it is started again, also in the middle of a cell. Finished cells
are not trained again, so to repeat all of them give another `--out`. A DAMS that would never act
in the run of the constant that it starts from is that run, so its cell is copied from there.

What makes it fair:

- *Tuning.* Every schedule has its own CANDIDATES (`grid.py`), the same number for each and, with
  the last two, the same range: margins from 0.01 or 0.02 to 0.5 or 1. Each is trained on the seeds
  100 and 101. The one with the best mean validation AUC is trained on the reported seeds, 0 to 4 or
  0 to 9. `dams` as published has nothing to tune and is reported too; so is a falling margin, which
  was found by the test AUC of the tuning seeds.
- *Splits.* A seed has one split of the identities, one initialisation, one order of batches and one
  set of pairs, whatever the schedule, so differences are paired. All seeds split the same images:
  who is tested with one is trained on with another. CUB's test is the same half for all of them;
  MNIST has four training digits, four to test, and two by which epochs and settings are chosen.
- *Pairs.* All pairs of the test images, the run's own pairs (all same pairs or up to 100,000, even
  over identities), and 1,000 pairs as in the paper. LFW is ranked by even pairs.
- *Reductions.* The mean over the active triplets and the mean over all of them are tuned and
  reported apart. No cell is dropped: the report also lists those of earlier choices, before two
  settings were added.
- *Looks.* Seeds 5 to 9 were added after the results of 0 to 4 had been seen, and are also shown
  separately; for the four kinds added last on CUB, MNIST and LFW, and for some late choices, all
  ten were trained at once. LFW was ranked by all pairs until its results had been read; by those
  the losses of the falling margin are not clear. The last two settings were added after the results
  of the first four had been read on all sets but MNIST; 0.02 was known to be the best constant of
  Omniglot over active triplets, and some of them were already trained for `gradient.py`. LFW was
  first trained for 12 epochs (P = 32, K = 2; in the history at 899b17f), read, and found too short
  for DAMS to act; of four differences that exceeded their interval there, none does now. On
  features all was fixed and all ten seeds were trained at once; four untuned settings had been read
  there before (`features.md`).
- *Machines.* Results depend on the kind of CPU in their last digits and therefore, some epochs
  later, in the first ones. Cells name the kind; there are four: AMD EPYC, two newer EPYCs, whose
  family and model are named too, and an Intel Xeon. Cells on features are all of one kind. In 35 of
  the 74 other comparisons some or all pairs are of two kinds: most of what the last two settings
  brought on Omniglot and LFW, and most of the four kinds of schedule that came last on MNIST, LFW
  and CUB. Such a pair shares split, initialisation and batches, but also differs by chance. DAMS on
  LFW over all triplets shows how much, since by every best epoch it was still at 0.5 and so equals
  the constant: .0037 ± .0141 over the seeds 0 to 4, on two kinds of CPU, and 0 over the others, on
  one.

On a CPU each process has one core, so that results do not depend on the number of cores. All cells
of a dataset and a reduction are trained in one process, which compiles once.

The 1,804 cells of small networks took 27.4 hours of one core (AMD EPYC of three generations, Intel
Xeon; jax 0.10.2), the default grid among them 7.6, so about four of two cores. The 872 on features
took 8.5 hours beside other work (AMD EPYC of one generation; jax 0.12). The results:
`experiments/results/README.md`, and `experiments/results/schedules.md` (by `report.py`).
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import multiprocessing
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cell_files
import numpy as np
from grid import CANDIDATES, DATASETS, DEFAULT, FIXED, OPTIMISER, REDUCTIONS, TUNING_SEEDS

CELLS = Path(__file__).parent / "results" / "cells"

# Of the records of a run, what a cell keeps.
COLUMNS = (
    *("margin", "loss", "gradient_norm", "easy_fraction", "hard_fraction", "mean_effective"),
    *("std_effective", "validation_auc"),
)


def train_cell(
    path: Path,
    options: dict,
    data: Any,
    scratch: Path,
    extra: dict | None = None,
    grid: Mapping[cell_files.Key, dict] | None = None,
) -> dict:
    """Trains a cell, adds it to a file of cells and prints a line, unless it is there.

    A DAMS that never acts is not trained either, but copied from the constant that it starts from,
    if that is there.

    Args:
        path: the file.
        options: of `mj.TrainConfig`; schedule and seed are among them.
        data: the `Dataset` that they name.
        scratch: a folder for run folders; the cell's is removed when it is written.
        extra: what else it shall say: the name of the data set, say, or the variation.
        grid: cells of `main`; one that would come out the same to the last digit is taken over.

    Raises:
        ValueError: if what is there is a cell with other options.
    """
    import margin_jax as mj
    from margin_jax.config.option import as_file_name

    extra = extra or {}
    named = options["schedule"], options["seed"]
    key = cell_files.key(*named, extra.get("variation", ""))
    wanted = options_of(command(options))
    there = cell_files.read(path)
    if (cell := there.get(key)) is not None:
        if options_of(cell["command"]) != wanted:
            raise ValueError(
                f"{' '.join(filter(None, key))} in {path} was trained with other options: "
                f"{cell['command']}; remove it, or give another folder"
            )
        return cell
    cell = (grid or {}).get(cell_files.key(*named))
    if cell is None or not comes_out_alike(cell) or options_of(cell["command"]) != wanted:
        cell = same_run(options, there, key)
    if cell is not None:
        cell_files.add(path, {**extra, **cell})
        return {**extra, **cell}
    folder = scratch / as_file_name("-".join(filter(None, (path.stem, *key))))
    started = time.perf_counter()
    config = mj.TrainConfig(**options, out=str(folder), resume=True)
    run = mj.fit(config, dataset=data)
    tested = np.isin(data.identities, run.data["identities"]["test"])
    rows = np.flatnonzero(tested[data.labels])
    embeddings = run.embed(data.examples, rows)
    every = mj.all_pairs_report(
        embeddings, data.labels[rows], threshold=run.threshold, intervals=True
    )
    history = [
        {**record, "hard_fraction": record["hard"] / record["valid"]} for record in run.history
    ]
    published = run.report["test"].pop("published")
    cell = {
        **extra,
        "schedule": config.schedule,
        "reduction": config.reduction,
        "seed": config.seed,
        "command": command(options),
        "images": fingerprint(data),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "best_epoch": run.report["best_epoch"],
        "validation": shortened(run.report["validation"]),
        "test": {
            "all_pairs": shortened(every.to_json()),
            "pairs": shortened(run.report["test"]),
            "published_pairs": shortened(published),
        },
        "epochs": {name: [significant(record[name]) for record in history] for name in COLUMNS},
    }
    cell_files.add(path, cell)
    shutil.rmtree(folder)
    print(
        f"{path.stem} {' '.join(filter(None, key))}: validation {cell['validation']['auc']:.4f}, "
        f"all pairs of the test {every.auc:.4f}, {cell['seconds']:.0f} s",
        flush=True,
    )
    return cell


def same_run(
    options: dict, cells: Mapping[cell_files.Key, dict], key: cell_files.Key
) -> dict | None:
    """The cell of a DAMS that never acts, from that of the constant that it starts from.

    In whose run the share of easy triplets never reached DAMS's threshold. None for other
    schedules, if DAMS would act, or if the constant's cell is not there or not from here and now.
    """
    from margin_jax.schedules import resolve_schedule

    schedule, seed = options["schedule"], options["seed"]
    name, values = resolve_schedule(schedule, {})
    if name != "dams":
        return None
    constant = f"constant:{values['margin']:g}"
    cell = cells.get((key[0], cell_files.key(constant, seed)[1]))
    if (
        cell is None
        or not comes_out_alike(cell)
        or options_of(cell["command"]) != options_of(command({**options, "schedule": constant}))
        or max(cell["epochs"]["easy_fraction"]) >= values["threshold"]
    ):
        return None
    own = {"schedule": schedule, "command": command(options)}
    return {**cell, **own, "seconds": 0.0, "same_run_as": constant}


def command(options: dict) -> str:
    """The command line that repeats a cell, on as many cores.

    Sums are shared out over the cores, so their last bits, and soon a whole run, depend on the
    number of cores. `margin-jax evaluate cell --pairs all` then gives the figures of all pairs.
    """
    said = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    pinned = ["taskset", "--cpu-list", "0"] if cores == 1 else []
    return shlex.join([*pinned, "margin-jax", "train", *said, "--out", "cell"])


def options_of(command: str) -> list[str]:
    """Those of the training, without what it ran on."""
    return sorted(word for word in shlex.split(command) if word.startswith("--") and "=" in word)


def shortened(report: dict) -> dict:
    """The figures of a verification report that the tables are made of.

    With the 95 % interval of the AUC over identities, where the report has one.
    """
    figures = {name: report[name] for name in ("auc", "eer", "accuracy", "threshold")}
    if intervals := report["intervals"]:
        figures["auc_interval"] = [significant(end) for end in intervals["auc"]]
    return figures


def significant(value: float | None) -> float | None:
    """To five digits."""
    return None if value is None else float(f"{value:.5g}")


def fingerprint(data: Any) -> dict:
    """What the images are, so that another machine can tell whether its own are the same."""
    digest = hashlib.sha256(np.ascontiguousarray(data.examples)).hexdigest()
    return {
        "shape": list(data.examples.shape),
        "identities": len(data.identities),
        "sha256": digest,
    }


def machine() -> str:
    """What the figures depend on in their last digits: the number of cores, and their kind.

    With family and model, since virtual machines call several generations by one name.
    """
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'' if cores == 1 else 's'} of {cpu(Path('/proc/cpuinfo'))}"


def versions() -> dict[str, str]:
    """Of what a cell is computed with."""
    import jax

    import margin_jax as mj

    return {"margin_jax": mj.__version__, "jax": jax.__version__}


def comes_out_alike(cell: dict) -> bool:
    """Whether a cell, trained here and now, would come out the same to the last digit."""
    return cell["machine"] == machine() and cell["versions"] == versions()


def cpu(cpuinfo: Path) -> str:
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    said = {name.strip(): value.strip() for name, _, value in pairs}
    name, family, model = (said.get(key) for key in ("model name", "cpu family", "model"))
    return f"{name}, family {family}, model {model}" if name else "a CPU"


def tuned(cells: list[dict]) -> str:
    """The schedule with the best mean validation AUC over the tuning seeds; the first, if equal."""
    means: dict[str, list[float]] = {}
    for cell in cells:
        if cell["seed"] in TUNING_SEEDS:
            means.setdefault(cell["schedule"], []).append(cell["validation"]["auc"])
    return max(means, key=lambda schedule: np.mean(means[schedule]))


def alone(core: int | None, work: Callable[..., None], *job: Any) -> None:
    """Does a job as a process with one core, which ends with one line if it cannot be done."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # before JAX counts them
    try:
        work(*job)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def open_dataset(name: str, folder: Path, **changed: Any) -> tuple[dict, Any]:
    """What all cells of a data set have in common, and its images.

    Goes into the folder, so that the commands in the cells hold no path of this machine.

    Args:
        name: of the data set.
        folder: where it is.
        changed: options that are other than in the grid; all, if it is not in the grid.
    """
    import margin_jax as mj

    options = {**OPTIMISER, **DATASETS.get(name, {}), **changed}
    options["data_dir"] = {"folder": name, "vectors": f"{name}.npz"}.get(options["dataset"], ".")
    os.chdir(folder)
    config = mj.TrainConfig(**options)
    return options, mj.load_dataset(config.dataset, config.data_dir, config.image_size, strict=True)


def train_shape(name: str, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction: tunes every schedule, then trains the seeds."""
    options, data = open_dataset(name, arguments.data)
    options["reduction"] = reduction

    path = cell_files.path_of(arguments.out, name, reduction)

    def train(schedule: str, seed: int) -> dict:
        own = {**options, "schedule": schedule, "seed": seed}
        return train_cell(path, own, data, arguments.scratch, {"dataset": name})

    chosen = list(FIXED.values())
    for family in arguments.schedules:
        grid = itertools.product(CANDIDATES[family], TUNING_SEEDS)
        chosen.append(tuned([train(schedule, seed) for schedule, seed in grid]))
    for seed in range(arguments.seeds):
        for schedule in dict.fromkeys(chosen):
            train(schedule, seed)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the images")
    parser.add_argument("--datasets", default="omniglot,lfw", help=f"of {', '.join(DATASETS)}")
    parser.add_argument("--reductions", default=",".join(REDUCTIONS))
    parser.add_argument("--schedules", default=",".join(DEFAULT), help="or: all")
    parser.add_argument("--seeds", type=int, default=5, help="how many are reported")
    parser.add_argument("--out", type=Path, default=CELLS, help="where the cells go")
    parser.add_argument("--scratch", type=Path, default=Path("runs/grid"), help="for run folders")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="on a GPU: 1")
    arguments = parser.parse_args(argv)
    if arguments.schedules == "all":
        arguments.schedules = ",".join(CANDIDATES)
    for what, known in (
        ("datasets", DATASETS),
        ("reductions", REDUCTIONS),
        ("schedules", CANDIDATES),
    ):
        values = getattr(arguments, what).split(",")
        for value in set(values) - set(known):
            parser.error(f"--{what} must be some of {', '.join(known)}; got {value}")
        setattr(arguments, what, values)
    check_folders(parser, arguments)
    return arguments


def check_folders(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Makes paths absolute, since `open_dataset` changes the folder."""
    for path in ("data", "out", "scratch"):
        setattr(arguments, path, getattr(arguments, path).absolute())
    if not arguments.data.is_dir():
        parser.error(f"--data must be a folder; there is none at {arguments.data}")
    if arguments.processes < 1:
        parser.error(f"--processes must be at least 1; got {arguments.processes}")


def share_out(work: Callable[..., None], jobs: list[tuple], processes: int) -> bool:
    """Does `work(*job)` for every job, so many at a time, and tells whether all went well.

    On a CPU each has a core of its own; else the core is None. Linux gives them memory in large
    pages (`benchmarks/encoders.py`), which changes no result.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    installed = {part.name for part in importlib.metadata.distributions()}
    drivers = {"jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu"}
    platform = os.environ.get("JAX_PLATFORMS", "" if drivers & installed else "cpu")
    pinned = platform == "cpu" and hasattr(os, "sched_setaffinity")
    free = sorted(os.sched_getaffinity(0))[:processes] if pinned else [None] * processes
    running: dict[Any, int | None] = {}
    waiting, well = list(jobs), True
    context = multiprocessing.get_context("spawn")
    while waiting or running:
        while waiting and free:
            core = free.pop()
            process = context.Process(target=alone, args=(core, work, *waiting.pop(0)))
            process.start()
            running[process] = core
        time.sleep(0.2)
        for process in [process for process in running if not process.is_alive()]:
            well &= process.exitcode == 0
            free.append(running.pop(process))
    return well


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    shapes = itertools.product(arguments.datasets, arguments.reductions)
    jobs = [(*shape, arguments) for shape in shapes]
    sys.exit(not share_out(train_shape, jobs, arguments.processes))


if __name__ == "__main__":
    main()

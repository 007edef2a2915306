"""The command that evaluates a finished run: its own test, or other examples and pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from margin_jax.cli.options import RunFolder, check_out, path_option, remark, saving
from margin_jax.evaluation.tables import HEADER, certainty, figures, for_rate
from margin_jax.files import local_path, to_json


def evaluate(
    run: RunFolder,
    data_dir: Annotated[
        Path | None,
        path_option(
            "Other images: a folder with a subfolder for each identity, or a list of images; "
            "for a run on vectors, another file of vectors. Default: the run's test data."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="A file with lines FIRST,SECOND,1 (same) or FIRST,SECOND,0 (different): files "
            "relative to --data-dir, or names of vectors; or LFW's pairs.txt (reported by its ten "
            "folds) or pairsDevTest.txt; or all: every image with every other. Default: the run's "
            "saved pairs; with --data-dir, pairs drawn evenly over its identities."
        ),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Also report Recall@k and MAP@R: on the run's test images, or all of --data-dir.",
        ),
    ] = False,
    repeated_names: Annotated[
        str | None,
        typer.Option(
            help="What to do with folders of the same name in --data-dir: error, merge (one "
            "identity) or separate. Default: as in training."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop if an image of --pairs is missing or unreadable. Default: leave out its "
            "pairs and say how many.",
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(help="The most pairs to draw from --data-dir. Default: 100,000."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The seed for pairs drawn from --data-dir. Default: 0.", min=0),
    ] = None,
    query: Annotated[
        Path | None,
        path_option(
            "Identification: the images to look up in --gallery, with a folder for each "
            "identity (or a list, or vectors). Identities that are not in the gallery count as "
            "unknown."
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        path_option("Identification: the images of known identities, in the same forms."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Identification: a regular expression whose parentheses match a part of the file "
            "name, such as the camera: '_c([0-9])'. A query is not compared with images of its own "
            "identity and camera. Default: compare with all."
        ),
    ] = None,
    fmr: Annotated[
        float | None,
        typer.Option(
            help="Choose a threshold for this false match rate on the run's validation pairs, such "
            "as 0.001. Default: the run's threshold."
        ),
    ] = None,
    mistakes: Annotated[
        Path | None,
        path_option(
            "Also write a folder with plots and tables: the worst of all image pairs, "
            "errors by identity, and a map of the embeddings."
        ),
    ] = None,
    out: Annotated[
        Path | None, path_option("Also write the results to this file, as JSON.")
    ] = None,
) -> Path | None:
    """Evaluate a run's best weights and threshold on its test pairs or on other images.

    Reports 95 % intervals (a bootstrap over identities), and the false match rate (FMR) and false
    non-match rate (FNMR) at the threshold. With --query and --gallery it reports open-set
    identification: rank-k, and the true positive identification rate (TPIR) at given false positive
    identification rates (FPIR).
    """
    from margin_jax.choices import check_choice
    from margin_jax.data.folder import REPEATED_NAMES
    from margin_jax.runs.evaluate import (
        choose_run_threshold,
        embed_identities,
        evaluate_all_pairs,
        evaluate_retrieval,
        evaluate_run,
        load_own,
    )
    from margin_jax.runs.given import trained_on
    from margin_jax.runs.identify import evaluate_identification
    from margin_jax.runs.listed import evaluate_listed
    from margin_jax.runs.load import load_run
    from margin_jax.runs.mistakes import check_mistakes, write_mistakes

    if (query is None) != (gallery is None) or (group_by is not None and query is None):
        raise ValueError("--query and --gallery must be given together; --group-by is for them")
    others = {data_dir, pairs, count, seed, mistakes}
    if query is not None and (retrieval or strict or others != {None}):
        raise ValueError("--query and --gallery cannot be combined with other images or pairs")
    loaded = load_run(run)
    drawn = {name: value for name, value in (("count", count), ("seed", seed)) if value is not None}
    if drawn and (data_dir is None or pairs is not None):
        raise ValueError(
            f"--{' and --'.join(drawn)}: for pairs that are drawn, with --data-dir and no --pairs"
        )
    folds, met = None, tuple[str, ...]()
    listed = None if pairs is None or pairs == "all" else local_path("pairs", pairs)
    if strict and listed is None:
        raise ValueError("--strict is for a list of pairs: give --pairs FILE")
    if repeated_names is not None:
        check_choice("repeated_names", repeated_names, REPEATED_NAMES)
        if listed is not None and not retrieval:
            raise ValueError("--repeated-names is not for a list of pairs")
        if query is None and data_dir is None:
            raise ValueError("--repeated-names is for folders of identities: give --data-dir")
    if listed is not None and data_dir is None and not loaded.embeds_vectors:
        raise ValueError("--pairs needs --data-dir, the folder that its files are relative to")
    if out is not None:
        check_out(out, data_dir, listed, query, gallery, run=run)
    if mistakes is not None:
        read = (data_dir, loaded.config.data_dir if loaded.config.dataset == "folder" else None)
        check_mistakes(mistakes, listed, out, [Path(place) for place in read if place is not None])
    given = data_dir is not None or listed is not None or query is not None
    own = load_own(loaded) if fmr is not None or not given else None
    threshold = None if fmr is None else choose_run_threshold(loaded, fmr, own)
    if query is not None and gallery is not None:
        identified = evaluate_identification(
            loaded,
            gallery,
            query,
            group_by=group_by,
            repeated_names=repeated_names,
            threshold=threshold,
        )
        remark(identified.skipped, identified.remarks)
        said = identified.report.to_json()
        typer.echo("\n".join(f"  {line}" for line in identified.report.lines()))
        notes = identified.report.warnings + _note(identified.trained_on)
        if count_both := identified.in_both:
            notes += (f"{count_both:,} queries have the file name of an image in the gallery",)
        return _end(said, notes, fmr, out)
    if listed is None or retrieval:
        embedded = embed_identities(loaded, data_dir, repeated_names=repeated_names, own=own)
        remark(embedded.skipped, embedded.remarks)
        if data_dir is not None:
            met = trained_on(loaded, embedded.dataset.identities)
    if listed is not None:
        report, folds, met, missing, count_listed = evaluate_listed(
            loaded, data_dir, listed, strict=strict, threshold=threshold
        )
        if missing:
            what = "pictures" if loaded.embeds_pictures else "vectors"
            typer.echo(
                f"{count_listed - report.same - report.different:,} of {count_listed:,} pairs left "
                f"out, as {len(missing):,} {what} are missing or unreadable; first {missing[0]}",
                err=True,
            )
    elif pairs == "all":
        report = evaluate_all_pairs(loaded, embedded, threshold=threshold)
    else:
        report = evaluate_run(loaded, embedded, **drawn, threshold=threshold)
    said = report.to_json()
    lines = [HEADER, figures("embedding", said), *(f"  {line}" for line in certainty(said))]
    typer.echo("\n".join(lines))
    if folds is not None:
        said["folds"] = folds.to_json()
        typer.echo(
            f"  {len(folds.accuracies)} folds: accuracy {folds.accuracy:.2%} ± "
            f"{folds.standard_error:.2%} (standard error), each at the others' best threshold"
        )
    if retrieval:
        found = evaluate_retrieval(loaded, embedded)
        said["retrieval"] = found.to_json()
        recall = ", ".join(f"{share:.2%} @{k}" for k, share in found.recall_at.items())
        typer.echo(f"  retrieval, {found.queries:,} queries in {found.images:,} images: recall")
        typer.echo(f"    {recall}; MAP@R {found.map_at_r:.2%}")
    written = _end(said, report.warnings + _note(met), fmr, out)
    if mistakes is not None:
        for line in write_mistakes(loaded, embedded, report.threshold, mistakes):
            typer.echo(f"  {line}")
    return written


def _note(met: tuple[str, ...]) -> tuple[str, ...]:
    """On identities that are no test, as the run was trained on them."""
    return (f"identities that the run was trained on, by name: {len(met):,}",) if met else ()


def _end(
    said: dict[str, Any], notes: tuple[str, ...], fmr: float | None, out: Path | None
) -> Path | None:
    """What is said last of any evaluation, and its file."""
    if fmr is not None:
        said["threshold_for_fmr"] = fmr
        typer.echo(f"  threshold chosen on validation{for_rate(fmr)}")
    for note in notes:
        typer.echo(f"  note: {note}")
    if out is not None:
        with saving(out) as file:
            file.write(f"{to_json(said, indent=2)}\n".encode())
    return out

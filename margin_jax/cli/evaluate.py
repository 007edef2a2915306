"""The command that evaluates a finished run: its own test, or other examples and pairs."""

from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import RunFolder, check_out
from margin_jax.evaluation.tables import HEADER, certainty, figures, for_rate


def evaluate(
    run: RunFolder,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Another folder of images for each identity, or a list of images; of a run on "
            "vectors another file of them. Default: the run's test."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="A file with lines FIRST,SECOND,1 (same) or 0, the files relative to --data-dir, "
            "or names of vectors; or LFW's pairs.txt, reported by its ten folds, or "
            "pairsDevTest.txt; or all: every image with every other. Default: the run's saved "
            "pairs, or drawn evenly from all identities of --data-dir."
        ),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Also Recall@k and MAP@R: of the run's test images, or all of --data-dir.",
        ),
    ] = False,
    repeated_names: Annotated[
        str | None,
        typer.Option(
            help="What folders of one name below different ones of --data-dir are: error, merge "
            "(one identity) or separate. Default: as the run was trained."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="A listed picture that is missing or unreadable is an error. Default: its pairs "
            "are left out and counted.",
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(help="How many pairs to draw at most from --data-dir. Default: 100,000."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the pairs that are drawn from --data-dir. Default: 0.")
    ] = None,
    fmr: Annotated[
        float | None,
        typer.Option(
            help="Choose the threshold anew, on the run's validation pairs, for this false match "
            "rate, such as 0.001. Default: the run's threshold."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
) -> Path | None:
    """Verify with a run's best weights and threshold: its saved pairs, or other images.

    Figures come with 95 % intervals, by a bootstrap over identities, and FMR and FNMR, the rates of
    false matches and false non-matches at the threshold.
    """
    from margin_jax.choices import check_choice
    from margin_jax.data.folder import REPEATED_NAMES
    from margin_jax.files import to_json, write_text
    from margin_jax.runs.evaluate import (
        choose_run_threshold,
        embed_identities,
        evaluate_all_pairs,
        evaluate_listed,
        evaluate_retrieval,
        evaluate_run,
        load_own,
    )
    from margin_jax.runs.run import load_run

    loaded = load_run(run)
    drawn = {name: value for name, value in (("count", count), ("seed", seed)) if value is not None}
    if drawn and (data_dir is None or pairs is not None):
        raise ValueError(
            f"--{' and --'.join(drawn)}: for pairs that are drawn, with --data-dir and no --pairs"
        )
    folds, trained_on = None, tuple[str, ...]()
    listed = None if pairs in (None, "all") else pairs
    if strict and listed is None:
        raise ValueError("--strict is for a list of pairs: give --pairs FILE")
    if repeated_names is not None:
        check_choice("repeated_names", repeated_names, REPEATED_NAMES)
    if listed is not None and data_dir is None and not loaded.embeds_vectors:
        raise ValueError("--pairs needs --data-dir, the folder that its files are relative to")
    if out is not None:
        check_out(out)
    given = data_dir is not None or listed is not None
    own = load_own(loaded) if fmr is not None or not given else None
    threshold = None if fmr is None else choose_run_threshold(loaded, fmr, own)
    if listed is None or retrieval:
        embedded = embed_identities(loaded, data_dir, repeated_names=repeated_names, own=own)
        for reason in embedded.skipped:
            typer.echo(f"skipped {reason}", err=True)
        for remark in embedded.remarks:
            typer.echo(remark, err=True)
    if listed is not None:
        report, folds, trained_on, missing, count_listed = evaluate_listed(
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
    if fmr is not None:
        said["threshold_for_fmr"] = fmr
        lines.append(f"  threshold chosen on validation{for_rate(fmr)}")
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
    for warning in report.warnings:
        typer.echo(f"  note: {warning}")
    if trained_on:
        typer.echo(f"  note: the run was trained on {len(trained_on)} identities of these names")
    if out is not None:
        write_text(out, to_json(said, indent=2) + "\n")
    return out

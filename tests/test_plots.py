"""What pictures show, read from what they are drawn of: lines, areas, bars, labels and colours."""

import numpy as np
import pytest

import margin_jax as mj
from margin_jax import plots
from margin_jax.plots import style
from margin_jax.schedules.response import Response

EPOCHS = 5
# Every figure of a record is another one, whatever the epoch: what is mixed up shows.
NAMES = ("margin", "easy_fraction", "loss", "validation_auc", "mean_effective", "std_effective")


def made_up(seed=0, quantiles=False):
    rng = np.random.default_rng(seed)
    history = [
        {"epoch": epoch, **{name: float(v) for name, v in zip(NAMES, rng.random(6), strict=True)}}
        for epoch in range(1, EPOCHS + 1)
    ]
    for record in history:
        record["effective_quantiles"] = sorted(rng.random(7).tolist()) if quantiles else None
    return history


def column(history, name):
    return [record[name] for record in history]


def line(axes, label=None, colour=None):
    """Coordinates of the only such line of some axes."""
    (found,) = (
        drawn
        for drawn in axes.lines
        if (label is None or str(drawn.get_label()).startswith(label))
        and (colour is None or drawn.get_color() == colour)
    )
    return found


def assert_line(found, x, y):
    np.testing.assert_allclose(found.get_xdata(), x)
    np.testing.assert_allclose(found.get_ydata(), y)


def entries(figure):
    """What a legend says of each colour; of lines and of areas."""
    (legend,) = figure.legends
    return {
        text.get_text(): handle
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }


def hexadecimal(colour):
    return "#" + "".join(f"{round(255 * value):02X}" for value in colour[:3])


def pictures_by_epoch():
    """Of each of the pictures that have epochs: its figure, drawn, and the axes of its margins."""
    history, other = made_up(), made_up(1)
    responses = {name: Response(np.arange(5.0), np.arange(5.0)) for name in ("dams", "constant")}
    figures = {
        "margin": plots.plot_margin(history, 0.8),
        "loss": plots.plot_loss(history, 3),
        "effective margin": plots.plot_effective_margin(made_up(quantiles=True)),
        "comparison": plots.plot_comparison({"a": {0: history, 1: other}, "b": {0: other}}),
        "responses": plots.plot_responses(responses, "to a world"),
    }
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


def test_legends_lie_over_no_data():
    rng = np.random.default_rng(0)
    same = np.arange(300) < 100
    distances = rng.random(300) + ~same
    reports = {"one": mj.verification_report(distances, same, threshold=0.5)}
    drawn = {
        **pictures_by_epoch(),
        "distances": plots.plot_distances(distances, same, 0.5),
        "ROC": plots.plot_roc(reports),
        "DET": plots.plot_det(reports),
    }
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        assert [axes.get_legend() for axes in figure.axes] == [None] * len(figure.axes), name
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for axes in figure.axes:
            assert not box.overlaps(axes.get_tightbbox()), name
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1, f"the legend of {name} is cut"


def test_epochs_begin_at_the_first_and_are_whole():
    for name, figure in pictures_by_epoch().items():
        axes = figure.axes[-1]
        assert axes.get_xlim() == (1, EPOCHS), name
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    long = [{**made_up()[0], "epoch": epoch} for epoch in range(1, 41)]
    ticks = plots.plot_margin(long).axes[-1].get_xticks()
    assert [*ticks] == [1, 5, 10, 15, 20, 25, 30, 35, 40]


def test_a_single_epoch_is_a_dot():
    for figure in (
        plots.plot_margin(made_up()[:1]),
        plots.plot_loss(made_up()[:1], 1),
        plots.plot_effective_margin(made_up(quantiles=True)[:1]),
    ):
        figure.draw_without_rendering()
        for axes in figure.axes:
            dots = [v for v in axes.lines if len(v.get_xdata()) == 1]
            assert dots
            assert {v.get_marker() for v in dots} == {"o"}
        axes = figure.axes[-1]
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_margins_step_in_every_picture():
    for name, figure in pictures_by_epoch().items():
        if name == "loss":
            continue
        first = figure.axes[0]
        margins = [v for v in first.lines if len(v.get_xdata()) == EPOCHS]
        if name == "effective margin":
            margins = [line(first, "margin μ")]
        assert margins
        assert {v.get_drawstyle() for v in margins} == {"steps-mid"}, name


def test_curves_that_lie_on_one_another_are_all_seen():
    """What is below is wider there, and only there."""
    flat, later = np.full(8, 0.2), np.array([0.2] * 5 + [0.5] * 3)
    responses = {
        name: Response(margin, rise)
        for (name, margin), rise in zip(
            {"constant": flat, "litm": later, "dams": flat}.items(),
            np.array([[0.0, 1.0, 2.0]]).T + np.arange(8),
            strict=True,
        )
    }
    above, below = plots.plot_responses(responses, "to a world").axes
    constant, litm, dams = (line(above, name).get_color() for name in responses)
    wide = {colour: [] for colour in (constant, litm, dams)}
    for drawn in above.lines[3:]:
        seen = np.flatnonzero(np.isfinite(drawn.get_ydata())).tolist()
        wide[drawn.get_color()].append((drawn.get_linewidth(), seen))
    assert wide[dams] == []
    ((width, seen),) = wide[litm]
    assert seen == [0, 1, 2, 3, 4]
    (once, whole), (twice, first) = wide[constant]
    assert (whole, first) == ([*range(8)], [0, 1, 2, 3, 4])
    assert above.lines[0].get_linewidth() < width == once < twice
    order = [v.get_zorder() for v in above.lines]
    assert max(order[3:]) < min(order[:3]), "the wide ones lie below"
    assert len(below.lines) == 3, "these cross nowhere"


def test_the_names_of_a_contact_sheet_are_whole():
    labels = np.array([f"{i} {'n' * 14}" for i in range(10)])
    dataset = mj.Dataset.from_arrays(np.zeros((10, 4, 4, 1), np.uint8), labels)
    figure = plots.plot_contact_sheet(dataset)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert min(text.get_window_extent().x0 for text in axes.get_yticklabels()) >= 0


def test_margin_above_and_the_share_of_easy_triplets_below():
    history = made_up()
    above, below = plots.plot_margin(history, 0.8).axes
    assert_line(line(above), range(1, 6), column(history, "margin"))
    assert line(above).get_drawstyle() == "steps-mid"
    assert_line(
        line(below, colour=style.BLUE),
        range(1, 6),
        100 * np.array(column(history, "easy_fraction")),
    )
    watched = line(below, "the schedule acts at 80 %")
    assert set(watched.get_ydata()) == {80}
    assert (above.get_ylabel(), below.get_ylabel()) == ("margin μ", "easy triplets (%)")
    assert (below.get_xlabel(), above.get_xlabel()) == ("epoch", "")
    assert len(plots.plot_margin(history).axes[1].lines) == 1


def test_loss_above_and_validation_with_the_best_epoch_below():
    history = made_up()
    for best in (1, 3):
        above, below = plots.plot_loss(history, best).axes
        assert_line(line(above), range(1, 6), column(history, "loss"))
        assert_line(line(below, colour=style.GREEN), range(1, 6), column(history, "validation_auc"))
        auc = history[best - 1]["validation_auc"]
        assert_line(line(below, f"best: {auc:.4f}, epoch {best}"), [best], [auc])
        assert (above.get_ylabel(), below.get_ylabel()) == ("training loss", "validation AUC")
        assert len(below.lines) == 2


def test_losses_are_drawn_from_zero_with_room_above():
    for low, bottom in ((0.9, 0), (-1.0, -1.05)):
        history = made_up()
        for record, loss in zip(history, np.linspace(1, low, 5), strict=True):
            record["loss"] = float(loss)
        above = plots.plot_loss(history, 1).axes[0]
        assert above.get_ylim()[0] == pytest.approx(bottom, abs=0.1)
        assert above.get_ylim()[1] > 1.03, "the curve lies on the border"


def area(collection):
    """The lower and the upper edge of an area, by epoch."""
    points = collection.get_paths()[0].vertices
    low, high = np.full(EPOCHS, np.inf), np.full(EPOCHS, -np.inf)
    for x, y in points:
        low[round(x) - 1], high[round(x) - 1] = (
            min(low[round(x) - 1], y),
            max(high[round(x) - 1], y),
        )
    return low, high


def test_effective_margin_and_its_spread_beside_the_margin():
    history = made_up()
    (axes,) = plots.plot_effective_margin(history).axes
    mean, std = (np.array(column(history, f"{name}_effective")) for name in ("mean", "std"))
    assert_line(line(axes, "mean over all triplets", style.BLUE), range(1, 6), mean)
    assert_line(line(axes, "margin μ", style.ORANGE), range(1, 6), column(history, "margin"))
    assert set(line(axes, colour=style.GREY).get_ydata()) == {0}
    (spread,) = axes.collections
    assert spread.get_label() == "± standard deviation"
    np.testing.assert_allclose(area(spread), (mean - std, mean + std))
    assert axes.get_ylabel() == "effective margin d(a,n) − d(a,p)"


def test_effective_margin_with_its_quantiles():
    history = made_up(quantiles=True)
    (axes,) = plots.plot_effective_margin(history).axes
    quantiles = np.array(column(history, "effective_quantiles"))
    said = ("1% to 99% of triplets", "5% to 95% of triplets", "25% to 75% of triplets")
    for i, (label, drawn) in enumerate(zip(said, axes.collections, strict=True)):
        assert drawn.get_label() == label
        np.testing.assert_allclose(area(drawn), (quantiles[:, i], quantiles[:, 6 - i]))
    (colours,) = zip(*(drawn.get_facecolor() for drawn in axes.collections), strict=True)
    lightness = [sum(colour[:3]) for colour in colours]
    assert lightness == sorted(set(lightness), reverse=True), "the middle is the darkest"
    assert {colour[3] for colour in colours} == {1}, "what shines through is in no legend"


def test_distances_of_both_kinds_and_the_threshold():
    rng = np.random.default_rng(0)
    same = rng.random(400) < 0.3
    distances = rng.random(400) + ~same
    edges = np.linspace(0, distances.max(), 61)
    figure = plots.plot_distances(distances, same, 0.75)
    (axes,) = figure.axes
    shown = entries(figure)
    for kind, colour, name in ((same, style.BLUE, "same"), (~same, style.ORANGE, "different")):
        said = shown[f"{name} identity ({kind.sum()} pairs)"]
        assert hexadecimal(said.get_facecolor()) == colour
        (bars,) = (v for v in axes.containers if hexadecimal(v[0].get_facecolor()) == colour)
        heights, _ = np.histogram(distances[kind], edges, density=True)
        np.testing.assert_allclose([bar.get_height() for bar in bars], heights)
        np.testing.assert_allclose([bar.get_x() for bar in bars], edges[:-1], atol=1e-12)
    assert set(line(axes, "threshold 0.750").get_xdata()) == {0.75}


def test_roc_of_each_report_by_its_name():
    rng = np.random.default_rng(0)
    same = np.arange(300) < 100
    reports = {
        name: mj.verification_report(rng.random(300) + far * ~same, same, threshold=0.5)
        for name, far in (("embedding", 0.5), ("raw pixels", 0.1))
    }
    figure = plots.plot_roc(reports)
    (axes,) = figure.axes
    shown = entries(figure)
    for name, report in reports.items():
        label = f"{name}: AUC {report.auc:.4f}, EER {report.eer:.1%}"
        assert_line(line(axes, label), report.fpr, report.tpr)
        assert shown[label].get_color() == line(axes, label).get_color()
    chance = line(axes, "chance")
    np.testing.assert_allclose(chance.get_xdata(), chance.get_ydata())
    assert chance.get_xdata()[0] == pytest.approx(1 / 200)
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel().startswith("false positive rate")
    assert "chance is a curve" in axes.get_xlabel()
    assert axes.get_ylabel() == "true positive rate"
    for report, dot in zip(reports.values(), axes.collections, strict=True):
        np.testing.assert_allclose(dot.get_offsets(), [[max(report.fmr, 1 / 200), 1 - report.fnmr]])
        colour = line(axes, next(n for n in shown if f"{report.auc:.4f}" in n)).get_color()
        assert hexadecimal(dot.get_facecolor()[0]) == colour


def test_det_of_each_report_on_probit_axes():
    rng = np.random.default_rng(0)
    same = np.arange(3000) < 1000
    reports = {
        name: mj.verification_report(rng.normal(far * ~same), same, threshold=0.5)
        for name, far in (("embedding", 2), ("raw pixels", 1))
    }
    figure = plots.plot_det(reports)
    (axes,) = figure.axes
    shown = entries(figure)
    for (name, report), dot in zip(reports.items(), axes.collections, strict=True):
        label = f"{name}: FMR {report.fmr:.2%}, FNMR {report.fnmr:.2%}"
        drawn = line(axes, label)
        np.testing.assert_allclose(drawn.get_xdata(), report.fpr, atol=2e-9)
        np.testing.assert_allclose(drawn.get_ydata(), 1 - report.tpr, atol=2e-9)
        assert shown[label].get_color() == drawn.get_color()
        np.testing.assert_allclose(dot.get_offsets(), [[report.fmr, report.fnmr]])
        assert hexadecimal(dot.get_facecolor()[0]) == drawn.get_color()
    # Distances of normal distribution make a straight line of slope -1, at as many deviations.
    at = [axes.transScale.transform((rate, 0.5)) for rate in (0.02275013, 0.15865525, 0.5)]
    np.testing.assert_allclose(at, [[-2, 0], [-1, 0], [0, 0]], atol=1e-6)
    chance = line(axes, "chance")
    np.testing.assert_allclose(chance.get_xdata(), 1 - chance.get_ydata())
    assert axes.get_xlim() == (1 / 1000, 0.5)
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "0.1 %",
        "1 %",
        "5 %",
        "20 %",
        "50 %",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false match rate", "false non-match rate")


@pytest.mark.parametrize("apart", [0.8, -0.8, 0])
@pytest.mark.parametrize("plot", [plots.plot_det, plots.plot_roc])
def test_curves_of_no_errors_or_of_nothing_else_have_their_dot_in_sight(plot, apart):
    same = np.arange(10) < 5
    distances = 0.5 + apart / 2 * np.where(same, -1, 1)
    (axes,) = plot({"one": mj.verification_report(distances, same, threshold=0.5)}).axes
    ((x, y),) = axes.collections[0].get_offsets()
    assert axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
    assert axes.get_ylim()[0] <= y <= axes.get_ylim()[1]


def test_a_mean_is_over_the_seeds_that_have_the_epoch():
    long, short = made_up(0), made_up(1)[:3]
    figure = plots.plot_comparison({"dams": {0: short, 1: long}})
    drawn = figure.axes[0].lines
    thick = max(drawn, key=lambda v: v.get_linewidth())
    one, two = np.array(column(short, "margin")), np.array(column(long, "margin"))
    assert_line(thick, range(1, 6), [*((one + two[:3]) / 2), *two[3:]])


def test_comparison_has_a_mean_and_every_seed_of_each_schedule():
    histories = {
        name: {seed: made_up(10 * i + seed) for seed in range(3)}
        for i, name in enumerate(("constant", "dams"))
    }
    figure = plots.plot_comparison(histories)
    shown = entries(figure)
    assert [*shown] == ["constant", "dams"]
    wanted = (("margin", 1, "margin μ"), ("easy_fraction", 100, "easy triplets (%)"))
    for axes, (name, scale, label) in zip(
        figure.axes, (*wanted, ("validation_auc", 1, "validation AUC")), strict=True
    ):
        assert axes.get_ylabel() == label
        for schedule, runs in histories.items():
            curves = scale * np.array([column(history, name) for history in runs.values()])
            drawn = [v for v in axes.lines if v.get_color() == shown[schedule].get_color()]
            thick = max(drawn, key=lambda v: v.get_linewidth())
            assert_line(thick, range(1, 6), curves.mean(axis=0))
            thin = sorted(tuple(v.get_ydata()) for v in drawn if v is not thick)
            np.testing.assert_allclose(thin, sorted(map(tuple, curves)))
    assert figure.axes[0].get_title() == "Mean of 3 seeds"


def test_responses_are_drawn_by_schedule():
    rng = np.random.default_rng(0)
    responses = {name: Response(rng.random(4), rng.random(4)) for name in ("dams", "automargin")}
    figure = plots.plot_responses(responses, "to a world")
    above, below = figure.axes
    shown = entries(figure)
    for name, response in responses.items():
        colour = shown[name].get_color()
        assert_line(line(above, name), range(1, 5), response.margin)
        assert line(above, name).get_color() == colour
        assert_line(line(below, colour=colour), range(1, 5), 100 * response.easy_fraction)
    assert figure.get_suptitle() == "to a world"
    assert (above.get_ylabel(), below.get_ylabel()) == ("margin μ", "easy triplets (%)")


def test_contact_sheet_has_a_row_of_each_identity_with_its_own_images():
    sizes = {"few": 2, "most": 6, "some": 3}
    labels = np.repeat([*sizes], [*sizes.values()])
    images = np.zeros((11, 4, 4, 1), np.uint8)
    images[:] = (10 + np.arange(11))[:, None, None, None]
    figure = plots.plot_contact_sheet(mj.Dataset.from_arrays(images, labels), 11, 6)
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["most (6)", "some (3)", "few (2)"]
    sheet = axes.images[0].get_array()
    for place, name in zip(axes.get_yticks(), ("most", "some", "few"), strict=True):
        shown = {int(v) for v in np.unique(sheet[round(place)])} - {255}
        assert shown == {int(v) for v in images[labels == name, 0, 0, 0]}


def test_what_was_not_measured_leaves_a_gap():
    history = made_up()
    history[2]["easy_fraction"] = None
    drawn = line(plots.plot_margin(history).axes[1]).get_ydata()
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [2]


def test_the_pictures_of_a_run_are_drawn_of_its_figures(tiny_fit, tmp_path, monkeypatch):
    """Pairs and threshold of the test, the share that the schedule watches, the best epoch."""
    drawn = {}
    for name in ("plot_margin", "plot_loss", "plot_effective_margin", "plot_distances", "plot_roc"):
        monkeypatch.setattr(
            plots, name, lambda *given, name=name: drawn.setdefault(name, given) and None
        )
    monkeypatch.setattr("margin_jax.runs.folder.write_report", lambda *_: None)
    run = tiny_fit(tmp_path / "run", schedule="dams:threshold=0.7", epochs=2)
    assert drawn["plot_margin"] == (run.history, 0.7)
    assert drawn["plot_loss"] == (run.history, run.report["best_epoch"])
    assert drawn["plot_effective_margin"] == (run.history,)
    distances, same, threshold = drawn["plot_distances"]
    test = run.report["test"]
    assert threshold == test["threshold"]
    assert (same.sum(), (~same).sum()) == (test["same_pairs"], test["different_pairs"])
    assert np.mean((distances <= threshold) == same) == test["accuracy"]
    (reports,) = drawn["plot_roc"]
    assert {name: told.auc for name, told in reports.items()} == {
        "embedding": test["auc"],
        "raw values": test["raw"]["auc"],
    }

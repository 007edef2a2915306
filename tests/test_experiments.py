"""The studies: tuning is fair, a cell's own command repeats it, reports follow from the cells."""

import io
import itertools
import json
import math
import multiprocessing
import re
import shlex
import shutil
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli

ROOT = Path(__file__).parent.parent
CELLS = ROOT / "experiments" / "results" / "cells"


@pytest.fixture
def study(monkeypatch):
    """Imports a script of `experiments` by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return lambda name: __import__(name)


def made_up_cell(schedule, seed, validation=0.9, test=0.9):
    """What `compare.train_cell` writes, of three epochs."""
    margin = mj.TrainConfig(schedule=schedule).schedule_parameters()[1].get("margin", 0.2)
    figures = {"auc": test, "eer": 1 - test}
    epochs = {name: [0.5, 0.4, 0.3] for name in ("loss", "gradient_norm", "easy_fraction")}
    step = 0.0 if schedule.startswith("constant") else 0.05
    margins = [margin, margin + step, margin + 2 * step]
    epochs |= {"margin": margins, "validation_auc": [0.5, validation, 0.8]}
    epochs |= {"mean_effective": [0.1, 0.2, 0.3]}
    return {
        "dataset": "omniglot",
        "reduction": "mean",
        "schedule": schedule,
        "seed": seed,
        "command": "margin-jax train",
        "images": {"shape": [10, 48, 48, 3]},
        "machine": "1 core",
        "seconds": 1.0,
        "best_epoch": 2,
        "epochs": epochs,
        "validation": {"auc": validation},
        "test": dict.fromkeys(("all_pairs", "pairs", "published_pairs"), figures),
    }


def write_cells(study, folder, cells):
    cell_files, by_file = study("cell_files"), {}
    for cell in cells:
        path = cell_files.path_of(folder, cell["dataset"], cell["reduction"])
        by_file.setdefault(path, []).append(cell)
    for path, own in by_file.items():
        cell_files.add(path, *own)


def read_cells(study, folder):
    return [cell for own in study("cell_files").read_all(folder) for cell in own.values()]


def remove_cell(study, folder, schedule, seed):
    (path,) = folder.glob("*.jsonl")
    cells = study("cell_files").read(path)
    del cells[study("cell_files").key(schedule, seed)]
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells.values()), encoding="utf-8")


@pytest.fixture
def made_up(study, tmp_path):
    """Cells of two tuned schedules over three seeds, of which dams is better by 1, 2 and 4 %."""
    grid = study("grid")
    cells = []
    for family, best in (
        ("constant", "constant:0.05"),
        ("dams", grid.CANDIDATES["dams"][2]),
    ):
        for schedule, seed in itertools.product(grid.CANDIDATES[family], grid.TUNING_SEEDS):
            cells.append(made_up_cell(schedule, seed, 0.8 + 0.1 * (schedule == best)))
        for seed, gain in enumerate((0.01, 0.02, 0.04)):
            test = 0.9 + 0.001 * seed + gain * (family == "dams")
            # Better on validation, with a seed that must not be looked at.
            cells.append(made_up_cell(best, seed, 0.1, test))
    write_cells(study, tmp_path, cells)
    return tmp_path


class TestFairness:
    def test_every_schedule_has_as_many_candidates(self, study):
        grid = study("grid")
        assert {len(own) for own in grid.CANDIDATES.values()} == {6}
        for family, schedules in grid.CANDIDATES.items():
            assert len(set(schedules)) == 6
            for schedule in schedules:
                config = mj.TrainConfig(schedule=schedule)
                assert config.schedule_parameters()[0] == family
        margins = [float(text.split(":")[1]) for text in grid.CANDIDATES["constant"]]
        assert min(margins) <= 0.05
        assert grid.PUBLISHED in grid.CANDIDATES["dams"]

    def test_tuning_looks_at_validation_and_its_own_seeds_only(self, study):
        cells = [
            made_up_cell("constant:0.2", 100, validation=0.8, test=0.99),
            made_up_cell("constant:0.2", 101, validation=0.9, test=0.99),
            made_up_cell("constant:0.05", 100, validation=0.87, test=0.5),
            made_up_cell("constant:0.05", 101, validation=0.85, test=0.5),
            made_up_cell("constant:0.2", 0, validation=1.0, test=0.99),
        ]
        assert study("compare").tuned(cells) == "constant:0.05"

    def test_reported_seeds_are_not_those_of_the_tuning(self, study):
        compare = study("compare")
        arguments = compare.parse(["--data", str(ROOT)])
        assert not set(range(arguments.seeds)) & set(study("grid").TUNING_SEEDS)
        assert arguments.seeds == 5


class TestACell:
    @pytest.fixture
    def options(self):
        return {
            "dataset": "glyphs",
            "encoder": "mlp",
            "embedding_size": 8,
            "image_size": 12,
            "epochs": 2,
            "max_identities": 60,
            "identities_per_batch": 8,
            "schedule": "dams:margin=0.1,threshold=0.5",
            "reduction": "mean",
            "seed": 3,
        }

    def test_its_command_repeats_it(self, study, tmp_path, monkeypatch, options, capsys):
        compare = study("compare")
        data = mj.load_dataset("glyphs", None, 12).first(60)
        path = tmp_path / "cells" / "glyphs_mean.jsonl"
        trained = compare.train_cell(path, options, data, tmp_path / "scratch", {"dataset": "g"})
        assert list(study("cell_files").read(path).values()) == [trained]
        assert not any((tmp_path / "scratch").iterdir())
        words = shlex.split(trained["command"])
        words = words[words.index("margin-jax") + 1 :]

        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert not left.value.code
        report = json.loads((tmp_path / "cell" / "report.json").read_text(encoding="utf-8"))
        assert report["test"]["auc"] == trained["test"]["pairs"]["auc"]
        assert report["test"]["published"]["auc"] == trained["test"]["published_pairs"]["auc"]
        assert report["best_epoch"] == trained["best_epoch"]
        lines = (tmp_path / "cell" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        margins = [json.loads(line)["margin"] for line in lines]
        assert trained["epochs"]["margin"] == pytest.approx(margins, rel=1e-4)
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "cell", "--pairs", "all", "--out", "all.json"])
        every = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
        assert every["auc"] == trained["test"]["all_pairs"]["auc"]
        for told, kind in (report["test"], "pairs"), (every, "all_pairs"):
            interval = trained["test"][kind]["auc_interval"]
            assert interval == pytest.approx(told["intervals"]["auc"], rel=1e-4)
            assert interval[0] < told["auc"] < interval[1]
        capsys.readouterr()

    def test_what_is_there_is_not_trained_again(self, study, tmp_path, options):
        compare, path = study("compare"), tmp_path / "cells.jsonl"
        kept = {"schedule": options["schedule"], "seed": 3}
        kept["command"] = "taskset --cpu-list 0 " + compare.command(options)
        study("cell_files").add(path, kept, kept | {"seed": 4, "command": ""})
        assert compare.train_cell(path, options, None, tmp_path) == kept

    def test_what_is_there_and_is_something_else_is_not_taken_for_it(
        self, study, tmp_path, options
    ):
        compare, path = study("compare"), tmp_path / "cells.jsonl"
        cell = {"schedule": options["schedule"], "seed": 3, "command": compare.command(options)}
        study("cell_files").add(path, cell)
        said = r"seed3 in .*cells\.jsonl was trained with other .*--epochs=2"
        with pytest.raises(ValueError, match=said):
            compare.train_cell(path, options | {"epochs": 3}, None, tmp_path)

    def test_that_of_the_grid_which_would_come_out_the_same_is_taken_over(
        self, study, tmp_path, monkeypatch, options
    ):
        compare, cell_files = study("compare"), study("cell_files")
        alike = {"schedule": options["schedule"], "seed": 3, "command": compare.command(options)}
        alike |= {"machine": compare.machine(), "versions": compare.versions()}
        path, told = tmp_path / "cells.jsonl", {"variation": "control"}

        def cell(grid):
            return compare.train_cell(path, options, None, tmp_path, told, grid)

        def fit(*_, **__):
            raise RuntimeError("it is trained")

        monkeypatch.setattr(mj, "fit", fit)
        for other in (
            {"machine": "a box"},
            {"versions": {"jax": "0.1"}},
            {"command": compare.command(options | {"epochs": 3})},
            {"seed": 4},
        ):
            grid = {cell_files.key_of(alike | other): alike | other}
            with pytest.raises(RuntimeError, match="it is trained"):
                cell(grid)
        assert not cell_files.read(path)
        found = cell({cell_files.key_of(alike): alike})
        assert found == {**alike, **told}
        assert list(cell_files.read(path).values()) == [found]
        assert cell({}) == found

    def test_a_dams_that_never_acts_is_copied_from_its_constant(
        self, study, tmp_path, monkeypatch, options
    ):
        compare, cell_files = study("compare"), study("cell_files")
        own = options | {"schedule": "constant:0.1"}
        constant = made_up_cell("constant:0.1", 3) | {"command": compare.command(own)}
        constant |= {"machine": compare.machine(), "versions": compare.versions()}
        constant["epochs"]["easy_fraction"] = [0.3, 0.5, 0.4]
        path, other = tmp_path / "cells.jsonl", tmp_path / "others.jsonl"
        cell_files.add(path, constant)

        def cell(path, **changed):
            return compare.train_cell(path, options | changed, None, tmp_path)

        def fit(*_, **__):
            raise RuntimeError("it is trained")

        monkeypatch.setattr(mj, "fit", fit)
        for changed in (
            {"schedule": "dams:margin=0.1,threshold=0.5"},  # it acts at as many
            {"schedule": "dams:margin=0.2,threshold=0.95"},
            {"schedule": "linear:margin=0.1,margin_end=0.2"},
            {"schedule": "dams:margin=0.1,threshold=0.51", "seed": 4},
            {"schedule": "dams:margin=0.1,threshold=0.51", "epochs": 3},
        ):
            with pytest.raises(RuntimeError, match="it is trained"):
                cell(path, **changed)
        cell_files.add(other, constant | {"machine": "a box"})
        with pytest.raises(RuntimeError, match="it is trained"):
            cell(other, schedule="dams:margin=0.1,threshold=0.51")

        copied = cell(path, schedule="dams:margin=0.1,threshold=0.51")
        assert copied["command"] == compare.command(
            options | {"schedule": "dams:margin=0.1,threshold=0.51"}
        )
        assert (copied["same_run_as"], copied["seconds"]) == ("constant:0.1", 0)
        for same in ("test", "epochs", "seed"):
            assert copied[same] == constant[same]
        assert cell(path, schedule="dams:margin=0.1,threshold=0.51") == copied

    def test_its_machine_names_the_generation_of_the_cpu(self, study, tmp_path):
        cpuinfo = tmp_path / "cpuinfo"
        assert study("compare").cpu(cpuinfo) == "a CPU"
        core = "cpu family\t: {}\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fpu\n\n"
        cpuinfo.write_text("".join(map(core.format, (26, 27))), encoding="utf-8")
        assert study("compare").cpu(cpuinfo) == "AMD EPYC, family 26, model 2"
        cpuinfo.write_text("model name : A\nmodel : 3\n", encoding="utf-8")
        assert study("compare").cpu(cpuinfo) == "A, family None, model 3"
        cpuinfo.write_text("processor : 0\nBogoMIPS : 50.00\n", encoding="utf-8")  # of an ARM
        assert study("compare").cpu(cpuinfo) == "a CPU"


def add_many(folder, path, seeds):
    """In a process of its own."""
    sys.path.insert(0, str(folder))
    import cell_files

    for seed in seeds:
        cell_files.add(path, {"schedule": "dams", "seed": seed})


class TestFilesOfCells:
    def test_two_processes_add_to_one_file(self, study, tmp_path):
        path = tmp_path / "cells" / "a_mean.jsonl"
        context = multiprocessing.get_context("spawn")
        halves = [(ROOT / "experiments", path, range(i, 100, 2)) for i in (0, 1)]
        processes = [context.Process(target=add_many, args=half) for half in halves]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        cells = study("cell_files").read(path)
        assert sorted(cell["seed"] for cell in cells.values()) == list(range(100))
        assert list(cells) == sorted(cells)

    def test_a_cell_is_known_by_variation_schedule_and_seed(self, study, tmp_path):
        cell_files, path = study("cell_files"), tmp_path / "a_mean.jsonl"
        one = {"schedule": "constant:0.2", "seed": 1, "seconds": 1.0}
        others = [one | {"seed": 10}, one | {"schedule": "dams"}, one | {"variation": "wide"}]
        cell_files.add(path, *others, one)
        cell_files.add(path, one | {"seconds": 2.0})
        assert list(cell_files.read(path).values()) == [one | {"seconds": 2.0}, *others]
        assert path.read_text(encoding="utf-8").count("\n") == 4

    @pytest.mark.parametrize(
        ("line", "said"),
        [("half of a ce", "Expecting value"), ('{"seed": 1}', "schedule"), (None, "a cell twice")],
    )
    def test_damage_is_told(self, study, tmp_path, line, said):
        path, whole = tmp_path / "a_mean.jsonl", '{"schedule": "dams", "seed": 1}'
        path.write_text(f"{whole}\n{line or whole}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"a_mean\.jsonl is damaged: .*{said}"):
            study("cell_files").read(path)


class TestReport:
    def test_figures_are_those_of_plain_loops(self, study, made_up):
        (shape,) = study("report").read_shapes(made_up)
        assert shape.seeds == [0, 1, 2]
        assert list(shape.chosen) == ["constant", "dams"]
        summary = shape.comparisons["all_pairs"].summary("dams", "auc")
        differences = [0.01, 0.02, 0.04]
        mean = sum(differences) / 3
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
        assert summary.difference == pytest.approx(mean)
        assert summary.difference_interval == pytest.approx(4.302653 * spread / math.sqrt(3))
        assert shape.ranks(shape.chosen) == {"constant": 2, "dams": 1}

    def test_it_writes_all_that_it_links(self, study, made_up, tmp_path, capsys):
        out = tmp_path / "out"
        out.mkdir()
        study("report").main(["--cells", str(made_up), "--out", str(out)])
        text = (out / "schedules.md").read_text(encoding="utf-8")
        assert "30 cells" in text
        assert "Tuning, 6 settings of each schedule" in text
        for picture in ("schedules_differences.png", "schedules_omniglot.png"):
            assert f"({picture})" in text
            assert (out / picture).stat().st_size > 10_000
        assert "| dams | +0.0233 ± 0.0379 | 1.0 |" in capsys.readouterr().out

    def test_a_schedule_that_acted_too_late_is_marked(self, study, made_up):
        report = study("report")
        assert "†" not in report.short_tables(report.read_shapes(made_up))
        for seed, mark in ((0, "(†)"), (1, "(†)"), (2, "†")):
            for cell in read_cells(study, made_up):
                if cell["schedule"].startswith("dams") and cell["seed"] == seed:
                    margins = cell["epochs"]["margin"]
                    margins[1] = margins[0]  # it acts after the best
                    write_cells(study, made_up, [cell])
            table = report.short_tables(report.read_shapes(made_up))
            assert f"| dams | +0.0233 ± 0.0379 {mark} |" in table

    def test_where_few_have_most_of_the_pairs_even_ones_stand_beside(self, study, made_up):
        cells = [cell | {"dataset": "lfw"} for cell in read_cells(study, made_up)]
        for cell in cells:
            cell["test"]["pairs"] = {"auc": cell["test"]["pairs"]["auc"] / 2, "eer": 0.5}
        write_cells(study, made_up, cells)
        report = study("report")
        table = report.short_table(report.read_shapes(made_up)).splitlines()
        assert table[0] == "| schedule | LFW, even pairs | LFW, all pairs | Omniglot | mean rank |"
        assert table[2] == "| constant | 0.4505 | 0.9010 | 0.9010 | 2.0 |"
        assert table[3].startswith("| dams | +0.0117 ± 0.0190 | +0.0233 ± 0.0379 | +0.0233 ")

    def test_only_what_is_on_every_data_set_has_a_rank(self, study, made_up):
        grid, report = study("grid"), study("report")
        cells = [cell | {"dataset": "cub"} for cell in read_cells(study, made_up)]
        write_cells(study, made_up, cells)
        for schedule, seed in itertools.product(grid.CANDIDATES["linear"], (100, 101, 0, 1, 2)):
            write_cells(study, made_up, [made_up_cell(schedule, seed, test=0.99)])
        rows = report.short_table(report.read_shapes(made_up)).splitlines()[2:]
        ends = [[cell.strip() for cell in row.split("|")][1::3] for row in rows]
        assert ends == [["constant", "2.0"], ["dams", "1.0"], ["linear", ""]]
        assert rows[2].startswith("| linear |  | **+0.0890 ")  # and no figure on the other set

    def test_a_seed_that_one_lacks_is_not_averaged_and_not_hidden(self, study, made_up):
        remove_cell(study, made_up, "constant:0.05", 2)
        report = study("report")
        (shape,) = report.read_shapes(made_up)
        assert (shape.seeds, shape.left_out) == ([0, 1], [2])
        text = report.markdown([shape])
        assert "Seeds 0, 1." in text
        assert "Left out, with cells of some schedules only: seeds [2]." in text

    def test_seeds_that_came_later_are_shown_apart(self, study, made_up):
        (constant, dams) = (study("grid").CANDIDATES[name] for name in ("constant", "dams"))
        report = study("report")
        (shape,) = report.read_shapes(made_up)
        assert "had been read" not in report.markdown([shape])
        for seed, gain in ((5, -0.02), (6, -0.03)):
            write_cells(study, made_up, [made_up_cell(constant[1], seed, test=0.9)])
            write_cells(study, made_up, [made_up_cell(dams[2], seed, test=0.9 + gain)])
        (shape,) = report.read_shapes(made_up)
        assert "Seeds 5 to 9 were trained after 0 to 4 had been read" in report.markdown([shape])
        row = report.again(shape).splitlines()[3]
        assert row == "| dams | +0.0233 ± 0.0379 | -0.0250 ± 0.0635 |"

    def test_heads_on_features_have_a_table_of_their_own(self, study, made_up):
        (constant, dams) = (study("grid").CANDIDATES[name] for name in ("constant", "dams"))
        for seed in (5, 6):
            write_cells(study, made_up, [made_up_cell(constant[1], seed, test=0.9)])
            write_cells(study, made_up, [made_up_cell(dams[2], seed, test=0.9)])
        cells = read_cells(study, made_up)
        write_cells(study, made_up, [cell | {"dataset": "cub_features"} for cell in cells])
        report = study("report")
        shapes = report.read_shapes(made_up)
        small, heads = report.short_tables(shapes).split("Heads on features, mean over ")
        assert small.startswith("Small networks, mean over ")
        assert "| schedule | Omniglot | mean rank |" in small
        assert "| schedule | CUB-200-2011 | mean rank |" in heads
        assert report.over_identities(shapes[0]) == ""
        for cell in cells:
            cell["test"]["all_pairs"]["auc_interval"] = [0.7, 0.9 if cell["seed"] else 0.8]
        write_cells(study, made_up, [cell | {"dataset": "cub_features"} for cell in cells])
        (of_features,) = (s for s in report.read_shapes(made_up) if s.of_features)
        assert "the AUC of the constant has ± 0.0900, mean" in report.over_identities(of_features)
        # There all seeds were trained before any was read.
        assert report.markdown(shapes).count("were trained after 0 to 4 had been read") == 1

    def test_how_many_differences_there_are_and_which_remain(self, study, made_up):
        report = study("report")
        said = report.multiplicity(report.read_shapes(made_up))
        assert said.startswith("0 of the 1 differences in AUC exceed their interval")
        assert said.endswith("these gains remain: none. These losses: none.")
        best = study("grid").CANDIDATES["dams"][2]
        for seed in range(3):
            write_cells(study, made_up, [made_up_cell(best, seed, test=0.95 + seed / 500)])
        said = report.multiplicity(report.read_shapes(made_up))
        assert said.startswith(
            "1 of the 1 differences in AUC exceed their interval, 1 gains and 0 "
        )
        assert "these gains remain: dams, Omniglot, mean over all triplets (p = 0.0" in said
        for seed in range(3):
            write_cells(study, made_up, [made_up_cell(best, seed, test=0.85 + seed / 500)])
        said = report.multiplicity(report.read_shapes(made_up))
        assert "0 gains and 1 losses" in said
        assert "remain: none. These losses: dams, Omniglot, mean over all triplets (p = 0.0" in said

    def test_what_the_loss_is_averaged_over_is_compared_too(self, study, made_up):
        cells = [cell | {"reduction": "mean_active"} for cell in read_cells(study, made_up)]
        for cell in cells:
            gain = {"auc": cell["test"]["pairs"]["auc"] + 0.01 * (1 + cell["seed"] % 2), "eer": 0.1}
            cell["test"] = dict.fromkeys(("all_pairs", "pairs", "published_pairs"), gain)
        write_cells(study, made_up, cells)
        report = study("report")
        said = report.active_or_all(report.read_shapes(made_up))  # gains of 1, 2 and 1 %
        assert said.endswith("minus that over all: Omniglot +0.0133 ± 0.0143.")

    def test_what_is_of_no_choice_any_more_is_listed_too(self, study, made_up):
        report = study("report")
        assert "Chosen while" not in report.markdown(report.read_shapes(made_up))
        other = study("grid").CANDIDATES["dams"][1]
        for seed in (0, 1):  # the constant has .900, .901
            write_cells(study, made_up, [made_up_cell(other, seed, test=0.89 + 0.001 * seed)])
        shapes = report.read_shapes(made_up)
        assert f"| {other} | 2 | **-0.0100 ± 0.0000** |" in report.markdown(shapes)

    def test_a_set_alone_has_a_report_without_what_needs_others(self, study, made_up, tmp_path):
        cells = [cell | {"dataset": "cub"} for cell in read_cells(study, made_up)]
        write_cells(study, tmp_path / "alone", cells)
        text = study("report").markdown(study("report").read_shapes(tmp_path / "alone"))
        assert "1 differences in AUC" in text
        assert "Nadeau" not in text  # its test is always the same
        assert "minus that over all" not in text
        assert "\n\n\n" not in text

    def test_which_differences_remain_if_splits_share_their_images(self, study, made_up):
        report = study("report")
        assert report.for_other_images(report.read_shapes(made_up)).endswith("by: none.")
        best = study("grid").CANDIDATES["dams"][2]
        for spread, left in ((0.0005, True), (0.005, False)):
            for seed in range(3):  # the constant has .900, .901, .902
                test = 0.91 + 0.001 * seed + spread * (seed == 2)
                write_cells(study, made_up, [made_up_cell(best, seed, test=test)])
            (shape,) = report.read_shapes(made_up)
            summary = shape.judged.summary("dams", "auc")
            # 3 splits, of which 40 % train and 50 % are the test: 1/3 becomes 1/3 + 5/4.
            widened = summary.difference_interval * math.sqrt((1 / 3 + 5 / 4) / (1 / 3))
            assert (summary.difference > widened) == left
            assert summary.difference > summary.difference_interval
            said = report.for_other_images([shape])
            assert said.endswith("by: dams, Omniglot, mean over all triplets.") == left
            assert "2.2 to 2.2 times" in said

    def test_a_schedule_with_one_seed_so_far_is_named_and_left_out(self, study, made_up):
        for seed in (1, 2):
            best = study("grid").CANDIDATES["dams"][2]
            remove_cell(study, made_up, best, seed)
        for schedule, seed in itertools.product(study("grid").CANDIDATES["linear"], (100, 101)):
            write_cells(study, made_up, [made_up_cell(schedule, seed)])
        for seed in range(3):
            own = study("grid").CANDIDATES["linear"][0]
            write_cells(study, made_up, [made_up_cell(own, seed)])
        report = study("report")
        (shape,) = report.read_shapes(made_up)
        assert (list(shape.chosen), shape.seeds) == (["constant", "linear"], [0, 1, 2])
        assert "Not finished: dams." in report.markdown([shape])

    def test_what_was_tuned_over_fewer_settings_is_named_and_left_out(self, study, made_up):
        report = study("report")
        last = study("grid").CANDIDATES["dams"][-1]
        remove_cell(study, made_up, last, 101)
        (shape,) = report.read_shapes(made_up)
        assert (shape.settings, list(shape.chosen), shape.unfinished) == (6, ["constant"], ["dams"])
        last = study("grid").CANDIDATES["constant"][-1]
        remove_cell(study, made_up, last, 100)
        (shape,) = report.read_shapes(made_up)
        assert (shape.settings, list(shape.chosen)) == (5, ["constant", "dams"])

    def test_cells_with_other_options_are_not_mixed(self, study, made_up, capsys):
        cell = made_up_cell("constant:0.05", 2) | {"command": "margin-jax train --epochs=3"}
        write_cells(study, made_up, [cell])
        with pytest.raises(SystemExit):
            study("report").main(["--cells", str(made_up), "--out", str(made_up)])
        assert "seed alone; they differ in --epochs=3" in capsys.readouterr().err

    def test_without_cells_it_says_what_is_missing(self, study, tmp_path, capsys):
        with pytest.raises(SystemExit):
            study("report").main(["--cells", str(tmp_path), "--out", str(tmp_path)])
        assert "holds no tuned constant" in capsys.readouterr().err


class TestCommittedResults:
    @pytest.fixture
    def shapes(self, study):
        return study("report").read_shapes(CELLS)

    def test_the_grid_is_whole(self, study, shapes):
        grid = study("grid")
        assert {(s.name, s.reduction) for s in shapes} == set(
            itertools.product(grid.DATASETS, grid.REDUCTIONS)
        )
        for shape in shapes:
            assert {*grid.DEFAULT, *grid.FIXED} <= set(shape.chosen)
            assert shape.seeds == list(range(10))
            assert shape.left_out == shape.unfinished == []
            assert shape.settings == 6

    def test_nothing_but_schedule_and_seed_differs_within_a_shape(self, shapes):
        for shape in shapes:
            said = {
                frozenset(
                    word
                    for word in shlex.split(cell["command"])
                    if not word.startswith(("--schedule=", "--seed="))
                )
                for cell in shape.cells
            }
            assert len(said) == 1
            assert len({json.dumps(cell["images"]) for cell in shape.cells}) == 1

    def test_the_report_is_of_these_cells(self, study, shapes):
        written = (CELLS.parent / "schedules.md").read_text(encoding="utf-8")
        assert study("report").markdown(shapes) == written
        page = (CELLS.parent / "README.md").read_text(encoding="utf-8")
        assert study("report").short_tables(shapes) in page
        assert study("report").multiplicity(shapes) in page
        assert study("report").active_or_all(shapes) in page

    def test_the_gradient_study_is_of_these_cells(self, study):
        gradient = study("gradient")
        by_name = {name: gradient.read(CELLS.parent, name) for name in gradient.NAMED}
        for found in by_name.values():
            for reduction in gradient.REDUCTIONS:
                for variation, schedule, seed in gradient.plan():
                    cells = found[variation, reduction, schedule]
                    assert seed in {cell["seed"] for cell in cells}
        written = (CELLS.parent / "gradient.md").read_text(encoding="utf-8")
        assert gradient.markdown(by_name, written) == written

    def test_the_comparison_of_losses_is_of_these_cells(self, study):
        related = study("related")
        written = (CELLS.parent / "related.md").read_text(encoding="utf-8")
        assert related.markdown(related.read(CELLS.parent), written) == written

    def test_the_controls_are_of_these_cells(self, study):
        yoked = study("yoked")
        omniglot, birds = every = yoked.read(CELLS.parent)
        written = (CELLS.parent / "yoked.md").read_text(encoding="utf-8")
        assert yoked.markdown(every, written) == written
        assert "control is the same run with seven seeds of ten" in written
        assert np.sum(omniglot.auc["dams"] == omniglot.auc["control of dams"]) == 7
        assert "same run with every seed of *quantile_margin*, and with nine of the" in written
        for kind, alike in {"quantile_margin": 10, "target_easy_fraction": 9}.items():
            assert np.sum(birds.auc[kind] == birds.auc[f"control of {kind}"]) == alike

    def test_the_regret_is_of_these_cells(self, study):
        regret = study("regret")
        active, over_all = every = regret.read(CELLS.parent)
        written = (CELLS.parent / "regret.md").read_text(encoding="utf-8")
        assert regret.markdown(every, written) == written
        for found in every:
            own, *others = found.settings
            assert own == regret.RULE
            assert min(found.worst(other)[1] for other in others) > 0.002
            for against in regret.UNTUNED:  # better than what one would type, beyond the interval
                mean, width = found.mean(own, against)
                assert mean < -width
        assert over_all.worst(regret.RULE)[1] <= 0.002 < active.worst(regret.RULE)[1] < 0.004

    def test_the_fresh_sets_are_of_these_cells(self, study):
        confirm, regret = study("confirm"), study("regret")
        active, over_all = every = confirm.read(CELLS.parent)
        written = (CELLS.parent / "confirm.md").read_text(encoding="utf-8")
        assert regret.markdown(every, written, picture="confirm.png") == written
        assert sorted(over_all.auc) == ["emoji", "emoji_features", "icons", "icons_features"]
        assert over_all.settings[0] == regret.RULE
        assert over_all.worst(regret.RULE)[1] <= 0
        # Over the active triplets it misses the aim, as does all else on one of the nine sets.
        found = regret.read(CELLS.parent)[0]
        worst = {
            own: max(own_set.worst(own)[1] for own_set in (found, active))
            for own in active.settings
        }
        assert min(worst.values()) > 0.002
        assert active.worst(regret.RULE)[0] == "emoji"
        assert worst[regret.RULE] < 0.005
        assert sorted(worst, key=worst.__getitem__)[:2] == [
            "linear:margin=0.02,margin_end=0.2",
            regret.RULE,
        ]

    def test_the_effective_margins_are_of_these_cells(self, study):
        effective = study("effective_margin")
        toy = json.loads((CELLS.parent / "effective_margin.json").read_text(encoding="utf-8"))
        assert len(toy) == len(effective.OVERLAPS) * len(effective.OF_THE_TOY) * 2
        written = (CELLS.parent / "effective_margin.md").read_text(encoding="utf-8")
        assert effective.markdown(effective.read_curves(toy, CELLS), written) == written


def test_when_growth_has_ended(study):
    settled = study("effective_margin").settled
    grown = 1.05 ** np.minimum(np.arange(30), 10)
    assert settled(grown) == 14  # 5 % in five epochs are less than 1 % each; at 13 it were 10 %
    assert settled(np.ones(30)) == 5
    assert settled(1.02 ** np.arange(30)) is None


def test_effective_margins_of_the_mixture(study, tmp_path, monkeypatch):
    effective = study("effective_margin")
    monkeypatch.setattr(effective, "OVERLAPS", (0.5,))
    monkeypatch.setattr(effective, "STEPS", 4)
    effective.main(["--epochs", "3", "--out", str(tmp_path), "--cells", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {f"effective_margin_{name}.png" for name in ("toy", "growth", "stop")}
    assert names == pictures | {"effective_margin.md", "effective_margin.json"}
    text = (tmp_path / "effective_margin.md").read_text(encoding="utf-8")
    assert text.count("| mixture, overlap 0.5 |") == 8
    assert text.startswith("# Claim 1 of arXiv 2603.26389")
    (tmp_path / "effective_margin.md").unlink()
    effective.main(["--report", "--out", str(tmp_path), "--cells", str(tmp_path)])
    assert (tmp_path / "effective_margin.md").read_text(encoding="utf-8") == text
    found = text.replace("\n\n![", "\n\nWhat came of it: shrinking.\n\n![", 1)
    (tmp_path / "effective_margin.md").write_text(found.replace("| mixture", ""), encoding="utf-8")
    effective.main(["--report", "--out", str(tmp_path), "--cells", str(tmp_path)])
    assert (tmp_path / "effective_margin.md").read_text(encoding="utf-8") == found
    samples, components = next(effective.batches(0.0, 0))
    for component in np.unique(components):  # without spread an identity is one point
        assert np.ptp(samples[components == component], axis=0).max() == 0


def test_the_gradient_study_reads_the_grid_s_cells(study, tmp_path):
    gradient, grid = study("gradient"), study("grid")
    cells = [
        {**made_up_cell(schedule, 100, test=test), "reduction": reduction}
        for reduction in grid.REDUCTIONS
        for schedule, test in (("constant:0.2", 0.9), ("constant:0.02", 0.95))
    ]
    write_cells(study, tmp_path / "cells", cells)
    found = gradient.read(tmp_path, "omniglot")
    assert len(found) == 4
    table = gradient.variations_table(found)
    assert "| constant:0.02 | 0.9500 | +0.0500 | 0.750 |" in table
    assert len(gradient.plot({"omniglot": found, "lfw": {}}).axes) == 4


def test_losses_are_tuned_alike_and_judged_by_their_own_choice(study, tmp_path):
    related, cell_files, grid = study("related"), study("cell_files"), study("grid")
    assert {len(set(settings)) for settings in related.KINDS.values()} == {6}
    for loss, schedule in itertools.chain(*related.KINDS.values()):
        mj.TrainConfig(loss=loss, schedule=schedule, **related.reduction_of(loss))  # or an error

    def cell(loss, schedule, seed, validation, test):
        made_up = made_up_cell(schedule, seed, validation, test)
        return {**made_up, "variation": loss}

    cells = []
    for kind, best in ((related.BASELINE, 3), ("SupCon", 5)):
        for place, (loss, schedule) in enumerate(related.KINDS[kind]):
            # The best on the test of the tuning is another one, which must not matter.
            at = (0.9 if place == best else 0.8, 0.99 if place == 0 else 0.5)
            cells += [cell(loss, schedule, seed, *at) for seed in grid.TUNING_SEEDS]
        loss, schedule = related.KINDS[kind][best]
        for seed in related.SEEDS:
            test = 0.8 + 0.01 * seed + (0.02 if kind == "SupCon" else 0)
            cells.append(cell(loss, schedule, seed, 0.9, test))
    cell_files.add(cell_files.path_of(tmp_path / "related", "omniglot", "mean"), *cells)
    (found,) = related.read(tmp_path)
    assert found.settings["SupCon"] == related.KINDS["SupCon"][5]
    assert found.settings[related.BASELINE] == related.KINDS[related.BASELINE][3]
    assert "| 0.8400 ± 0.0196 | +0.0200 ± 0.0000 |" in found.table()
    text = related.markdown([found], "")
    assert "Not trained yet: triplet, DAMS, Shadow" in text
    words = text.replace("\n\n![", "\n\nWhat came of it.\n\n![", 1)
    assert related.markdown([found], words) == words
    assert len(related.plot([found]).axes) == 1


def test_settings_are_chosen_by_validation_and_their_regret_is_of_the_test(study, tmp_path):
    """Losses are made up by kind, so that the rule can be done by hand."""
    regret, grid, cell_files = study("regret"), study("grid"), study("cell_files")
    kinds = {kind: place for place, kind in enumerate(grid.CANDIDATES)}
    validation = {
        name: {
            own: 0.9 - 0.01 * kinds[own.partition(":")[0]] - 0.001 * place - 0.1 * (name == "lfw")
            for family in grid.CANDIDATES.values()
            for place, own in enumerate(family)
        }
        for name in regret.SETS
    }
    chosen = regret.choose(validation)
    constants, linears = grid.CANDIDATES["constant"], grid.CANDIDATES["linear"]
    litm, target = grid.CANDIDATES["litm"], grid.CANDIDATES["target_easy_fraction"]
    # The two of DAMS fill its places; 0.05 and 0.2 stand beside, so are no candidates.
    left = [own for own in constants if own not in regret.UNTUNED]
    assert chosen == [*regret.ALWAYS, *left[:2], *linears[:2], *litm[:2]]
    validation["cub"][target[0]] = 2.0  # best on one set by more than it loses on four
    assert target[0] in regret.choose(validation)

    lost = {"constant:0.2": 0.01, "constant:0.05": 0.03, "litm:margin=0.02,margin_end=0.2": 0.0}
    for name in regret.SETS:
        best = "constant:0.5" if name == "cub" else "constant:0.2"
        tuning = [
            made_up_cell(own, seed, 0.9 if own == best else 0.8, 0.1)
            for own in constants
            for seed in grid.TUNING_SEEDS
        ]
        cell_files.add(cell_files.path_of(tmp_path / "cells", name, "mean"), *tuning)
        more = 0.02 if name == "cub" else 0.01
        reported = [
            made_up_cell(own, seed, test=0.8 + 0.01 * seed - by)
            for own, by in {**lost, "constant:0.5": 0.01 - more}.items()
            for seed in range(3)
            if own != "constant:0.5" or name == "cub"
        ]
        cell_files.add(cell_files.path_of(tmp_path / "regret", name, "mean"), *reported)
    (found,) = regret.read(tmp_path, tmp_path / "cells")
    assert found.seeds == 3
    assert found.tuned["cub"] == "constant:0.5"
    assert found.settings == ["litm:margin=0.02,margin_end=0.2", regret.RULE, *list(lost)[:2]]
    np.testing.assert_allclose(found.mean("constant:0.05"), [(4 * 0.02 + 0.04) / 5, 0], atol=1e-12)
    np.testing.assert_allclose(found.mean("constant:0.05", "constant:0.2"), [0.02, 0], atol=1e-12)
    name, worst = found.worst("constant:0.05")
    assert (name, round(worst, 6)) == ("cub", 0.04)
    text = regret.markdown([found], "")
    assert "| `constant:0.05` | +0.0200 ± 0.0000 | +0.0200 ± 0.0000 | +0.0400 ± 0.0000 |" in text
    assert len(regret.plot([found]).axes) == 1
    with pytest.raises(ValueError, match=r"needs all 108 cells .*; 96 are missing"):
        regret.read_validation(tmp_path / "cells", "mean")


def test_regret_trains_every_setting_beside_the_grid(study, tmp_path, monkeypatch):
    regret, cell_files, grid = map(study, ("regret", "cell_files", "grid"))
    every = [own for family in grid.CANDIDATES.values() for own in family]
    for name in regret.SETS:
        tuning = [made_up_cell(own, seed, 0.8) for own in every for seed in grid.TUNING_SEEDS]
        cell_files.add(cell_files.path_of(tmp_path / "grid", name, "mean"), *tuning)
    trained = []

    def train_cell(path, options, data, scratch, told, of_grid):
        assert path == cell_files.path_of(tmp_path / "regret", "lfw", "mean")
        assert of_grid == cell_files.read(cell_files.path_of(tmp_path / "grid", "lfw", "mean"))
        trained.append((options["schedule"], options["seed"]))

    monkeypatch.setattr(regret, "CELLS", tmp_path / "grid")
    monkeypatch.setattr(regret, "train_cell", train_cell)
    monkeypatch.setattr(regret, "open_dataset", lambda *_: ({"dataset": "folder"}, None))
    regret.train("lfw", "mean", types.SimpleNamespace(out=tmp_path, data=None, scratch=None))
    assert len(set(trained)) == len(trained)
    assert {seed for _, seed in trained} == set(regret.SEEDS)  # none of the tuning
    by_seed = [{own for own, s in trained if s == seed} for seed in regret.SEEDS]
    assert all(own == by_seed[0] and own > {*regret.UNTUNED, *regret.ALWAYS} for own in by_seed)


def test_a_control_has_the_margins_of_the_next_seed(study, tmp_path, monkeypatch):
    yoked, cell_files = study("yoked"), study("cell_files")
    trained = []

    def train_cell(path, options, data, scratch, told, grid):
        assert grid == cell_files.read(cell_files.path_of(yoked.CELLS, "omniglot", "mean"))
        cell = {**made_up_cell(options["schedule"], options["seed"]), **told}
        if options["schedule"].startswith("dams"):
            cell["epochs"]["margin"] = [0.05, 0.05 + 0.01 * options["seed"], 0.1]
        cell["test"] = {"all_pairs": {"auc": 0.9 - 0.001 * len(trained) * (options["seed"] == 0)}}
        trained.append(cell)
        cell_files.add(path, cell)
        return cell

    monkeypatch.setattr(yoked, "train_cell", train_cell)
    monkeypatch.setattr(yoked, "open_dataset", lambda name, folder: ({}, None))
    arguments = types.SimpleNamespace(data=tmp_path, out=tmp_path, scratch=tmp_path)
    yoked.train("omniglot", "mean", arguments)
    assert len(trained) == 10 * (1 + 2 * len(yoked.GAINED["omniglot", "mean"]))
    controls = {c["seed"]: c["schedule"] for c in trained if c["variation"] == "control of dams"}
    assert controls[3] == "replay:0.05/0.09/0.1"
    assert controls[9] == "replay:0.05/0.05/0.1"
    for schedule in controls.values():
        mj.TrainConfig(schedule=schedule)
    (found,) = yoked.read(tmp_path)
    # Of seed 0, the 10th and the 20th cell: 0.001 for each that went before, over ten seeds.
    np.testing.assert_allclose(np.mean(found.auc["dams"]), 0.9 - 0.001)
    assert "| 0.8990 | 0.8980 | +0.0010 ± 0.0023 | -0.0010 ± 0.0023 | -0.0020 ± 0.0045 |" in (
        yoked.markdown([found], "")
    )


@pytest.fixture
def confirm(study, monkeypatch):
    """`confirm.py` with made-up cells, where litm is best in the test, then a constant 0.02."""
    confirm, regret, cell_files = study("confirm"), study("regret"), study("cell_files")
    settings = ["dams:margin=0.02,threshold=0.95,increase=0.01", "litm:margin=0.02,margin_end=0.2"]

    def train_cell(path, options, data, scratch, told):
        schedule, seed = options["schedule"], options["seed"]
        good = schedule == "constant:0.5" and seed in confirm.TUNING_SEEDS
        auc = 0.7 + 0.1 * schedule.startswith("litm") + 0.05 * (schedule == "constant:0.02")
        cell = made_up_cell(schedule, seed, 0.9 if good else 0.8, auc)
        if options["dataset"] == "vectors":
            cell["images"] = {"shape": [10, 1280]}
        cell_files.add(path, cell)

    def open_data(path):
        return {"dataset": "folder" if path.is_dir() else "vectors"}, None

    monkeypatch.setattr(confirm, "train_cell", train_cell)
    monkeypatch.setattr(confirm, "open_data", open_data)
    monkeypatch.setattr(regret, "read_validation", lambda *_: {})
    monkeypatch.setattr(regret, "choose", lambda _: settings)
    monkeypatch.setattr(confirm, "share_out", lambda work, jobs, _: [work(*job) for job in jobs])
    return confirm


def test_fresh_data_are_tuned_on_their_own_and_take_the_settings_as_they_are(
    study, confirm, tmp_path, capsys
):
    birds, vectors = tmp_path / "birds", tmp_path / "voices.npz"
    birds.mkdir()
    vectors.touch()
    out = ["--out", str(tmp_path), "--seeds", "3", "--reductions", "mean"]
    with pytest.raises(SystemExit) as left:
        confirm.main(["--data", str(birds), *out])
    assert not left.value.code
    text = (tmp_path / "confirm.md").read_text(encoding="utf-8")
    litm = "litm:margin=0.02,margin_end=0.2"
    assert "| setting | birds (0.5) | mean |" in text
    assert f"| `{litm}` | -0.1000 ± 0.0000 | -0.1000 ± 0.0000 | -0.1000 |" in text
    assert "![Regret of each setting](confirm.png)" in text
    assert (tmp_path / "confirm.png").exists()
    trained = study("cell_files").read(tmp_path / "confirm" / "birds_mean.jsonl")
    assert len(trained) == 6 * 2 + 3 * 5  # our rule is litm here
    # The page is of all sets that have cells; our rule depends on what they are.
    with pytest.raises(SystemExit):
        confirm.main(["--data", str(vectors), *out])
    text = (tmp_path / "confirm.md").read_text(encoding="utf-8")
    assert "| setting | birds (0.5) | voices (0.5) | mean |" in text
    assert (
        "| `our rule` | -0.1000 ± 0.0000 | -0.0500 ± 0.0000 | -0.0750 ± 0.0000 | -0.0500 |" in text
    )
    assert "`constant:0.02`" not in text  # only on one of them
    trained = study("cell_files").read(tmp_path / "confirm" / "voices_mean.jsonl")
    assert len(trained) == 6 * 2 + 3 * 6
    # What somebody wrote of it stays.
    words = "# Found\n\nNothing."
    (tmp_path / "confirm.md").write_text(f"{words}\n\n![{text.partition('![')[2]}")
    with pytest.raises(SystemExit) as left:
        confirm.main(["--report", "--out", str(tmp_path)])
    assert not left.value.code
    assert (tmp_path / "confirm.md").read_text(encoding="utf-8").startswith(f"{words}\n\n![")
    for wrong, told in {str(tmp_path / "none"): f"no {tmp_path / 'none'}", "": "got none"}.items():
        with pytest.raises(SystemExit):
            confirm.main(["--data", wrong] if wrong else [])
        assert told in capsys.readouterr().err


def test_fine_tuning_has_the_best_untuned_setting_too(study, tmp_path, monkeypatch):
    finetune, cell_files = study("finetune"), study("cell_files")
    best = "litm:margin=0.02,margin_end=0.2"
    ranked = [*finetune.ALWAYS, "dams:margin=0.05,threshold=0.8,increase=0.05", best, "linear"]
    opened, trained = [], []

    def open_dataset(name, folder, **changed):
        opened.append(changed)
        return changed, None

    def train_cell(path, options, data, scratch, told):
        trained.append(options["schedule"])
        auc = 0.9 if options["schedule"] == best else 0.8
        cell = made_up_cell(options["schedule"], options["seed"], test=auc) | told
        if options["schedule"] == finetune.PUBLISHED:
            cell["epochs"]["margin"] = [0.2] * 3  # it never acts
        cell_files.add(path, cell)
        return cell

    monkeypatch.setattr(finetune, "read_validation", lambda *_: {})
    monkeypatch.setattr(finetune, "choose", lambda _: ranked)
    monkeypatch.setattr(finetune, "open_dataset", open_dataset)
    monkeypatch.setattr(finetune, "train_cell", train_cell)
    monkeypatch.setattr(finetune, "share_out", lambda work, jobs, _: [work(*job) for job in jobs])
    with pytest.raises(SystemExit) as left:
        finetune.main(["--data", str(tmp_path), "--out", str(tmp_path)])
    assert not left.value.code
    assert [(own["image_size"], own["epochs"]) for own in opened] == [(64, 14), (224, 50)] * 2
    for own in opened:
        mj.TrainConfig(**own, data_dir="pictures")
    cells = cell_files.read(tmp_path / "finetuned" / "cub_mean.jsonl")
    assert len(cells) == 8 * 3 * 2
    assert len(trained) == len(cells) * 2
    text = (tmp_path / "finetuned.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == 4
    assert text.count(f"| `{best}` | 0.9000 | +0.1000 ± 0.0000 | 50% | 30% | 0.12 |") == 4
    assert text.count(f"| `{finetune.PUBLISHED}` † | 0.8000 | +0.0000 ± 0.0000 |") == 4
    assert (tmp_path / "finetuned.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
def test_jobs_are_shared_out(study, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that it is forgotten after the test
    monkeypatch.delenv("GLIBC_TUNABLES")
    proc = Path("/proc/self")
    jobs = [(proc / name, tmp_path / name) for name in ("environ", "status", "none")]
    assert not study("compare").share_out(shutil.copyfile, jobs, 2)
    # That with which the process began, which is when the C library looks.
    began = (tmp_path / "environ").read_bytes().split(b"\0")
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in began
    status = (tmp_path / "status").read_text(encoding="utf-8")
    assert re.search(r"^Cpus_allowed_list:\t\d+$", status, re.MULTILINE)
    assert f"No such file or directory: '{proc / 'none'}'\n" in capfd.readouterr().err


def test_the_options_of_a_study(study, tmp_path, capsys):
    shared = study("study")
    known = {"kinds": shared.Some(("a, b", "c"), ";"), "datasets": shared.Some(("d", "e"))}
    arguments = shared.parse(["--data", str(tmp_path), "--kinds", "c"], "What.", "x", **known)
    assert arguments.kinds == ["c"]
    assert arguments.datasets == ["d", "e"]
    assert arguments.scratch.is_absolute()  # since the study goes to its data
    for wrong, said in (
        (["--kinds", "c;f"], "--kinds must be some of a, b; c; got f"),
        (["--data", str(tmp_path / "none")], "--data must be a folder; there is none at"),
        (["--data", str(tmp_path), "--processes", "0"], "--processes must be at least 1; got 0"),
    ):
        with pytest.raises(SystemExit) as left:
            shared.parse(wrong, "What.", "x", **known)
        assert left.value.code == 2
        assert said in capsys.readouterr().err


def png(colour, path=None):
    picture = Image.new("RGBA", (64, 64), colour)
    if path is None:
        picture.save(content := io.BytesIO(), "png")
        return content.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    return picture.save(path)


class TestMakePictures:
    def test_emoji(self, study, tmp_path, capsys):
        """What is drawn by four designers is kept, on white; not those of several characters."""
        authors = ["apple", "google", "twitter", None]
        for nth, author in enumerate(authors):
            name = (
                f"emoji-datasource-{author}-16.0.0.tgz" if author else "emojione-assets-4.5.0.tgz"
            )
            folder = f"package/img/{author}/64" if author else "package/png/64"
            with tarfile.open(tmp_path / name, "w:gz") as package:
                for code in ("1f600", "2602-fe0f", "1f1e9-1f1ea") + ("1f601",) * (nth > 0):
                    clear = nth == 0 and code == "1f600"
                    content = png((50 * nth, ord(code[-1]), len(code), 0 if clear else 255))
                    info = tarfile.TarInfo(f"{folder}/{code}.png")
                    info.size = len(content)
                    package.addfile(info, io.BytesIO(content))
        out = tmp_path / "emoji"
        study("make_pictures").main(["emoji", *map(str, tmp_path.glob("*.tgz")), "--out", str(out)])
        assert capsys.readouterr().out == "8 pictures of 2 emoji\n"
        assert {path.name for path in (out / "2602").iterdir()} == {
            *("apple.png", "google.png", "twitter.png", "emojione-assets.png")
        }
        assert Image.open(out / "1f600" / "apple.png").getpixel((0, 0)) == (255, 255, 255)

    def test_icons(self, study, tmp_path, capsys):
        """Equal ones count once, those of two names and links not at all."""
        themes = [tmp_path / "themes" / name for name in "abcde"]
        for nth, theme in enumerate(themes):
            png((0, nth, 0), theme / "icons" / "48x48" / "actions" / "save.png")
            png((1, min(nth, 2), 0), theme / "48" / "open.png")  # three and two equal ones
            png((2, nth, 0), theme / "48" / "close.png")
            png((2, nth, 0) if nth > 2 else (3, nth, 0), theme / "48" / "quit.png")
            png((4, nth, 0), theme / "22" / "small.png")
            png((5, nth, 0), theme / "icons" / "48x48" / "apps" / "save.png")  # the second one
            (theme / "48" / "link.png").symlink_to("close.png")
        make = study("make_pictures")
        make.main(["icons", *map(str, themes), "--out", str(tmp_path / "icons")])
        assert capsys.readouterr().out == "5 pictures of 1 icons\n"
        assert {path.name for path in (tmp_path / "icons").iterdir()} == {"save"}
        first = Image.open(tmp_path / "icons" / "save" / "b.png")
        assert first.getpixel((0, 0)) == (0, 1, 0)
        with pytest.raises(SystemExit):
            make.main(["icons", *map(str, themes), "--out", str(tmp_path / "icons")])
        assert "not there yet" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            make.main(["icons", str(themes[0]), "--out", str(tmp_path / "few")])
        assert "no icons of at least 4 authors" in capsys.readouterr().err

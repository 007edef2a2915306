"""Runs with a schedule or an optimiser of one's own; networks and losses are in other files."""

import json

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import margin_jax as mj

SCHEDULE = {"schedule": "own"}


def margins(run):
    return [round(record["margin"], 6) for record in run.history]


def timeless(history):
    timing = {"seconds", "images_per_second", "data_wait"}
    return [{k: v for k, v in record.items() if k not in timing} for record in history]


def test_a_schedule_of_ones_own_trains_as_the_same_by_name(tiny_fit, tmp_path):
    text = "dams:margin=0.3,threshold=0.0,increase=0.1"
    named = tiny_fit(tmp_path / "named", schedule=text)
    own = {"schedule": mj.dams(margin=0.3, threshold=0.0, increase=0.1)}
    run = tiny_fit(tmp_path / "own", own=own, **SCHEDULE)
    assert margins(run) == [0.3, 0.4, 0.5]
    assert timeless(run.history) == timeless(named.history)
    assert json.loads((tmp_path / "own" / "config.json").read_text())["schedule"] == "own"
    assert run.data["schedule"] == {"margin": np.float32(0.3).item(), "epoch": 0}


def test_it_is_resumed_where_it_was_and_with_no_other(tiny_fit, tmp_path):
    def own(margin=0.3):
        return {"schedule": mj.hold_schedule(mj.dams(margin, threshold=0.0, increase=0.1), 2)}

    whole = tiny_fit(tmp_path / "whole", own=own(), epochs=4, **SCHEDULE)
    assert margins(whole) == [0.3, 0.3, 0.3, 0.4]
    tiny_fit(tmp_path / "run", own=own(), epochs=2, **SCHEDULE)
    again = {"epochs": 4, "resume": True, **SCHEDULE}
    with pytest.raises(ValueError, match=r"data.json differs in schedule\)"):
        tiny_fit(tmp_path / "run", own=own(0.4), **again)
    run = tiny_fit(tmp_path / "run", own=own(), **again)
    assert timeless(run.history) == timeless(whole.history)
    # Who loads a run asks for no margin.
    assert mj.load_run(tmp_path / "run", encoder=run.encoder).history == run.history


def test_a_schedule_that_watches_quantiles_gets_them(tiny_fit, tmp_path):
    seen = []

    def update(state, stats):
        seen.append(np.asarray(stats.effective_cdf)[-1])
        return mj.ScheduleState(state.margin + 0.1, state.epoch + 1)

    schedule = mj.Schedule(mj.constant(0.2).init, update, needs_histogram=True)
    run = tiny_fit(tmp_path, own={"schedule": schedule}, **SCHEDULE)
    assert margins(run) == [0.2, 0.3, 0.4]
    assert seen == [1.0] * 4  # once before the run, to see what it returns


def test_any_optimiser_of_optax(tiny_fit, tmp_path):
    named = tiny_fit(tmp_path / "named", learning_rate=0.01)
    own = {"optimizer": optax.adam(0.01)}
    run = tiny_fit(tmp_path / "own", own=own, optimizer="own")
    losses = [[record["loss"] for record in one.history] for one in (run, named)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    with_decay = {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01))}
    again = {"optimizer": "own", "epochs": 4, "resume": True}
    with pytest.raises(ValueError, match="damaged, or of another"):
        tiny_fit(tmp_path / "own", own={"optimizer": optax.sgd(0.01)}, **again)
    assert len(tiny_fit(tmp_path / "own", own=own, **again).history) == 4
    run = tiny_fit(tmp_path / "decay", own=with_decay, optimizer="own")
    run.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "an optimiser of one's own, batches of 8 identities" in card
    assert "learning rate" not in card


def test_one_that_diverges_is_not_told_a_learning_rate(tiny_fit, tmp_path):
    own = {"optimizer": optax.sgd(1e38)}
    with pytest.raises(mj.DivergedError, match="A lower learning rate is the usual remedy"):
        tiny_fit(tmp_path, own=own, optimizer="own")


def state(margin=0.2, epoch=1, **memory):
    return mj.ScheduleState(np.float32(margin), np.int32(epoch), memory)


def schedule(init=lambda: state(epoch=0), update=lambda before, _: state()):
    return {"schedule": mj.Schedule(init, update)}


@pytest.mark.parametrize(
    ("own", "options", "message"),
    [
        ({}, SCHEDULE, "a schedule object and schedule='own' .* must be given together"),
        ({"schedule": mj.dams()}, {}, "given together; the configuration says 'dams'"),
        ({"schedule": mj.dams}, SCHEDULE, r"a schedule must be a mj.Schedule, .* got function"),
        ({"schedule": "dams"}, SCHEDULE, "a schedule must be a mj.Schedule, .* got str"),
        (schedule(update=lambda *_: 0.3), SCHEDULE, "return a mj.ScheduleState; got float"),
        (schedule(init=lambda: 0.3), SCHEDULE, "return a mj.ScheduleState; got float"),
        (schedule(update=lambda *_: state(best=1)), SCHEDULE, "the same names; got {'best': 1}"),
        (schedule(update=lambda before, _: before), SCHEDULE, "count epochs.* got 0 and then 0"),
        (schedule(lambda: state(-1, 0)), SCHEDULE, r"first margin .* at least 0; got -1\.0"),
        ({}, {"encoder": nn.Dense(4)}, r"as mj.Encoder\(module\) is; got Dense"),
        ({}, {"optimizer": "own"}, "an optimizer object and optimizer='own' in the"),
        ({"optimizer": optax.sgd(0.1)}, {}, "given together; the configuration says 'adam'"),
        ({"optimizer": "sgd"}, {"optimizer": "own"}, r"as optax.adamw\(1e-3\) is; got str"),
    ],
)
def test_what_training_cannot_use(tiny_fit, tmp_path, own, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_fit(tmp_path / "run", own=own, **options)
    assert not (tmp_path / "run").exists()


def test_examples_of_ones_own_are_not_taken_for_those_of_a_name(tmp_path):
    images, labels = np.zeros((8, 6, 6, 1), np.uint8), np.arange(8) // 2
    config = mj.TrainConfig(out=str(tmp_path / "run"), identities_per_batch=2)
    mine = mj.Dataset.from_arrays(images, labels)
    with pytest.raises(ValueError, match=r"need dataset='own' .* it says 'glyphs'"):
        mj.fit(config, dataset=mine)
    with pytest.raises(TypeError, match=r"as Dataset.from_arrays makes it; got tuple"):
        mj.fit(config.replace(dataset="own"), dataset=(images, labels))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [{"learning_rate": 0.1}, {"freeze": 1}])
def test_options_of_named_optimisers(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is for optimizers with a name; got it with one"):
        mj.TrainConfig(optimizer="own", encoder="efficientnet_lite0", **option)


def test_it_trains_where_numbers_are_watched(tiny_fit, tmp_path):
    with jax.debug_nans(True):
        run = tiny_fit(tmp_path, own={"schedule": mj.automargin()}, epochs=1, **SCHEDULE)
    assert len(run.history) == 1

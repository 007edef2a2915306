"""Which triplets train, by epoch: in one's own loop and in a run."""

import pytest

import margin_jax as mj
from margin_jax.runs import setting


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("all", "aaaaaa"),
        ("hard", "hhhhhh"),
        ("all,3:semihard,5:hard", "aasshh"),
        (" all , 2:hard ", "ahhhhh"),
        ({1: "semihard", 4: "all"}, "sssaaa"),
        ("1:all,6:semihard", "aaaaas"),
    ],
)
def test_the_kind_of_each_epoch(kinds, expected):
    mining = mj.mining_schedule(kinds)
    assert "".join(mining(epoch)[0] for epoch in range(1, 7)) == expected
    assert mining(1000)[0] == expected[-1]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("none", "mining must be one of all, semihard, hard, batch_hard; got 'none'"),
        ("all,5:superhard", "got 'superhard'"),
        ("all,hard", "from epoch 1 on, by increasing epochs; got 'all,hard'"),
        ("all,9:hard,5:semihard", "by increasing epochs"),
        ("3:hard", "from epoch 1 on"),
        ({2: "hard"}, "from epoch 1 on"),
        ({}, "from epoch 1 on"),
        ("all,x:hard", "kinds by first epoch like all,11:semihard; got 'all,x:hard'"),
        ("", "mining must be one of"),
    ],
)
def test_bad_kinds(kinds, message):
    with pytest.raises(ValueError, match=message):
        mj.mining_schedule(kinds)


def test_epochs_are_counted_from_1():
    with pytest.raises(ValueError, match="counted from 1; got 0"):
        mj.mining_schedule("all,11:semihard")(0)


def test_a_run_switches_and_compiles_each_kind_once(tiny_fit, tmp_path, monkeypatch):
    asked = []
    make = setting.optimizer_and_step

    def counted(*arguments):
        asked.append(arguments[-1])
        return make(*arguments)

    monkeypatch.setattr(setting, "optimizer_and_step", counted)
    make.cache_clear()
    options = {"epochs": 4, "learning_rate": 1e-7, "schedule": "linear"}
    switched = tiny_fit(tmp_path / "switched", mining="all,2:hard,3:all", **options)
    kinds = [loss.mining for loss in asked[1:]]
    assert kinds == ["all", "hard", "all", "all"]
    assert make.cache_info().currsize == 2
    steady = tiny_fit(tmp_path / "steady", **options)
    losses = [[record["loss"] for record in run.history] for run in (switched, steady)]
    assert losses[0][0] == losses[1][0]
    # Hard triplets alone have losses above the margin, by definition; the network hardly moves.
    assert losses[0][1] > switched.history[1]["margin"]
    assert losses[0][1] > losses[1][1]
    assert losses[0][2] == pytest.approx(losses[1][2], rel=1e-3)

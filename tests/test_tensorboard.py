"""Events for TensorBoard: every epoch once, whatever happened on the way."""

import builtins
import struct

import pytest
from PIL import Image

from margin_jax import cli
from margin_jax.runs.tensorboard import TensorBoard


def events(folder):
    """``{tag: [(step, value)]}`` of all files in a folder, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # a length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                what = value.simple_value if value.HasField("simple_value") else "picture"
                found.setdefault(value.tag, []).append((event.step, what))
    return found


@pytest.fixture
def written():
    pytest.importorskip("tensorboardX")


def test_every_epoch_is_there_once_though_the_run_was_killed(tiny_fit, tmp_path, written):
    out = tmp_path / "run"

    class Killed(BaseException):
        pass

    def and_die(log):
        def on_epoch(record):
            log.on_epoch(record)
            if record["epoch"] == 2:
                raise Killed

        return on_epoch

    with pytest.raises(Killed):
        tiny_fit(out, on_epoch=and_die(TensorBoard(out)))
    (events_before,) = (out / "tensorboard").iterdir()
    events_before.rename(out / "tensorboard" / "events.out.tfevents.1.here")  # of another second
    log = TensorBoard(out)
    run = tiny_fit(out, resume=True, on_epoch=log.on_epoch)
    for path in (out / "figures").iterdir():
        Image.new("RGB", (4, 4)).save(path)
    log.finish()
    found = events(out)
    for tag, name in (
        ("training/loss", "loss"),
        ("training/margin", "margin"),
        ("training/easy_fraction", "easy_fraction"),
        ("training/valid", "valid"),
        ("validation/auc", "validation_auc"),
        ("validation/loss", "validation_loss"),
    ):
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        expected = [record[name] for record in run.history]
        assert [value for _, value in found[tag]] == pytest.approx(expected, rel=1e-6)
    assert "training/epoch" not in found
    pictures = {tag for tag, values in found.items() if (0, "picture") in values}
    assert pictures == {path.stem for path in (out / "figures").iterdir()}
    assert "roc" in pictures


def test_overwrite_removes_events_of_the_run_before(tiny_fit, tmp_path, written):
    out = tmp_path / "run"
    log = TensorBoard(out)
    tiny_fit(out, epochs=1, on_epoch=log.on_epoch)
    assert (out / "tensorboard").is_dir()
    tiny_fit(out, epochs=1, overwrite=True)
    assert not (out / "tensorboard").exists()


def test_without_its_writer_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--tensorboard", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    told = "margin-jax: --tensorboard needs tensorboardX: pip install 'margin-jax[tensorboard]'\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "run").exists()

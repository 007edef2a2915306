"""How a process joins a job; jobs themselves are in test_sharding."""

import jax
import pytest

from margin_jax.devices import jobs

LAUNCHED = {
    "srun": {"SLURM_STEP_NUM_TASKS": "4"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2"},
    "TPU slice": {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
    "several TPU slices": {"MEGASCALE_NUM_SLICES": "2"},
}
ALONE = {
    "nothing": {},
    "a batch job's one step": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
    "one TPU host": {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": ""},
}


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    for name in {name for case in LAUNCHED.values() for name in case}:
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("environment", LAUNCHED.values(), ids=LAUNCHED)
def test_a_launcher_is_noticed(environment, joined, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    jobs.start()
    assert joined == [(None, None, None)]


@pytest.mark.parametrize("environment", ALONE.values(), ids=ALONE)
def test_a_process_alone_joins_nothing(environment, joined, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    jobs.start()
    assert joined == []


def test_what_is_asked_for(joined):
    jobs.start("host:1", 2, 1)
    jobs.start(detect=True)
    assert joined == [("host:1", 2, 1), (None, None, None)]


def test_what_no_job_can_be(monkeypatch):
    with pytest.raises(ValueError, match="coordinator must be HOST:PORT; got host"):
        jobs.start("host", 2, 0)

    def refuse(*given):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(ValueError, match=r"cannot join .*host:1.*processes must be defined"):
        jobs.start("host:1")


def test_alone_a_process_agrees_with_itself():
    assert jobs.is_first()
    assert jobs.agreed(lambda: 3) == 3
    assert jobs.from_first({"auc": 0.5}) == {"auc": 0.5}
    with pytest.raises(OSError, match="no such thing"):
        jobs.agreed(lambda: (_ for _ in ()).throw(OSError("no such thing")))


def test_a_process_that_has_not_joined_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="one of 4 processes, and has not joined"):
        jobs.check_joined()

import functools
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import jax
import pytest

# Before any computation: several tests place arrays on a mesh of virtual devices.
jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compiling, half of that into optimising machine code that runs once.
# What XLA makes of a program before that is the same. Processes that tests start inherit it.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Tracing makes many objects, nearly all of which stay: to look for garbage among them takes long.
gc.set_threshold(100_000, 50, 100)
# A shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take long: last, one process of the tests would wait for them. And one that collects
# garbage again and again, which takes the longer the more a process has done.
LONG = (
    *("test_reliability", "test_checkpoint", "test_notebooks", "test_fit", "test_meshes"),
    *("test_cli", "test_batch_all", "test_loops", "test_readme", "test_networks", "test_arms"),
    *("test_docs", "test_extend"),
)
KEPT = 300 * 2**20  # bytes of compiled programs, at most, for the next run of the tests


def pytest_configure(config):
    """What a test, or a process that it starts, has compiled once need not be compiled again.

    Every process of the tests has a folder of its own, with links to what earlier runs have left,
    and hands on what is new when it ends: JAX writes there without a lock, and nobody must read
    what another one is writing.
    """
    kept = config.cache.mkdir("jax")  # pytest --cache-clear removes it
    if not hasattr(config, "workerinput"):
        size = 0
        for file in sorted(kept.iterdir(), key=os.path.getmtime, reverse=True):
            size += file.stat().st_size
            if size > KEPT:
                file.unlink()
    mine = Path(tempfile.mkdtemp(prefix="margin-jax-"))
    for file in kept.glob("*-cache"):
        (mine / file.name).symlink_to(file.absolute())

    def hand_on():
        for file in mine.glob("*-cache"):
            if not file.is_symlink():
                part = kept / f"{file.name}.{mine.name}"
                shutil.copyfile(file, part)
                part.replace(kept / file.name)
        shutil.rmtree(mine)

    config.add_cleanup(hand_on)
    # A process that is started has the environment; in this one JAX has read it already.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(mine)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # it has many small programs
    jax.config.update("jax_compilation_cache_dir", str(mine))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def pytest_collection_modifyitems(items):
    """The long files come first, in that order."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    """What is loaded by now stays: nobody need look there for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program maps memory, and Linux allows a process 65,530 pieces of it.

    One process that runs all the tests, as on a machine of one core, would come to more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def glyphs_drawn_once():
    """Half a second each time; a test that writes on them fails."""
    from margin_jax.data import glyphs

    load = glyphs.load

    @functools.cache
    def drawn(*size):
        dataset = load(*size)
        dataset.examples.flags.writeable = False
        return dataset

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(glyphs, "load", drawn)
        yield


class _Undrawn:
    def savefig(self, path):
        path.touch()


def _without_pictures(patched):
    """Runs leave empty pictures, which take most of a second of a small one."""
    from margin_jax.runs import folder

    write = folder.write_report
    patched.setattr(
        folder,
        "write_report",
        lambda path, report, pictures: write(path, report, dict.fromkeys(pictures, _Undrawn())),
    )


@pytest.fixture(scope="module")
def no_pictures():
    """For files of tests that do not look at them; `test_training` does."""
    with pytest.MonkeyPatch.context() as patched:
        _without_pictures(patched)
        yield


@pytest.fixture(scope="session")
def tiny_encoder():
    """A network of one layer."""
    import jax.numpy as jnp
    from flax import linen as nn

    import margin_jax as mj

    class Linear(nn.Module):
        features: int = 8

        @nn.compact
        def __call__(self, images, *, train):
            x = nn.Dense(self.features)(images.reshape(len(images), -1))
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return mj.Encoder(Linear())


@pytest.fixture(scope="session")
def tiny_fit(tiny_encoder):
    """`fit` for tests of what goes on around the network: a second a run instead of ten."""
    import numpy as np

    import margin_jax as mj

    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (60, 1, 6, 6, 1))
    images = np.clip(faces + rng.normal(0, 60, (60, 6, 6, 6, 1)), 0, 255).astype(np.uint8)
    dataset = mj.Dataset.from_arrays(images.reshape(-1, 6, 6, 1), np.arange(360) // 6)

    def run(out, on_epoch=None, encoder=tiny_encoder, progress=False, own=None, **options):
        options = {"identities_per_batch": 8, "epochs": 3, **options}
        config = mj.TrainConfig(dataset="own", encoder="own", out=str(out), **options)
        with pytest.MonkeyPatch.context() as patched:
            _without_pictures(patched)
            return mj.fit(
                config,
                dataset=dataset,
                encoder=encoder,
                on_epoch=on_epoch,
                progress=progress,
                **(own or {}),
            )

    return run

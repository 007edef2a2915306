"""What the histogram of effective margins adds to a training step.

    python experiments/benchmarks/histogram.py

Steps of the default run (glyphs, small encoder, P = 32, K = 2) with and without the histogram take
turns; printed are the medians and the ratio, taken round by round.

Result on two CPU cores, jax 0.10.2: a step 86.0 ms, with the histogram 86.3 ms, ratio 1.012.
"""

import statistics
import time

import jax
import numpy as np
import optax

import margin_jax as mj
from margin_jax.data import load_dataset
from margin_jax.data.sampler import pk_batches
from margin_jax.models.make import make_encoder

ROUNDS, STEPS = 40, 5


def main():
    glyphs = load_dataset("glyphs", None, None, strict=True)
    rows = pk_batches(glyphs.labels, 32, 2, seed=0, epoch=0)[0][0]
    batch = jax.device_put((glyphs.examples[rows], glyphs.labels[rows]))
    encoder, optimizer, schedule = make_encoder("small_cnn", 128), optax.adam(1e-3), mj.dams()
    params, batch_stats = encoder.init(jax.random.key(0), glyphs.examples.shape[1:])
    start = mj.create_state(params, batch_stats, optimizer, schedule, jax.random.key(1))
    steps = {
        kept: mj.make_train_step(encoder.apply, optimizer, histogram=kept) for kept in (False, True)
    }

    def seconds(train_step):
        state, started = start, time.perf_counter()
        for _ in range(STEPS):
            state, output = train_step(state, *batch)
        jax.block_until_ready((state, output))
        return (time.perf_counter() - started) / STEPS

    for train_step in steps.values():
        seconds(train_step)  # compiles
    times = np.array([[seconds(steps[kept]) for kept in (False, True)] for _ in range(ROUNDS)])
    without, kept = (1e3 * statistics.median(column) for column in times.T)
    ratio = statistics.median(times[:, 1] / times[:, 0])
    print(f"a step: {without:.2f} ms; with the histogram: {kept:.2f} ms; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()

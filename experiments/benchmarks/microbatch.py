r"""Memory and time of a training step of EfficientNet-B0, by batch and by microbatch.

    python experiments/benchmarks/microbatch.py
    python experiments/benchmarks/microbatch.py --pixels 224 --batches 1024 \
        --microbatches 32 --steps 1
    python experiments/benchmarks/microbatch.py --pixels 224 --batches 1024 \
        --microbatches 8 128 1024 --compile-only

A step is that of `make_train_step`: forward, loss, backward and Adam, in float32, with an embedding
of 128 and 4 images an identity. Every row is a process of its own. *analysis*: what the compiler
sets aside for what comes and goes in a step (``memory_analysis().temp_size_in_bytes``). *peak*: the
most that the process ever held, with Python, JAX, images, weights and what compiling took; *before*
of it was the most before the first step. *seconds*: median of `--steps` steps after one that is not
counted, but of one step that one; *of CPU*: what all cores together worked for it, which other
work on the machine changes less.

Result on two CPU cores, jax 0.12.0.1, 23 GiB of memory, while other work ran on the machine; GiB:

====== ===== ========== ======== ===== ====== ======= ======
pixels batch microbatch analysis  peak before seconds of CPU
====== ===== ========== ======== ===== ====== ======= ======
    96   128          8     0.17  1.98   1.67     3.1    3.0
    96   128         32     0.72  2.55   1.59     3.4    3.3
    96   128        128     2.90  4.76   1.39     4.4    4.7
   224 1,024          8     1.07
   224 1,024         32     3.90  6.20   1.96   200.2  169.5
   224 1,024        128    15.19
   224 1,024      1,024   120.46
====== ===== ========== ======== ===== ====== ======= ======

A microbatch of the batch is the step without. So 1,024 images of 224 pixels, which at once would
need 120 GiB, take 6.2 GiB in all. At 96 pixels the step by parts was the faster one, although it
embeds twice. Not measured on a GPU.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import optax

import margin_jax as mj
from margin_jax.models.make import make_encoder

DIM = 128
GIB = 2**30


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def row(batch, pixels, microbatch, steps):
    encoder, optimizer = make_encoder("efficientnet_b0", DIM), optax.adam(1e-3)

    def start():
        key, shape = jax.random.key(0), (pixels, pixels, 3)
        return mj.create_state(*encoder.init(key, shape), optimizer, mj.constant(0.2), key)

    train_step = mj.make_train_step(encoder.apply, optimizer, microbatch=microbatch)
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), np.uint8)
    labels = jax.ShapeDtypeStruct((batch,), np.int32)
    compiled = train_step.lower(jax.eval_shape(start), images, labels).compile()
    analysis = compiled.memory_analysis().temp_size_in_bytes / GIB
    line = f"{pixels:6} {batch:5} {microbatch:10} {analysis:8.2f}"
    if steps:
        rng, state = np.random.default_rng(0), jax.jit(start)()
        images = jax.device_put(rng.integers(0, 256, images.shape, np.uint8))
        labels = jax.device_put(np.arange(batch, dtype=np.int32) // 4)
        before, took = peak(), []
        for _ in range(1 if steps == 1 else steps + 1):
            started = time.perf_counter(), time.process_time()
            state, output = compiled(state, images, labels)
            jax.block_until_ready((state, output))
            took.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        assert np.isfinite(output.loss)
        wall, cpu = map(statistics.median, zip(*took[steps > 1 :], strict=True))
        line += f" {peak():6.2f} {before:6.2f} {wall:8.1f} {cpu:7.1f}"
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--microbatches", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--row", nargs=2, type=int, help="of a process of its own")
    arguments = parser.parse_args()
    steps = 0 if arguments.compile_only else arguments.steps
    if arguments.row:
        batch, microbatch = arguments.row
        row(batch, arguments.pixels, microbatch, steps)
        return
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; GiB")
    print("pixels batch microbatch analysis" + ("   peak before  seconds  of CPU" if steps else ""))
    for batch in arguments.batches:
        for microbatch in arguments.microbatches:
            own = [sys.executable, *sys.argv, "--row", str(batch), str(microbatch)]
            subprocess.run(own, check=True)


if __name__ == "__main__":
    main()

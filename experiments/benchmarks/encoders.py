"""What a training step of each encoder costs, beside the same network in PyTorch.

    python experiments/benchmarks/encoders.py
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python experiments/benchmarks/encoders.py

A step is forward and backward of an encoder with an embedding of 128, in float32, training
BatchNorm, from a fixed random cotangent; no loss and no optimiser. Where torch and timm are
installed (``pip install torch==2.13.0`` and ``pip install --no-deps torchvision timm``), timm's
network of the same name takes turns with ours on as many threads, in both orders of axes
(channels_last is the faster); its head is one linear layer. Printed are medians, and medians of
ratios taken round by round.

On a GPU the batch is 1,024 and PyTorch is left out; instead, the triplet loss takes turns with the
cotangent: what it adds to a step.

The second command lets Linux keep large arrays in large pages. JAX asks for the memory of a step
anew each time, and the kernel hands it out cleared, page by page: a million of them for a batch of
32 at 224 pixels.

Result on two CPU cores, jax 0.10.2, torch 2.14.1, first command, while other work ran on the
machine; milliseconds a step, in brackets PyTorch's time over ours (above 1: we are faster):

=================== ====== ======= ======= ============ =============
encoder             pixels   batch    ours      PyTorch channels_last
=================== ====== ======= ======= ============ =============
efficientnet_b0         96       8     236   308 (1.29)    248 (1.04)
efficientnet_b0         96      32   1,259 1,033 (0.82)    662 (0.53)
efficientnet_b0        224       8   1,726 1,187 (0.68)    823 (0.47)
efficientnet_b0        224      32  10,090 7,287 (0.74)  4,482 (0.39)
mobilenet_v3_small      96       8      58   132 (2.31)    108 (1.87)
mobilenet_v3_small      96      32     192   304 (1.55)    212 (1.08)
mobilenet_v3_small     224       8     224   275 (1.26)    208 (0.91)
mobilenet_v3_small     224      32   1,182 1,031 (0.87)    727 (0.63)
small_cnn               96   8, 32     206,  779
small_cnn              224   8, 32   1,251, 7,532
nn2                     96   8, 32     351,  954
nn2                    224       8   1,147
=================== ====== ======= ======= ============ =============

So parity, the aim, is reached by MobileNetV3-Small up to about 32 small images, and missed by
EfficientNet-B0 on larger ones: its step takes up to 2.6 times PyTorch's. With XLA's own grouped
convolution it had taken 7 to 8 seconds at 224 pixels and batch 8. No GPU was to be had.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import margin_jax as mj
from margin_jax.models import ENCODERS
from margin_jax.models.make import make_encoder

DIM = 128
TIMM = {"efficientnet_b0": "efficientnet_b0", "mobilenet_v3_small": "mobilenetv3_small_100"}
ON_CPU = jax.default_backend() == "cpu"


def arrays(batch, pixels):
    """Images, and the cotangent of their embeddings."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, pixels, pixels, 3), np.uint8)
    return images, rng.normal(size=(batch, DIM)).astype(np.float32)


def ours(name, images, to_embeddings, with_loss=False):
    """A step; with the loss, in place of the cotangent, that of 4 images an identity."""
    encoder = make_encoder(name, DIM)
    params, batch_stats = encoder.init(jax.random.key(0), images.shape[1:])
    labels = jnp.arange(len(images)) // 4

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params, batch_stats, images, to_embeddings, key):
        x, batch_stats = encoder.apply(params, batch_stats, images, train=True, key=key)
        if with_loss:
            return mj.batch_all_triplet_loss(x, labels, jnp.float32(0.2))[0], batch_stats
        return jnp.sum(x * to_embeddings), batch_stats

    arguments = params, batch_stats, jnp.asarray(images), jnp.asarray(to_embeddings)
    return lambda: jax.block_until_ready(step(*arguments, jax.random.key(1)))


def theirs(name, images, to_embeddings, channels_last):
    """The same in PyTorch, or None if it is not there."""
    # Idle threads of one library that spin would slow the other down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import timm
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count())
    order = torch.channels_last if channels_last else torch.contiguous_format
    network = timm.create_model(TIMM[name], num_classes=DIM).train().to(memory_format=order)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=order)
    cotangent = torch.tensor(to_embeddings)

    def step():
        network.zero_grad()
        x = network((pixels.float() / 255 - 0.5) / 0.25)
        torch.nn.functional.normalize(x).backward(cotangent)

    return step


def measure(steps, budget):
    """Name → seconds of every round; the steps take turns."""
    for step in steps.values():
        step()  # compiles
    times = {name: [] for name in steps}
    started = time.perf_counter()
    while len(times[next(iter(times))]) < 3 or time.perf_counter() - started < budget:
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32] if ON_CPU else [1024])
    parser.add_argument("--pixels", nargs="+", type=int, default=[96, 224] if ON_CPU else [96])
    parser.add_argument("--seconds", type=float, default=10, help="of measuring, a row")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    for name in arguments.encoders:
        for pixels in arguments.pixels:
            for batch in arguments.batches:
                data = arrays(batch, pixels)
                steps = {"ours": ours(name, *data)}
                if not ON_CPU:
                    steps["with the loss"] = ours(name, *data, with_loss=True)
                elif name in TIMM:
                    steps["torch"] = theirs(name, *data, channels_last=False)
                    steps["channels_last"] = theirs(name, *data, channels_last=True)
                steps = {key: step for key, step in steps.items() if step}
                times = measure(steps, arguments.seconds)
                line = f"{name:18} {pixels:3} px, batch {batch:4}:"
                for key, values in times.items():
                    ratio = statistics.median(np.divide(values, times["ours"]))
                    line += f" {key} {1e3 * statistics.median(values):.0f} ms ({ratio:.2f})"
                print(line, flush=True)


if __name__ == "__main__":
    main()

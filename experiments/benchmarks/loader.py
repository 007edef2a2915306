"""How fast image files become batches, and how long a training waits for them.

    python experiments/benchmarks/loader.py --data-dir ~/lfw --sizes 96 224

For each size, images a second of a plain Pillow loop in one thread, of a folder read into memory,
and of batches of 64 that are decoded when they are due; these take turns, printed are the medians
and the ratios to the loop, taken round by round. Then the small encoder is trained for two epochs
on 96 x 96 pixels, with the images in memory and decoded for every batch; printed is each epoch's
share of time in which the training waited for its batches, the record's `data_wait`.

Result on two CPU cores, Pillow 13, LFW as JPEG of 96 x 96, while other work ran on the machine:

======= ============ ============= =============
pixels  Pillow loop  in memory     batches
======= ============ ============= =============
96      6,993        4,858 (0.72)  4,202 (0.61)
64      4,134        3,598 (0.89)  3,562 (0.89)
======= ============ ============= =============

So threads do not help with thumbnails, whose decoding is mostly Python under one lock. The training
waits little all the same, for a step of 64 images takes more than a second: shares of the epochs of
`margin-jax train --dataset folder --data-dir LFW --image-size 96` were 0.7 and 0.3 % in memory and
0.3 % decoded for every batch (the aim was 5 %).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import margin_jax as mj
from margin_jax.data.folder import find_files, read_images
from margin_jax.data.loader import load_batches
from margin_jax.devices.meshes import make_mesh

ROUNDS, IMAGES, BATCH = 5, 2048, 64


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[96])
    options = parser.parse_args()
    for size in options.sizes:
        measure_reading(find_files(options.data_dir)[0], size)
    for memory_limit in (4.0, 0.0):
        measure_training(options.data_dir, memory_limit)


def measure_reading(paths, size):
    paths = np.random.default_rng(0).permutation(paths)[:IMAGES].tolist()
    streamed, paths, *_ = read_images(paths, size, channels=3, memory_limit=0)
    plan = np.arange(len(paths) // BATCH * BATCH).reshape(-1, BATCH)
    labels, mesh = np.zeros(len(paths), np.int32), make_mesh(1, BATCH)

    def loop():
        for path in paths:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
                np.asarray(small)
        return len(paths)

    def held():
        return len(read_images(paths, size, channels=3)[0])

    def batches():
        return sum(len(images) for images, _ in load_batches(streamed, labels, plan, mesh))

    def rate(read):
        started = time.perf_counter()
        return read() / (time.perf_counter() - started)

    rates = np.array([[rate(read) for read in (loop, held, batches)] for _ in range(ROUNDS)])
    for name, own in zip(("Pillow loop", "held", "streamed"), rates.T, strict=True):
        ratio = statistics.median(own / rates[:, 0])
        print(f"{size:4} px  {name:12} {statistics.median(own):6.0f} images/s  ratio {ratio:.2f}")


def measure_training(data_dir, memory_limit):
    with tempfile.TemporaryDirectory() as out:
        run = mj.fit(
            mj.TrainConfig(
                dataset="folder",
                data_dir=str(data_dir),
                image_size=96,
                memory_limit=memory_limit,
                epochs=2,
                identities_per_batch=BATCH // 2,
                out=out,
            )
        )
    for record in run.history:
        print(
            f"{'held' if memory_limit else 'streamed':8} epoch {record['epoch']}: waited "
            f"{record['data_wait']:.2%}, {record['images_per_second']:.0f} images/s"
        )


if __name__ == "__main__":
    main()

"""Features a second of a trunk, beside the same network with the same weights in PyTorch.

    python experiments/benchmarks/features.py
    python experiments/benchmarks/features.py --encoders efficientnet_lite0 --pixels 96 224

Ours are computed as `extract_features` does it, from pictures of uint8 to float32 features; timm's
(``pip install torch==2.13.0`` and ``pip install --no-deps torchvision timm``) from the same
pictures on as many threads, in inference mode and evaluation, in both orders of axes. They take
turns. The weights are timm's, drawn; features that are not the same are an error. Printed are
medians, and the median of the ratios round by round to the faster one of PyTorch's (above 1: we are
faster), also of CPU time, which other work on the machine changes less.

Result on two CPU cores, jax 0.12.0, torch 2.13.0, 128 pixels, batch 64; the first line with nothing
else to do, the others with much other work:

=================== ======= ===== ============= ===== =============
encoder             ours /s torch channels_last ratio of CPU time
=================== ======= ===== ============= ===== =============
efficientnet_lite0      296   103           172  1.75          1.61
vit_tiny                 38    43            46  0.82          0.97
resnet50                 13     9            13  0.97          1.00
=================== ======= ===== ============= ===== =============
"""

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin would slow us down

import jax
import numpy as np
import timm
import torch

from margin_jax.devices.meshes import local_mesh, place_copies
from margin_jax.evaluation.embedding import embed_batch
from margin_jax.models import PRETRAINED
from margin_jax.models.encoder import Encoder
from margin_jax.models.make import make_module
from margin_jax.models.pretrained import convert


def networks(name, batch):
    """Name → function of pictures, uint8[batch, pixels, pixels, 3], that returns features."""
    torch.manual_seed(0)
    weights = PRETRAINED[name]
    architecture = weights.repo.split("/")[1].split(".")[0]
    options = {"num_classes": 0}
    if architecture.startswith("vit"):  # of any size, as ours
        options |= {"dynamic_img_size": True, "dynamic_img_pad": True}
    model = timm.create_model(architecture, **options).eval()
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    params, trunk_stats = convert(name, tensors)
    encoder, mesh = Encoder(make_module(name, 1).trunk, colour=True), local_mesh()
    stats = {
        "module": trunk_stats,
        "mean": np.float32(weights.mean),
        "std": np.float32(weights.std),
    }
    variables = place_copies((params, stats), mesh)

    def ours(pictures):
        return embed_batch(encoder.apply, *variables, pictures, mesh=mesh, size=batch)

    mean, std = (torch.tensor(values)[:, None, None] for values in (weights.mean, weights.std))

    def theirs(order):
        network = timm.create_model(architecture, **options).eval()
        network.load_state_dict(model.state_dict())
        network = network.to(memory_format=order)

        def features(pictures):
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(memory_format=order)
            with torch.inference_mode():
                return network((x / 255 - mean) / std).numpy()

        return features

    return {
        "ours": ours,
        "torch": theirs(torch.contiguous_format),
        "channels_last": theirs(torch.channels_last),
    }


def clocks():
    """Seconds of the wall, and of this process on all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = list(PRETRAINED)
    parser.add_argument("--encoders", nargs="+", choices=known, default=["efficientnet_lite0"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[128])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}", end="")
    print(f", timm {timm.__version__}, batch {arguments.batch}")
    for name in arguments.encoders:
        compute = networks(name, arguments.batch)
        for pixels in arguments.pixels:
            shape = (arguments.batch, pixels, pixels, 3)
            pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            found = {key: function(pictures) for key, function in compute.items()}  # compiles
            apart = np.abs(found["ours"] - found["torch"]).max() / np.abs(found["torch"]).max()
            if not apart < 1e-4:
                raise SystemExit(f"{name}: features are not the same, {apart:.1e} apart")
            times = {key: [] for key in compute}
            for _ in range(arguments.rounds):
                for key, function in compute.items():
                    begun = clocks()
                    function(pictures)
                    times[key].append(clocks() - begun)
            rates = {key: arguments.batch / np.median(t, axis=0)[0] for key, t in times.items()}
            best = max(("torch", "channels_last"), key=rates.get)
            ratio, of_cpu = np.median(np.divide(times[best], times["ours"]), axis=0)
            told = ", ".join(f"{key} {rate:.0f}" for key, rate in rates.items())
            print(f"{name}, {pixels} px: {told} a second;", end=" ")
            print(f"ratio to {best} {ratio:.2f}, of CPU time {of_cpu:.2f}", flush=True)


if __name__ == "__main__":
    main()

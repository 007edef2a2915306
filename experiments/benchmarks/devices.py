"""What each of 1 to 8, or 64, devices holds, computes and sends, by the compiler's own analysis.

    python experiments/benchmarks/devices.py

Programs are compiled for virtual CPU devices and never run: the whole train step (forward,
backward, loss, Adam), with images sharded and the rest replicated, as training places them; and
the loss with its gradient alone. Embeddings of 128, classes of K = 4, float32.

Memory is ``memory_analysis()`` of one device, in MiB: what the program is given, returns and needs
meanwhile. Flops are ``cost_analysis()`` of one device, which counts the body of a loop once, so:

- the loop over positives, which runs K times, is written K times one after another for the count;
- the scan over blocks of anchors runs ceil(rows of a device / block) times, and nearly all of the
  loss is inside it: the loss's count is multiplied by that. With one block this is exact; with
  more, too much by the little that is outside. It is checked against the formulas: 6 D of matrix
  products and about 8 K + 16 more for each pair, of which it may exceed the sum by 15 %;
- a step is its own count, plus what the loops add to the loss of its size compiled alone;
- the loops of binary search and of random bits stay counted once: millions, not billions.

Bytes of a collective are those of its whole buffer: all that is gathered, reduced or scattered. In
a ring of n devices, each sends (n - 1) / n of them, and twice that for an all-reduce. A collective
outside the program's entry might be in a loop; there is none.

Two CPU cores, jax 0.10.2, five minutes; the result, and what follows from it for a slice of 64
chips, are in ``experiments/results/devices.md``. Work is shared: flops are 1/n within 2 %,
temporaries of a step 1/n within 2 %, nothing as large as a feature map is gathered, no loop has a
collective.
"""

import collections
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.devices.meshes import AXIS, make_mesh, replicated
from margin_jax.losses import blocks, tile
from margin_jax.models.make import make_encoder

DIM, K = 128, 4
FEW, SLICE = (1, 2, 4, 8), (64,)
STEPS = [
    ("small_cnn", (28, 28, 1), 1024, FEW),
    ("efficientnet_b0", (96, 96, 3), 256, FEW),
    ("small_cnn", (64, 64, 3), 32768, SLICE),
    ("efficientnet_b0", (224, 224, 3), 32768, SLICE),
]
LOSSES = [(1024, FEW), (8192, FEW), (32768, SLICE)]
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def arrays(mesh, sharded, shape, dtype):
    sharding = NamedSharding(mesh, P(AXIS)) if sharded else replicated(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compile_step(name, image, batch, devices):
    mesh, encoder, optimizer = make_mesh(devices, batch), make_encoder(name, DIM), optax.adam(1e-3)

    def init(key):
        return mj.create_state(*encoder.init(key, image), optimizer, mj.constant(0.2), key)

    state = jax.eval_shape(init, jax.random.key(0))
    step = mj.make_train_step(encoder.apply, optimizer, mesh=mesh)
    lowered = step.lower(
        jax.tree.map(lambda v: arrays(mesh, False, v.shape, v.dtype), state),
        arrays(mesh, True, (batch, *image), jnp.uint8),
        arrays(mesh, False, (batch,), jnp.int32),
    )
    return lowered.compile()


def compile_loss(rows, devices):
    mesh, loss = make_mesh(devices, rows), mj.batch_all_triplet_loss
    if devices > 1:
        loss = jax.shard_map(
            functools.partial(loss, axis_name=AXIS),
            mesh=mesh,
            in_specs=(P(AXIS), P(AXIS), P()),
            out_specs=(P(), P(AXIS)),
        )
    # A function of its own each time, or JAX would remember what it traced.
    differentiate = jax.jit(jax.value_and_grad(lambda *given: loss(*given), has_aux=True))
    lowered = differentiate.lower(
        arrays(mesh, True, (rows, DIM), jnp.float32),
        arrays(mesh, False, (rows,), jnp.int32),
        arrays(mesh, False, (), jnp.float32),
    )
    return lowered.compile()


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def loops_of_loss(rows, devices):
    """Flops of one device that the trips after the first of the loss's two loops add."""
    for_each = tile._for_each_positive

    def k_times(largest, add, start):
        for _ in range(K):
            start = for_each(largest, add, start)
        return start

    with mock.patch.object(tile, "_for_each_positive", k_times):
        counted = flops(compile_loss(rows, devices))
    own = rows // devices
    counted *= math.ceil(own / blocks.block_size(own, rows, 1))
    assert 1 < counted / (own * rows * (6 * DIM + 8 * K + 16)) < 1.15, counted
    return counted - flops(compile_loss(rows, devices))


def collectives(compiled, devices):
    """Operation → bytes of the buffer of each; and how many are outside the program's entry."""
    found = collections.defaultdict(list)
    others, entry = compiled.as_text().split("\nENTRY ")
    for match in COLLECTIVE.finditer(entry):
        parts = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        size = sum(SIZES[t] * math.prod(int(n) for n in ns.split(",") if n) for t, ns in parts)
        # What a reduce-scatter returns is a device's share of its buffer.
        found[match[2]].append(size * devices if match[2] == "reduce-scatter" else size)
    return found, len(COLLECTIVE.findall(others))


def table_row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def table_head(*cells):
    table_row(*cells)
    table_row(*["---"] * len(cells))


def report(what, many, compile_for, count_loops):
    """A row for each number of devices; returns the collectives' rows of the last."""
    alone = None
    for devices in many:
        compiled = compile_for(devices)
        memory, count = compiled.memory_analysis(), flops(compiled) + count_loops(devices)
        held = memory.argument_size_in_bytes, memory.output_size_in_bytes
        temporary = memory.temp_size_in_bytes
        alone = (temporary, count) if devices == 1 else alone
        shares = [f"{temporary / alone[0]:.3f}", f"{count / alone[1]:.3f}"] if alone else "––"
        mib = [f"{size / 2**20:,.2f}" for size in (*held, temporary)]
        table_row(what, f"{devices}", *mib, shares[0], f"{count / 1e9:,.3f}", shares[1])
    found, outside = collectives(compiled, devices)
    rows = []
    for operation, sizes in found.items():
        sent = sum(sizes) * (devices - 1) / devices * (2 if operation == "all-reduce" else 1)
        kib = [f"{size / 1024:,.1f}" for size in (sum(sizes), max(sizes), sent)]
        rows.append((what, f"{devices}", operation, f"{len(sizes)}", *kib, f"{outside}"))
    return rows


def main():
    jax.config.update("jax_num_cpu_devices", max(SLICE))
    table_head(
        *("program", "devices", "arguments", "outputs", "temporaries", "of one's"),
        *("Gflop", "of one's"),
    )
    rows = []
    for name, image, batch, many in STEPS:
        rows += report(
            f"{name}, {image[0]} px, batch {batch:,}",
            many,
            functools.partial(compile_step, name, image, batch),
            functools.partial(loops_of_loss, batch),
        )
    for batch, many in LOSSES:
        rows += report(
            f"loss alone, {batch:,} × {DIM}",
            many,
            functools.partial(compile_loss, batch),
            functools.partial(loops_of_loss, batch),
        )
    print()
    table_head(
        *("program", "devices", "operation", "how many", "KiB", "largest", "a device sends"),
        "outside the entry",
    )
    for row in rows:
        table_row(*row)


if __name__ == "__main__":
    main()

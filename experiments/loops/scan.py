"""A whole training as one compiled program, the schedule inside `lax.scan` over the epochs."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import margin_jax as mj

images, labels = map(jnp.asarray, load_digits(return_X_y=True))
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(16)])
optimizer, schedule = optax.adam(1e-3), mj.dams(margin=0.1, threshold=0.9)


def train_epoch(carry, key):
    params, opt_state, margin = carry

    def train_step(carry, rows):
        def loss_fn(params):
            x = model.apply(params, images[rows])
            x /= jnp.linalg.norm(x, axis=-1, keepdims=True)
            return mj.batch_all_triplet_loss(x, labels[rows], margin.margin)

        params, opt_state = carry
        gradient, stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), stats

    batches = jax.random.permutation(key, len(images))[:1792].reshape(-1, 128)
    (params, opt_state), stats = jax.lax.scan(train_step, (params, opt_state), batches)
    told = mj.EpochStats.of(stats)
    return (params, opt_state, schedule.update(margin, told)), (margin.margin, told.easy_fraction)


params = model.init(jax.random.key(0), images[:1])
start = params, optimizer.init(params), schedule.init()
keys = jnp.stack([jax.random.key(epoch) for epoch in range(10)])
_, told = jax.jit(lambda start: jax.lax.scan(train_epoch, start, keys))(start)
for epoch, (margin, easy) in enumerate(zip(*told, strict=True)):
    print(f"{epoch} margin {margin:.2f} easy {easy:.1%}")

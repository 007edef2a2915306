"""A Flax Linen loop of one's own: `python experiments/loops/linen.py`, some seconds on a CPU."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import margin_jax as mj

images, labels = load_digits(return_X_y=True)  # handwritten digits that come with scikit-learn
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(16)])
optimizer, schedule = optax.adam(1e-3), mj.dams(margin=0.1, threshold=0.9)


@jax.jit
def train_step(params, opt_state, margin, images, labels):
    def loss_fn(params):
        x = model.apply(params, images)
        x /= jnp.linalg.norm(x, axis=-1, keepdims=True)
        return mj.batch_all_triplet_loss(x, labels, margin)

    (_, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, stats


params = model.init(jax.random.key(0), images[:1])
opt_state, margin = optimizer.init(params), schedule.init()
for epoch in range(10):
    totals = mj.EpochTotals()
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    for rows in order[:1792].reshape(-1, 128):
        step = train_step(params, opt_state, margin.margin, images[rows], labels[rows])
        params, opt_state, stats = step
        totals = totals.add(stats)
    print(f"{epoch} margin {margin.margin:.2f} easy {totals.stats().easy_fraction:.1%}")
    margin = schedule.update(margin, totals.stats())

"""A Flax NNX loop of one's own: `python experiments/loops/nnx.py`, some seconds on a CPU."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import margin_jax as mj

images, labels = load_digits(return_X_y=True)  # handwritten digits that come with scikit-learn
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 16, rngs=rngs))
optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
schedule = mj.target_easy_fraction(margin=0.1, target=0.9)


@nnx.jit
def train_step(model, optimizer, margin, images, labels):
    def loss_fn(model):
        x = model(images)
        x /= jnp.linalg.norm(x, axis=-1, keepdims=True)
        return mj.batch_all_triplet_loss(x, labels, margin)

    (_, stats), gradient = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, gradient)
    return stats


margin = schedule.init()
for epoch in range(10):
    totals = mj.EpochTotals()
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    for rows in order[:1792].reshape(-1, 128):
        stats = train_step(model, optimizer, margin.margin, images[rows], labels[rows])
        totals = totals.add(stats)
    print(f"{epoch} margin {margin.margin:.2f} easy {totals.stats().easy_fraction:.1%}")
    margin = schedule.update(margin, totals.stats())

"""A pass in micro-batches: the whole batch's representations, the activations of a few examples at a time.

The losses still see the global batch, which makes this gradient caching (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup"): the backward pass computes each micro-batch's forward again.
Averaging the losses of micro-batches, as `optax.MultiSteps` does, is another objective with fewer negatives.
"""

import jax
import jax.numpy as jnp

from smke_jax.parallel.mesh import sharded, sharded_chunks
from smke_jax.passes.base import Pass


def in_micro_batches(p: Pass, mesh, size: int) -> Pass:
    """`p` on at most `size` examples of each device at a time; 0 is all of them.  Dropout differs by micro-batch."""
    if not size:
        return p
    devices = mesh.size

    def run(params, arrays, key, train):
        per_device = len(next(iter(arrays.values()))) // devices
        if per_device <= size:
            return p.run(params, arrays, key, train)
        count = per_device // size

        def cut(x):  # rows of each device are cut among themselves, so that nothing moves between devices
            x = x.reshape(devices, count, size, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(
                x.reshape(count, devices * size, *x.shape[3:]), sharded_chunks(mesh)
            )

        def join(x):
            rows = x.reshape(count, devices, size, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])
            return jax.lax.with_sharding_constraint(rows, sharded(mesh))

        @jax.checkpoint
        def chunk(inputs):
            i, rows = inputs
            return p.run(params, rows, jax.random.fold_in(key, i), train)

        chunks = jax.tree.map(cut, dict(arrays))
        return jax.tree.map(join, jax.lax.map(chunk, (jnp.arange(count), chunks)))

    return p._replace(run=run)

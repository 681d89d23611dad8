"""A pass over captions in up to three parts, each as wide as its longest caption: little is computed for padding.

Most captions are far shorter than `max_length`: those of COCO have some 14 tokens, of 64.  The rows of every device are
sorted by their number of tokens, and the shorter ones run without most of their padding.  A compiled step has fixed
shapes, so that the parts are chosen beforehand, of a sample of the data.  In a batch that does not fit into them, which
is very rare, all rows run at their full width: representations and gradients are the same, but for rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.parallel.mesh import sharded
from smke_jax.passes.base import Pass

TEXT = ("text", "text_mask")
FEWEST = 64  # rows of a device: of fewer the parts are too small to keep it busy
SURE = 4.0  # standard deviations between what a part has room for and what it will get
WORTH = 0.9  # of the tokens with padding: above that a second part costs more than it saves


def parts_of(lengths: np.ndarray, rows: int, width: int) -> tuple[tuple[int, int], ...]:
    """((rows, width), …) of the parts, the narrowest first: as many `rows` in all, and the last as wide as `width`.

    lengths: (n,) of captions of the data set, in tokens
    A part is no wider than nearly every batch of such captions allows, by `SURE`.  Widths are even.
    """
    whole = ((rows, width),)
    if rows < FEWEST or not len(lengths):
        return whole
    widths = np.arange(2, width, 2)
    share = (np.searchsorted(np.sort(lengths), widths, side="right") + 0.5) / (len(lengths) + 1)
    spread = np.sqrt(share * (1 - share) * (1 / rows + 1 / len(lengths)))
    fit = np.clip(np.floor(rows * (share - SURE * spread)), 0, rows).astype(int)  # rows that are no longer than that
    best, cost = whole, WORTH * rows * width
    for i, narrow in enumerate(widths):
        tokens = fit[i] * narrow + np.maximum(fit - fit[i], 0) * widths + (rows - np.maximum(fit, fit[i])) * width
        tokens[:i] = rows * width
        j = int(np.argmin(tokens))
        if tokens[j] < cost:
            cost = tokens[j]
            counts = (fit[i], fit[j] - fit[i], rows - fit[j])
            best = tuple(
                (int(n), int(w)) for n, w in zip(counts, (narrow, widths[j], width), strict=True) if n
            )  # fmt: skip
    return best


def by_length(p: Pass, mesh, lengths: np.ndarray) -> Pass:
    """`p` in the parts that suit captions of these `lengths`; `p` itself where it is no pass over captions alone.

    Nor is a pass cut that makes something of every token.  Dropout differs by part.
    """
    if set(p.needs) != set(TEXT) or not len(lengths):
        return p

    def run(params, arrays, key, train):
        ids, mask = (arrays[name] for name in TEXT)
        parts = parts_of(lengths, len(ids) // mesh.size, ids.shape[1])

        def whole(params, ids, mask, key):
            return p.run(params, dict(zip(TEXT, (ids, mask), strict=True)), key, train)

        given = (params, ids, mask, key)
        if len(parts) == 1 or not _of_rows(whole, *given):
            return whole(*given)
        return _one_or_all(partial(_in_parts, whole, mesh, parts), whole, partial(_fits, mesh, parts))(*given)

    return p._replace(run=run)


def _of_rows(whole, params, ids, mask, key) -> bool:
    """Whether what `whole` makes has the same shape for captions that are cut."""
    full, cut = (jax.eval_shape(whole, params, ids[:, :w], mask[:, :w], key) for w in (ids.shape[1], ids.shape[1] - 2))
    return jax.tree.map(lambda x: x.shape, full) == jax.tree.map(lambda x: x.shape, cut)


def _by_device(mask: jax.Array, devices: int) -> jax.Array:
    """The numbers of tokens (devices, rows of each)."""
    return mask.sum(1).reshape(devices, -1)


def _fits(mesh, parts, mask) -> jax.Array:
    """Whether on every device every part is as wide as its captions are long."""
    lengths = jnp.sort(_by_device(mask, mesh.size), axis=1)
    ends = np.cumsum([rows for rows, _ in parts]) - 1
    return jnp.all(lengths[:, ends] <= np.array([width for _, width in parts]))


def _in_parts(whole, mesh, parts, params, ids, mask, key):
    """What `whole` makes of all rows; those of each device are sorted among themselves, so that nothing moves."""
    devices = mesh.size
    order = jnp.argsort(_by_device(mask, devices), axis=1)
    place = jnp.argsort(order, axis=1)

    def rows(x, index):
        own = x.reshape(devices, -1, *x.shape[1:])
        return jnp.take_along_axis(own, index.reshape(*index.shape, *(1,) * (own.ndim - 2)), axis=1)

    def join(*made):
        own = [x.reshape(devices, -1, *x.shape[1:]) for x in made]
        joined = jnp.concatenate(own, axis=1).reshape(-1, *made[0].shape[1:])
        return jax.lax.with_sharding_constraint(rows(joined, place).reshape(joined.shape), sharded(mesh))

    ordered, made, start = [rows(x, order) for x in (ids, mask)], [], 0
    for i, (count, width) in enumerate(parts):
        cut = (x[:, start : start + count, :width].reshape(devices * count, width) for x in ordered)
        cut = (jax.lax.with_sharding_constraint(x, sharded(mesh)) for x in cut)
        made.append(whole(params, *cut, None if key is None else jax.random.fold_in(key, i)))
        start += count
    return jax.tree.map(join, *made)


def _one_or_all(usual, always, possible):
    """`usual` where `possible` says so and `always` elsewhere, which give the same values.

    Differentiated as it stands, a `cond` keeps for its backward pass what both branches need, zeros for the one that
    did not run.  Here it keeps what `usual` needs, and `always` runs its forward pass once more.
    """

    @jax.custom_vjp
    def run(params, ids, mask, key):
        return jax.lax.cond(possible(mask), usual, always, params, ids, mask, key)

    def pull(f, params, *given):
        return jax.vjp(lambda params: f(params, *given), params)

    def forward(params, ids, mask, key):
        given, kept = (params, ids, mask, key), {}

        def taken(*given):
            made, back = pull(usual, *given)
            leaves, kept["tree"] = jax.tree.flatten(back)
            # Weights are among what the backward pass needs; as outputs of a branch they would be copied.
            own = {id(x): i for i, x in enumerate(jax.tree.leaves(given))}
            kept["given"] = [own.get(id(x)) for x in leaves]
            return made, [x for x, at in zip(leaves, kept["given"], strict=True) if at is None]

        shapes = jax.eval_shape(taken, *given)[1]
        not_taken = lambda *given: (always(*given), [jnp.zeros(x.shape, x.dtype) for x in shapes])  # noqa: E731
        fit = possible(mask)
        made, leaves = jax.lax.cond(fit, taken, not_taken, *given)
        return made, (fit, leaves, given, _Static((kept["tree"], tuple(kept["given"]))))

    def backward(saved, cotangents):
        fit, leaves, given, static = saved
        tree, at = static.value
        own, made = jax.tree.leaves(given), iter(leaves)
        back = jax.tree.unflatten(tree, [next(made) if i is None else own[i] for i in at])
        grads = jax.lax.cond(
            fit, lambda: back(cotangents)[0], lambda: pull(always, *given)[1](cotangents)[0]
        )  # fmt: skip
        return grads, None, None, None

    run.defvjp(forward, backward)
    return run


@jax.tree_util.register_static
class _Static:
    """What a backward pass has to know besides arrays."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value)

    def __eq__(self, other):
        return self.value == other.value

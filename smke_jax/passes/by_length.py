"""A pass over captions in up to three parts, each as wide as its longest caption, so that less padding is computed.

Most captions are far shorter than `max_length`: those of COCO have some 14 tokens, of 64.  The rows of every device are
sorted by their length, and the shorter ones run without most of their padding.  A compiled step has fixed shapes, so
the parts are chosen beforehand, from a sample of the data.  A batch that does not fit into them, which is rare, runs at
its full width: representations and gradients are the same, but for rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.parallel.mesh import rows_at_once, sharded
from smke_jax.passes.base import Pass
from smke_jax.passes.micro_batch import in_micro_batches

TEXT = ("text", "text_mask")
FEWEST = 64  # rows of a device: with fewer rows, the parts are too small to keep the device busy
SURE = 4.0  # standard deviations between the captions that a part has room for and those it gets on average
WORTH = 0.9  # of the tokens with padding: above that, a second part costs more than it saves
PIECES = 4  # micro-batches of a batch that does not fit, so that it takes no more memory than without parts


class Split(NamedTuple):
    """How a step runs its passes in parts."""

    cut: Callable[[Pass], Pass]  # a pass -> the same pass in parts, or as it is
    metrics: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]  # of a global batch: what the step reports


UNCUT = Split(lambda p: p, lambda batch: {})


def split_by_length(lengths: Sequence[int], mesh, micro_batch: int = 0) -> Split:
    """`by_length` for the passes of a step; its metric 'captions_fit' is what `fitting` says, where it says something.

    lengths: (n,) of captions of the data set, in tokens; `UNCUT` where there are none
    """
    if not len(lengths):
        return UNCUT

    def metrics(batch):
        share = fitting(lengths, batch["text_mask"], mesh, micro_batch)
        return {} if share is None else {"captions_fit": share}

    return Split(lambda p: by_length(p, mesh, lengths), metrics)


def parts_of(lengths: Sequence[int], rows: int, width: int, devices: int = 1) -> tuple[tuple[int, int], ...]:
    """((rows, width), …) of the parts, the narrowest first: as many `rows` in all, and the last as wide as `width`.

    lengths: (n,) of captions of the data set, in tokens
    devices: that each have so many rows
    Every part has room for its captions in nearly every batch.  Widths are even.
    """
    whole = ((rows, width),)
    if rows < FEWEST or not len(lengths):
        return whole
    widths = np.arange(2, width, 2)
    share = (np.searchsorted(np.sort(lengths), widths, side="right") + 0.5) / (len(lengths) + 1)
    spread = np.sqrt(share * (1 - share) * (1 / rows + 1 / len(lengths)))
    # One device whose captions do not fit sends all devices to the full width: with more devices, each has to be surer.
    sure = math.sqrt(SURE**2 + 2 * math.log(devices))
    fit = np.clip(np.floor(rows * (share - sure * spread)), 0, rows).astype(int)  # rows that are no longer than that
    best, cost = whole, WORTH * rows * width
    for i, narrow in enumerate(widths):
        tokens = fit[i] * narrow + np.maximum(fit - fit[i], 0) * widths + (rows - np.maximum(fit, fit[i])) * width
        tokens[:i] = rows * width
        j = int(np.argmin(tokens))
        if tokens[j] < cost:
            cost = tokens[j]
            counts = (fit[i], fit[j] - fit[i], rows - fit[j])
            best = tuple((int(n), int(w)) for n, w in zip(counts, (narrow, widths[j], width), strict=True) if n)
    return best


def share_of_tokens(parts: tuple[tuple[int, int], ...]) -> float:
    """The tokens that `parts` compute, over those of all rows at full width."""
    counts, widths = np.array(parts).T
    return counts @ widths / (counts.sum() * widths[-1])


def of_captions(item) -> bool:
    """Whether `item`, a pass or a selection, is a pass over captions alone."""
    return isinstance(item, Pass) and set(item.needs) == set(TEXT)


def fitting(lengths: Sequence[int], text_mask: jax.Array, mesh, micro_batch: int = 0) -> jax.Array | None:
    """The share of micro-batches, or of the one batch, whose captions fit into their parts; None where nothing is cut.

    text_mask (B, L) of a global batch.
    """
    rows = rows_at_once(len(text_mask), mesh.size, micro_batch)
    parts = parts_of(lengths, rows, text_mask.shape[1], mesh.size)
    if len(parts) == 1:
        return None
    fits = _fits(parts, _ends(text_mask).reshape(-1, rows)).reshape(mesh.size, -1)
    return jnp.mean(jnp.all(fits, axis=0))


def by_length(p: Pass, mesh, lengths: Sequence[int]) -> Pass:
    """`p` in the parts that suit captions of these `lengths`; `p` itself where it is no pass over captions alone.

    A pass that makes an output for every token is not cut either.  `text_mask` has to be ones and then zeros, and what
    `p` makes of a row may not depend on how much padding follows.  Dropout differs by part.
    """
    if not of_captions(p):
        return p

    def run(params, arrays, key, train):
        ids, mask = (arrays[name] for name in TEXT)
        rows = len(ids) // mesh.size
        parts = parts_of(lengths, rows, ids.shape[1], mesh.size)

        def running(p):
            return lambda params, ids, mask, key: p.run(params, dict(zip(TEXT, (ids, mask), strict=True)), key, train)

        def possible(mask):
            return jnp.all(_fits(parts, _ends(mask).reshape(mesh.size, -1)))

        whole, given = running(p), (params, ids, mask, key)
        if len(parts) == 1 or not _of_rows(whole, *given):
            return whole(*given)
        in_pieces = running(in_micro_batches(p, mesh, 0 if rows % PIECES else rows // PIECES))
        return _one_or_all(partial(_in_parts, whole, mesh, parts), in_pieces, possible)(*given)

    return p._replace(run=run)


def _of_rows(whole, params, ids, mask, key) -> bool:
    """Whether what `whole` makes has the same shape for captions that are cut."""
    full, cut = (jax.eval_shape(whole, params, ids[:, :w], mask[:, :w], key) for w in (ids.shape[1], ids.shape[1] - 2))
    return jax.tree.map(lambda x: x.shape, full) == jax.tree.map(lambda x: x.shape, cut)


def _ends(mask: jax.Array) -> jax.Array:
    """(B,): the number of tokens up to the last one that is no padding, of `mask` (B, L)."""
    return jnp.max(jnp.where(mask != 0, jnp.arange(1, mask.shape[1] + 1), 0), axis=1)


def _fits(parts, ends: jax.Array) -> jax.Array:
    """(groups,): whether every part is as wide as its captions are long, of their `ends` (groups, rows)."""
    last = np.cumsum([rows for rows, _ in parts]) - 1
    return jnp.all(jnp.sort(ends, axis=1)[:, last] <= np.array([width for _, width in parts]), axis=1)


def _in_parts(whole, mesh, parts, params, ids, mask, key):
    """What `whole` makes of all rows; those of each device are sorted among themselves, so that nothing moves."""
    devices = mesh.size
    order = jnp.argsort(_ends(mask).reshape(devices, -1), axis=1)
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
        grads = jax.lax.cond(fit, lambda: back(cotangents)[0], lambda: pull(always, *given)[1](cotangents)[0])
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

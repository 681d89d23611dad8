"""Totals of every row here over its negatives on all devices, in one of two exact forms.

*gather* copies the rows of all devices to every device, which computes all its logits at once.  *ring*, in `ring.py`,
passes the rows from device to device and computes the logits block by block.  The ring needs far less memory and
computes the logits twice.
"""

import jax.numpy as jnp

from smke_jax.losses.collective import Scope, gather, size, to_their_devices
from smke_jax.losses.pairs import Affine, Reduction, Rows, Totals, combined, masked_logits, totals_of
from smke_jax.losses.ring import ring_totals

RING_FROM = 2**26  # 'auto' takes the ring where a device has more logits than these (256 MiB in float32)


def totals(
    queries: Rows, keys: Rows, *, affine: Affine, reduction: Reduction, scope: Scope, fixed_keys: bool = False
) -> Totals:
    """Totals of every query here over the keys of all devices -> Totals (b,).

    `fixed_keys` promises that the gradient by the keys is not needed.  The ring's backward pass is then a third
    cheaper.
    """
    how = {"affine": affine, "reduction": reduction}
    if _use_ring(queries, keys, scope):
        return ring_totals(keys, queries, **how, scope=scope, symmetric=False, fixed_residents=fixed_keys)[1]
    if len(keys.ids) <= len(queries.ids):
        return totals_of(masked_logits(queries, _of_all_devices(keys, scope), affine), reduction, axis=1)
    # A memory bank has more keys than there are queries, so here the queries of all devices come to the keys.
    logits = masked_logits(_of_all_devices(queries, scope), keys, affine)
    return _back_to_their_devices(totals_of(logits, reduction, axis=1), reduction, scope)


def symmetric_totals(a: Rows, b: Rows, *, affine: Affine, reduction: Reduction, scope: Scope) -> tuple[Totals, Totals]:
    """(Totals of every row of `a` here over all of `b`, totals of every row of `b` here over all of `a`)."""
    if _use_ring(a, b, scope):
        return ring_totals(a, b, affine=affine, reduction=reduction, scope=scope, symmetric=True)
    logits = masked_logits(a, _of_all_devices(b, scope), affine)
    of_a, of_all_b = totals_of(logits, reduction, axis=1), totals_of(logits, reduction, axis=0)
    return of_a, _back_to_their_devices(of_all_b, reduction, scope)


def _use_ring(a: Rows, b: Rows, scope: Scope) -> bool:
    if scope.impl == "auto":
        return len(a.ids) * len(b.ids) * size(scope) > RING_FROM
    return scope.impl == "ring"


def _of_all_devices(rows: Rows, scope: Scope) -> Rows:
    return Rows(gather(rows.features, scope), gather(rows.ids, scope))


def _back_to_their_devices(parts: Totals, reduction: Reduction, scope: Scope) -> Totals:
    """Each device's totals of the rows of all devices (B,), combined -> the totals of its own rows (b,)."""
    here = to_their_devices(jnp.stack(parts, axis=1), scope)  # one exchange for both fields
    return combined(Totals(here[..., 0], here[..., 1]), reduction)

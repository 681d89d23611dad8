"""What a selection is: rows of the global batch, or of an asset, that later passes and terms read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from smke_jax.losses.collective import Scope

Specs = Mapping[str, jax.ShapeDtypeStruct]


class Selection(NamedTuple):
    """Names rows; no gradient flows through it.

    needs:    arrays that it reads, of the batch or made by passes: this device's rows of them
    provides: arrays that it makes: int32 (b,), for every row here the number of a row of the global batch, unless
              `shapes` says otherwise.  Those of `draws` are random numbers, which name no rows.  A pass or a term
              that needs 'text/tokens@hard_text' gets the rows of 'text/tokens' that 'hard_text' names
    run:      (state, arrays, scope) -> arrays
    reads:    what `run` finds in `state`: 'terms/<term>', its parameters, or 'assets/<asset>', this device's rows of
              its arrays
    shapes:   (shapes of what it needs) -> {array: shape and type of one row} of what it makes besides numbers of rows
    check:    (task, {asset: what numbers its rows}, {asset: Asset}) -> None: raises UserError for what it could not
              choose from, before a run begins
    """

    name: str
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    run: Callable[[Mapping[str, Any], Mapping[str, jax.Array], Scope], dict[str, jax.Array]]
    reads: tuple[str, ...] = ()
    shapes: Callable[[Specs], Specs] = lambda arrays: {}
    check: Callable[[Any, Mapping[str, str], Mapping[str, Any]], None] = lambda task, numbers, assets: None

"""Representations of a whole split: padded batches of one size on all devices, trimmed to the exact count."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grain
import jax
import numpy as np

from smke_jax.data.progress import Progress
from smke_jax.models.attention import attention_by, best
from smke_jax.parallel.mesh import divisible, put_batch, replicated
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Split

Borrow = Callable[[Pass], Mapping[str, Any]]  # what a pass runs with


class Encoder:
    """`Encode` with given parameters.

    chosen:     (names, arrays there are) -> the passes that make these representations, in order
    borrow:     (pass) -> parameters by network
    batch_size: examples on all devices together, rounded up to what divides over them
    threads:    for reading and decoding
    attention:  of `models.attention.CHOICES`
    """

    def __init__(
        self, chosen: Callable, borrow: Borrow, mesh, *, batch_size: int, threads: int = 2, attention: str = "auto"
    ):
        self._chosen, self._borrow, self._mesh = chosen, borrow, mesh
        self._batch_size, self._threads, self._attention = divisible(batch_size, mesh), threads, attention
        self._compiled: dict[tuple, tuple] = {}  # by names and columns

    def with_parameters(self, borrow: Borrow) -> "Encoder":
        """The same with other parameters; what was compiled is kept."""
        other = copy.copy(self)
        other._borrow = borrow
        return other

    def __call__(self, names: Iterable[str], split: Split) -> dict[str, np.ndarray]:
        names = tuple(names)
        passes, run = self._program(names, tuple(split.columns))
        needs = sorted({need for p in passes for need in p.needs if need in split.columns})
        counts = {split.columns[need].rows for need in needs}
        if len(counts) > 1:
            raise ValueError(f"{names} are not of equally many rows: ask for each of them by itself")
        (count,) = counts
        params = [self._borrow(p) for p in passes]
        found: dict[str, list] = {name: [] for name in names}
        progress = Progress(f"embedding {', '.join(names)}", count, every=10.0)
        for done, batch in self._batches({need: split.columns[need] for need in needs}, count):
            made = run(params, put_batch(batch, self._mesh))
            for name in names:
                found[name].append(np.asarray(made[name])[: min(self._batch_size, count - done)])
            if jax.process_index() == 0:
                progress.update(min(done + self._batch_size, count))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _program(self, names, columns):
        key = names, columns
        if key not in self._compiled:
            passes = self._chosen(names, columns)
            attention = best(self._attention, self._mesh.devices.flat[0])

            def run(params, arrays):
                arrays = dict(arrays)
                with attention_by(attention, trained=False):
                    for p, own in zip(passes, params, strict=True):
                        arrays |= p.run(own, {need: arrays[need] for need in p.needs}, None, False)
                return {name: arrays[name] for name in names}

            self._compiled[key] = passes, jax.jit(run, out_shardings=replicated(self._mesh))
        return self._compiled[key]

    def _batches(self, columns, count: int):
        """(number of its first row, this process's rows) of every batch; the last is filled up with its last row."""
        share = self._batch_size // jax.process_count()
        first = jax.process_index() * share

        def read(number):
            rows = number * self._batch_size + first + np.arange(share)
            rows = np.minimum(rows, count - 1)  # a row that is there already: no row that could make a NaN
            distinct = np.unique(rows)
            places = np.searchsorted(distinct, rows)
            return {name: column.read(distinct.tolist())[places] for name, column in columns.items()}

        total = -(-count // self._batch_size)
        dataset = grain.MapDataset.range(total).map(read)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(1, self._threads))
        for number, batch in enumerate(dataset.to_iter_dataset(options)):
            yield number * self._batch_size, batch

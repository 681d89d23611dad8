"""Which row of an epoch comes when in training, and the random numbers that belong to each."""

import copy
import threading

import grain
import numpy as np


class Order:
    """The rows of all epochs, one after another, in positions from 0 on; thread-safe.

    The rows and the random numbers are those of grain's `range(rows).seed(seed).shuffle().slice(…).repeat()` and of its
    `random_map`. They depend on the seed and the position alone.

    Args:
      rows: R, of an epoch before its incomplete last batch is dropped.
      batch_size: B, at most R.
      seed: of the order, which is another in each epoch, and of the random numbers.
    """

    def __init__(self, rows: int, batch_size: int, seed: int):
        # The numbers of rows, and not the rows themselves: grain measures each read from a source, which takes as long
        # as all else that it does for a row.
        shuffled = grain.MapDataset.range(rows).seed(seed).shuffle()
        self._rows = shuffled.slice(slice(0, rows // batch_size * batch_size)).repeat()
        self._first_state = self._rows.random_map(lambda _, rng: rng.bit_generator.state)[0]
        self._of_thread = threading.local()

    def __getitem__(self, position: int) -> int:
        """The number of the row, 0 … R - 1."""
        return self._rows[position]

    def generator(self, position: int) -> np.random.Generator:
        """The random numbers of a position, valid until the same thread asks for those of another."""
        own = self._of_thread
        if not hasattr(own, "rng"):
            own.rng, own.state = np.random.Generator(np.random.Philox()), copy.deepcopy(self._first_state)
        # grain puts the position into the last word of the counter. Only this word is written here, as grain's own way
        # of setting all of the state takes four times as long.
        own.state["state"]["counter"][-1] = position
        own.rng.bit_generator.state = own.state
        return own.rng

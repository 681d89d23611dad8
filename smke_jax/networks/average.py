"""The moving average of another network: a momentum encoder (spec 12)."""

from smke_jax.networks.base import Average, Network


def average(*, of: str, decay: float = 0.995) -> Network:
    """The moving average of the network `of`; its passes make '<name>/<representation>', without gradient.

    The train step moves it: `training/step.py`, `_moved_averages`.
    """
    return Network(init=None, forward=None, trained=False, average=Average(of, decay))

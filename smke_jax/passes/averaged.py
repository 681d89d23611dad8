"""The passes of a network, run with its moving average: a momentum encoder (spec 12; MoCo, He et al. 2020)."""

from collections.abc import Iterable

from smke_jax.passes.base import Pass


def averaged(p: Pass, of: str, name: str, siblings: Iterable[Pass] = ()) -> Pass:
    """`p`, a pass of the network `of`, with the parameters of its average `name`, in evaluation mode.

    What it makes is called '<name>/<representation>', and what it reads of its `siblings`, the other passes of that
    network, is what their averages make.
    """
    made = {what for sibling in siblings for what in sibling.provides}
    needs = {need: "@".join(f"{name}/{x}" if x in made else x for x in need.split("@")) for need in p.needs}

    def run(params, arrays, key, train):
        if of in p.networks:
            params = {**params, of: params[name]}
        arrays = {need: arrays[renamed] for need, renamed in needs.items()}
        return {f"{name}/{what}": x for what, x in p.run(params, arrays, key, False).items()}

    networks = tuple(name if network == of else network for network in p.networks)
    provides = tuple(f"{name}/{what}" for what in p.provides)
    arrays = {"needs": tuple(needs.values()), "provides": provides, "watched": ()}
    return p._replace(name=f"{name}/{p.name}", networks=networks, run=run, **arrays)

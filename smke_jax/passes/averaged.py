"""The passes of a network, run with its moving average: a momentum encoder (spec 12; MoCo, He et al. 2020)."""

from smke_jax.passes.base import Pass


def averaged(p: Pass, of: str, name: str) -> Pass:
    """`p`, a pass of the network `of`, with the parameters of its average `name`, in evaluation mode.

    What it makes is called '<name>/<representation>'.
    """

    def run(params, arrays, key, train):
        params = {**params, of: params[name]}
        return {f"{name}/{what}": x for what, x in p.run(params, arrays, key, False).items()}

    networks = tuple(name if network == of else network for network in p.networks)
    provides = tuple(f"{name}/{what}" for what in p.provides)
    return p._replace(name=f"{name}/{p.name}", networks=networks, provides=provides, run=run, watched=())

"""Expanders of VICReg: a perceptron on each of several representations (Bardes et al. 2022, section 4.2)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.perceptron import Perceptron
from smke_jax.networks.base import Network
from smke_jax.passes.base import Pass


def expander(
    *, of: tuple[str, ...] = ("image/out", "text/out"), widths: tuple[int, ...] = (512, 512), makes: str = "expanded"
) -> Network:
    """'<makes>/<name>' (B, widths[-1]) of each of the representations `of` (B, D), through layers of its own.

    widths: channels of the layers; a GELU stands between them.  The authors' has batch normalisation and ReLU, is
            8192 wide and sees batches of 2048: with small batches the covariances of so many channels say nothing.
    """
    if not of or not widths:
        raise UserError(f"of is {of} and widths {widths}: give at least one of each")
    model = Perceptron(tuple(widths))

    def part(name: str) -> str:
        return name.replace("/", "_")

    def init(key, specs):
        for name in of:
            if name not in specs:
                raise UserError(f"nothing makes {name}: name a network in config.networks that does")
        keys = jax.random.split(key, len(of))
        return {part(x): model.init(k, jnp.zeros(specs[x].shape))["params"] for x, k in zip(of, keys, strict=True)}

    def expand(network: str, name: str) -> Pass:
        def run(params, arrays, key, train):
            made = model.apply({"params": params[network][part(name)]}, arrays[name].astype(jnp.float32))
            return {f"{makes}/{name}": made}

        return Pass(f"{network}/{name}", (network,), (name,), (f"{makes}/{name}",), run)

    return Network(init, lambda network, specs: tuple(expand(network, name) for name in of))

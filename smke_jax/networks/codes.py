"""A codebook of images: the autoencoder that learns it, and the quantiser that is left of it (spec 16, 17)."""

import jax.numpy as jnp
import numpy as np

from smke_jax.convert.params_file import digests, fit, load_params, read_description
from smke_jax.errors import UserError
from smke_jax.models.quantizer import Autoencoder, Quantizer
from smke_jax.networks.base import Network, Start
from smke_jax.networks.start import RANDOM
from smke_jax.passes.codes import TERM, autoencode, quantize

TEACHER = "frozen"  # the type of the network whose features become codes


def autoencoder(
    *,
    num_codes: int = 1024,
    code_dim: int = 16,
    masked: float = 0.9,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    norm_eps: float = 1e-6,
    activation: str = "gelu",
    dtype: str = "float32",
) -> Network:
    """Learns codes of the teacher's [CLS], each of `code_dim` channels.

    The decoder is a Transformer block of the teacher's width with `num_heads` and `mlp_dim`; a share `masked` of the
    teacher's patches is hidden from it.  `smke export` writes the quantiser: the way down to the codes, and the codes.
    """
    model = Autoencoder(
        code_dim=code_dim, masked=masked, num_heads=num_heads, mlp_dim=mlp_dim, norm_eps=norm_eps,
        activation=activation, dtype=np.dtype(dtype),
    )  # fmt: skip

    def init(key, specs):
        cls, patches = (jnp.zeros(specs[f"target/{name}"].shape) for name in ("cls", "patches"))
        return model.init({"params": key, "mask": key}, cls, patches, jnp.zeros((num_codes, code_dim)))["params"]

    def export(params, slots):
        codes = np.asarray(slots["image_vq"]["codes"])
        description = {"type": "quantizer", "num_codes": num_codes, "code_dim": code_dim}
        width = params["down"]["fc1"]["kernel"].shape[0]
        return {"down": params["down"], "codes": codes}, {**description, "width": width}

    return Network(
        init,
        lambda name, specs: (autoencode(model, name, num_codes),),
        export=export,
        export_reads=(TERM.partition("/")[2],),
    )


def quantizer(*, start: str, num_codes: int = 1024, code_dim: int = 16) -> Network:
    """The frozen codes that `smke export` wrote of a run of an autoencoder, or random ones.

    num_codes, code_dim: of the codes; those of a file have to be the same.
    """
    model = Quantizer(num_codes, code_dim)

    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        found = read_description(start).get("model", {})
        if found.get("type") != "quantizer":
            raise UserError(
                f"{start} holds a model of type {found.get('type')!r} and no codes: give what `smke export` wrote of a "
                "run of configs/image_vq.py"
            )
        for field, value in (("num_codes", num_codes), ("code_dim", code_dim)):
            if found[field] != value:
                raise UserError(f"{field} is {value} and was {found[field]} in {start}: set it so")
        params = fit(shapes, load_params(start), source=start)
        return Start(params, {"": start}, digests(start), expects_of={"target/cls": _teacher(start)})

    return Network(
        lambda key, specs: model.init(key, jnp.zeros(specs["target/cls"].shape))["params"],
        lambda name, specs: (quantize(model, name),),
        begin,
        trained=False,
        facts={"num_codes": num_codes},
    )


def _teacher(path: str) -> dict[str, str]:
    """{what: digest} of the teacher in the run that learned the codes in `path`, whatever it was called there."""
    source = read_description(path)["source"]
    config, identity = source["config"], source["identity"]
    for key in identity:
        name, _, what = key.partition(" ")
        if what == "weights" and config.get(f"config.networks.{name}.type", name) == TEACHER:
            known = {what: identity.get(f"{name} {what}") for what in ("weights", "form")}
            return {what: digest for what, digest in known.items() if digest is not None}
    raise UserError(f"{path} does not say of which teacher its codes are: export its run again")

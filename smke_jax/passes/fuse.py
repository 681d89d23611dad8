"""Forwards of two towers with a fusion encoder: each modality by itself, pairs, wrong pairs, and masked views."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.fused_towers import FusedTowers
from smke_jax.passes.base import MEAN, STD, Pass, mode, to_network
from smke_jax.passes.draws import DRAWS, OF_TEXT, keys_of
from smke_jax.passes.hidden_patches import Hiding, hidden_by, hidden_patches
from smke_jax.passes.text_masks import NOTHING, mask_words, most_masked, places_of


class TextMask(NamedTuple):
    """How captions are masked, see `mask_words`; mask_token is None of a vocabulary without [MASK]."""

    ratio: float
    unit: str
    random: float
    kept: float
    mask_token: int | None
    strangers: np.ndarray


def towers(model: FusedTowers, network: str, *, mean=MEAN, std=STD) -> tuple[Pass, Pass]:
    """'image/{states,out,tokens}' of 'image', and 'text/{states,out}' of 'text' and 'text_mask'.

    states (B, 1 + N, Di) and (B, L, Dt), what fusion reads; out (B, embed), what retrieval compares; tokens (B, N, Di),
    the states of the patches.
    """

    def image(params, arrays, key, train):
        pixels = to_network(arrays["image"], mean, std)
        made = _apply(model, params[network], "encode_image", key, train, pixels)
        return _named("image", {**made, "tokens": made["states"][:, 1:]})

    def text(params, arrays, key, train):
        ids, mask = arrays["text"], arrays["text_mask"]
        return _named("text", _apply(model, params[network], "encode_text", key, train, ids, mask))

    of_image = tuple(f"image/{name}" for name in ("states", "out", "tokens"))
    return (
        Pass(f"{network}/image", (network,), ("image",), of_image, image, ("image/out",)),
        Pass(f"{network}/text", (network,), ("text", "text_mask"), ("text/states", "text/out"), text, ("text/out",)),
    )


def pairs(model: FusedTowers, network: str) -> tuple[Pass, ...]:
    """'pair/{match,cls,text,image}' of every pair, 'wrong_text/…' and 'wrong_image/…' of what a selection chose.

    match (B, 2): logits of no match and of a match; cls (B, D), text (B, L, D), image (B, N, D), where the fusion
    makes it.  The caption of 'wrong_text' is 'hard_text', the image of 'wrong_image' is 'hard_image'.
    """
    made = ("match", "cls", "text", *(("image",) if model.fusion.fuses_patches else ()))

    def fused(name, image, text):
        mask = text.replace("text/states", "text_mask")

        def run(params, arrays, key, train):
            own = params[network]
            out = _apply(model, own, "fuse", key, train, arrays[image], arrays[text], arrays[mask])
            match = model.apply({"params": own}, out.cls, method="match")
            return {f"{name}/{what}": x for what, x in {**out._asdict(), "match": match}.items() if what in made}

        return Pass(f"{network}/{name}", (network,), (image, text, mask), tuple(f"{name}/{x}" for x in made), run)

    return (
        fused("pair", "image/states", "text/states"),
        fused("wrong_text", "image/states", "text/states@hard_text"),
        fused("wrong_image", "image/states@hard_image", "text/states"),
    )


def masked_texts(model: FusedTowers, network: str, how: TextMask) -> tuple[Pass, ...]:
    """Captions with words hidden, by themselves and fused with the clean image.

    By themselves: 'masked_text/ids' and 'masked_text/chosen' (B, L), and 'masked_text/states'.  The masks are drawn
    from 'draws'.  Fused: 'masked_text/fused' (B, L, D), 'masked_text/fused_cls' (B, D), 'masked_text/logits' (B, M, V)
    of the chosen places, and 'masked_text/labels' (B, M), the ids that stood there, -1 where a caption has fewer
    than M.
    """

    def hide(params, arrays, key, train):
        if how.mask_token is None:
            raise UserError("the vocabulary of config.task has no [MASK], so that no words can be masked: give BERT's")
        options = how._asdict()
        mask = jax.vmap(lambda key, ids, words: mask_words(key, ids, words, **options))
        ids, chosen = mask(keys_of(arrays[DRAWS], OF_TEXT), arrays["text"], arrays["text_words"])
        return {"masked_text/ids": ids, "masked_text/chosen": chosen}

    def encode(params, arrays, key, train):
        out = _apply(model, params[network], "encode_text", key, train, arrays["masked_text/ids"], arrays["text_mask"])
        return {"masked_text/states": out["states"]}

    def fuse(params, arrays, key, train):
        own, chosen = params[network], arrays["masked_text/chosen"]
        states = arrays["image/states"], arrays["masked_text/states"]
        out = _apply(model, own, "fuse", key, train, *states, arrays["text_mask"])
        places = places_of(chosen, most_masked(chosen.shape[1], how.ratio, how.unit))
        here = jnp.take_along_axis(chosen, places, axis=1)
        labels = jnp.where(here, jnp.take_along_axis(arrays["text"], places, axis=1), NOTHING)
        at_places = jnp.take_along_axis(out.text, places[:, :, None], axis=1)
        table = own["text_encoder"]["word_embedding"]
        logits = model.apply({"params": own}, at_places, table, method="words")
        return _named("masked_text", {"fused": out.text, "fused_cls": out.cls, "logits": logits, "labels": labels})

    words = ("text_words",) if how.mask_token is not None else ()
    made = tuple(f"masked_text/{what}" for what in ("fused", "fused_cls", "logits", "labels"))
    needs = ("image/states", "masked_text/states", "masked_text/chosen", "text", "text_mask")
    return (
        Pass(f"{network}/hide_words", (), ("text", *words, DRAWS), ("masked_text/ids", "masked_text/chosen"), hide),
        Pass(f"{network}/masked_text", (network,), ("masked_text/ids", "text_mask"), ("masked_text/states",), encode),
        Pass(f"{network}/fused_masked_text", (network,), needs, made, fuse),
    )


def masked_images(model: FusedTowers, network: str, hiding: Hiding, *, mean=MEAN, std=STD) -> tuple[Pass, Pass]:
    """Images with patches hidden, by themselves and fused with the whole caption.

    By themselves: 'masked_image/states'; 'masked_image/chosen' (B, N) bool, True at hidden patches, drawn from 'draws';
    'masked_image/pixels' (B, S, S, 3), what the tower sees.  Fused: 'masked_image/fused' (B, N, D), at patches,
    'masked_image/fused_text' (B, L, D) and 'masked_image/fused_cls' (B, D).
    """
    patch = model.image_encoder.patch_size

    def encode(params, arrays, key, train):
        own, pixels = params[network], to_network(arrays["image"], mean, std)
        seen, mask = hidden_patches(pixels, arrays[DRAWS], patch, hiding)
        hidden = {"hidden": hidden_by(own, mask, hiding)}
        out = model.apply({"params": own}, seen, method="encode_image", **hidden, **mode(key, train))
        return _named("masked_image", {"states": out["states"], "chosen": mask, "pixels": seen})

    def fuse(params, arrays, key, train):
        states = arrays["masked_image/states"], arrays["text/states"]
        out = _apply(model, params[network], "fuse", key, train, *states, arrays["text_mask"])
        return {name: x for name, x in zip(fused, (out.text, out.cls, out.image), strict=True) if x is not None}

    fused = ("masked_image/fused_text", "masked_image/fused_cls", "masked_image/fused")
    made = fused if model.fusion.fuses_patches else fused[:2]
    seen = tuple(f"masked_image/{name}" for name in ("states", "chosen", "pixels"))
    needs = ("masked_image/states", "text/states", "text_mask")
    return (
        Pass(f"{network}/masked_image", (network,), ("image", DRAWS), seen, encode),
        Pass(f"{network}/fused_masked_image", (network,), needs, made, fuse),
    )


def _apply(model, params, method, key, train, *inputs):
    return model.apply({"params": params}, *inputs, method=method, **mode(key, train))


def _named(modality, made):
    return {f"{modality}/{name}": x for name, x in made.items()}

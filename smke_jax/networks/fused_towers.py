"""Two towers with a fusion encoder: what ALBEF and MAMO train, and what re-ranking asks whether a pair matches."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.interpolate import fitted
from smke_jax.convert.params_file import digests, fit, load_params, read_description
from smke_jax.convert.temperatures import by_level
from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask, NumbersFromTask
from smke_jax.limits import ABOVE_0_TO_1, AT_LEAST_1, SHARE
from smke_jax.models.fields import check_fields
from smke_jax.models.fused_towers import POOLS, build_fused_towers
from smke_jax.models.fusion import FUSIONS
from smke_jax.models.towers import VITS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.encoders import describe_encoder, load_with_word_head
from smke_jax.networks.start import FITTING, RANDOM, differences, together, tower_start, vocabulary_of
from smke_jax.networks.two_towers import TOWERS, check_image, pixels_said
from smke_jax.passes.base import statistics_of
from smke_jax.passes.fuse import TextMask, masked_images, masked_texts, pairs, towers
from smke_jax.passes.hidden_patches import MASK_TOKEN, TOKEN, hiding_of
from smke_jax.passes.patch_targets import check_hog, patch_targets
from smke_jax.passes.text_masks import UNITS

TYPE = "fused_towers"
PARTS = ("image", "text", "fusion")


def fused_towers(
    *,
    vocab_size: FromTask,
    mask_token: FromTask = -1,
    special_tokens: NumbersFromTask = (),
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    fusion: Mapping[str, Any],
    embed: int = 256,
    pool: str = "cls",
    text_ratio: float = 0.15,
    text_unit: str = "token",
    random_words: float = 0.0,
    kept_words: float = 0.0,
    mask_cell: int = 0,
    mask_ratio: float = 0.75,
    hide_by: str = TOKEN,
    noise: float = 1.0,
    hog_cells: int = 2,
    dtype: str = "float32",
    residual_dtype: str = "float32",
    remat: str = "none",
    start: str = RANDOM,
    image_start: str = RANDOM,
    text_start: str = RANDOM,
    fusion_start: str = RANDOM,
    trained: tuple[str, ...] = (),
    described: Described = None,
) -> Network:
    """Towers `image` and `text`, such as 'vit' and 'bert', and a fusion encoder `fusion`, 'concat' or 'cross'.

    Its passes: see smke_jax/passes/fuse.py.  Masked views and wrong pairs need the selections `draws` and
    `hard_negatives`.
    vocab_size, mask_token, special_tokens: of the task's tokenizer; mask_token is -1 where it has no [MASK], and no
                  random word is one of special_tokens
    embed:        channels of 'image/out' and 'text/out', which retrieval compares
    pool:         what these are made of: 'cls', or the 'mean' over the tokens without padding
    text_ratio, text_unit: the share of the words of a caption that are masked: of single 'token's, or of 'word's
    random_words, kept_words: the shares of the masked tokens that become any word, and that stay; others are [MASK]
    mask_cell, mask_ratio, hide_by, noise, hog_cells: what is hidden of images, and how, and what hidden patches can be
                  rebuilt as, as of `masked_image_tower`; mask_cell=0 hides nothing
    dtype, residual_dtype, remat: as of `two_towers`
    start:        all of it from what `smke export` wrote of another run; temperatures come along
    image_start, text_start: one tower from a file, as of `two_towers`
    fusion_start: the layers of the fusion encoder from the last layers of the encoder of text in a file, and the head
                  of words with them where the file has one; their attention to images begins at random
    trained:      regexes of the parameters that are trained; () is all of them
    described:    the statistics of pixels that the file said when the run began
    """
    for name, (part, kinds) in zip(PARTS, ((image, FITTING["image"]), (text, FITTING["text"]), (fusion, FUSIONS))):
        check_fields(name, part, kinds)
    check_image(image)
    _check(image, text, fusion, pool, text_unit)
    AT_LEAST_1.check("embed", embed)
    ABOVE_0_TO_1.check("text_ratio", text_ratio)
    SHARE.check("random_words + kept_words", random_words + kept_words)
    files = {"image": image_start, "text": text_start, "fusion": fusion_start}
    files = {name: path for name, path in files.items() if path != RANDOM}
    if start != RANDOM and files:
        raise UserError(f"start begins all of it: set {next(iter(files))}_start={RANDOM} beside it")
    said = pixels_said(start, image_start) if described is None else dict(described)
    description = {
        "type": TYPE, "vocab_size": vocab_size, "embed": embed, "pool": pool, "dtype": dtype,
        "residual_dtype": residual_dtype, "image": dict(image), "text": dict(text), "fusion": dict(fusion),
        **statistics_of(said),
    }  # fmt: skip
    model = build_fused_towers(description | {"remat": remat})
    strangers = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special_tokens)
    how = TextMask(text_ratio, text_unit, random_words, kept_words, None if mask_token < 0 else mask_token, strangers)

    hiding = hiding_of(mask_cell, mask_ratio, hide_by, noise, hog_cells)
    if hiding:
        if image["type"] not in VITS:
            raise UserError(f"mask_cell hides patches, and an image tower {image['type']} has none: set it to 0")
        hiding.check(image["image_size"], image["patch_size"])
        check_hog(image["patch_size"], hog_cells)

    def init(key, specs):
        images = jnp.zeros((2, image["image_size"], image["image_size"], 3))
        tokens = jnp.ones((2, 3), jnp.int32)
        params = model.init(key, images, tokens, tokens)["params"]
        return params | (hiding.token(jax.random.fold_in(key, 1), image["width"]) if hiding else {})

    def forward(name, specs):
        pixels = statistics_of(said)
        of_images = ()
        if hiding:
            targets = patch_targets(name, image["patch_size"], hog_cells=hog_cells, **pixels)
            of_images = (*masked_images(model, name, hiding, **pixels), targets)
        return (*towers(model, name, **pixels), *pairs(model, name), *masked_texts(model, name, how), *of_images)

    def begin(shapes) -> Start | None:
        if start != RANDOM:
            return _whole(start, without_token(shapes), description)
        found = {
            f"{tower}_encoder": tower_start(tower, files[tower], shapes[f"{tower}_encoder"], description[tower])
            for tower in TOWERS if tower in files
        }  # fmt: skip
        if "fusion" in files:
            found |= _fusion_start(files["fusion"], shapes, description["fusion"])
        return together(found) if found else None

    return Network(
        init,
        forward,
        begin,
        trained=tuple(trained) or True,
        sizes={"image": image["image_size"]},
        export=lambda params, slots: (without_token(params), description),
        described=said,
    )


def without_token(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the model alone: what hides patches in training is of no use later."""
    return {name: x for name, x in params.items() if name != MASK_TOKEN}


def _check(image, text, fusion, pool, unit) -> None:
    """Raises UserError for parts that do not go together."""
    if image.get("token_drop"):
        raise UserError("image.token_drop: fusion reads every patch, set it to 0")
    if fusion["type"] == "cross" and fusion["width"] != text["width"]:
        raise UserError(
            f"the layers of a 'cross' fusion continue those of the text: set fusion.width={text['width']}, "
            f"the width of the text tower, not {fusion['width']}"
        )
    if text.get("word_width"):
        raise UserError("text.word_width: the head of words reads a table as wide as the layers, set it to 0")
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is neither {' nor '.join(POOLS)}")
    if unit not in UNITS:
        raise UserError(f"text_unit {unit!r} is neither {' nor '.join(UNITS)}")


def _whole(path: str, shapes: Any, description: Mapping[str, Any]) -> Start:
    """All of an export of such a network; UserError for another architecture."""
    model = read_description(path).get("model", {})
    if model.get("type") != TYPE:
        raise UserError(
            f"start: {path} holds a model of type {model.get('type')!r}: give what `smke export` wrote of a run with "
            f"{TYPE}"
        )
    pairs = {"": (model, description), **{f"{part}.": (model[part], description[part]) for part in PARTS}}
    if wrong := [line for prefix, pair in pairs.items() for line in differences(*pair, prefix=prefix)]:
        raise UserError(f"the network is not that of {path}: {'; '.join(wrong)}; set them alike")
    params = load_params(path)
    params["image_encoder"] = fitted(params["image_encoder"], model["image"], description["image"]["image_size"])
    loaded = fit(shapes, params, source=path)
    scales = {name: {"logit_scale": values} for name, values in by_level(model.get("logit_scales", {})).items()}
    return Start(loaded, {"": path}, digests(path), scales, vocabulary_of(path))


def _fusion_start(path: str, shapes: Any, fields: Mapping[str, Any]) -> dict[str, Start]:
    """{'fusion': the last layers of the encoder of text in a file, 'word_head': its head, where the file has one}."""
    model = describe_encoder(path, "text")
    if model.get("type") != "bert":
        raise UserError(f"fusion_start: {path} holds a model of type {model.get('type')!r}: give a BERT")
    same = {name: fields[name] for name in ("width", "num_heads", "mlp_dim", "norm_order", "norm_eps", "activation")}
    if wrong := differences(model, same):
        raise UserError(f"fusion_start: the fusion cannot start from {path}: {'; '.join(wrong)}; set them alike")
    if model["depth"] < fields["depth"]:
        raise UserError(f"{path} has {model['depth']} layers: fusion.depth is {fields['depth']}")
    (theirs, head), first = load_with_word_head(path), model["depth"] - fields["depth"]
    layers = {f"block_{i}": theirs[f"block_{first + i}"] for i in range(fields["depth"])}
    wanted = {name: {part: shapes["fusion"][name][part] for part in layer} for name, layer in layers.items()}
    params = fit(wanted, layers, source=path)
    origin, weights = f"layers {first}-{model['depth'] - 1} of {path}", {"weights": digests(path)["weights"]}
    found = {"fusion": Start(params, {"": origin}, weights, expects=vocabulary_of(path))}
    if head is not None:
        origin = f"the head of words of {path}"
        found["word_head"] = Start(fit(shapes["word_head"], head, source=origin), {"": origin}, weights)
    return found

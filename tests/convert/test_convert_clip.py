"""CLIP comes in exactly, both towers of it, from transformers and from OpenAI's TorchScript archive."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import Case, Reference, apply, blocks_of, check, check_whole, parametrized
from random_weights import images, pixels, randomise, saved
from safetensors.numpy import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source, read_source
from smke_jax.errors import UserError
from smke_jax.models.build import build_model, param_shapes

# Heads of 64 channels, which is what OpenAI's file does not tell.
TINY = {
    "vision_config": {
        "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80, "image_size": 12,
        "patch_size": 4,
    },
    "text_config": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 72,
        "vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49, "bos_token_id": 48,
    },
    "projection_dim": 24,
}  # fmt: skip
VIT_B_32 = {"text_config": {"eos_token_id": 49407, "bos_token_id": 49406}}  # else transformers' defaults
WIDE = {
    "vision_config": {"num_hidden_layers": 2},
    "text_config": {"num_hidden_layers": 2, "vocab_size": 500, "eos_token_id": 499, "bos_token_id": 498},
}


def captions(vocab_size: int, length: int, batch: int) -> np.ndarray:
    """Ids as CLIP's tokenizer gives them: start, words, end, and zeros up to `length`; one is full."""
    start, end = vocab_size - 2, vocab_size - 1
    ids = np.random.default_rng(2).integers(1, start, (batch, length), dtype=np.int32)
    ids[:, 0] = start
    for row, last in zip(ids, [length - 1, *range(3, batch + 2)], strict=True):
        row[last], row[last + 1 :] = end, 0
    return ids


def network(sizes: dict, **settings) -> CLIPModel:
    torch.manual_seed(0)
    return randomise(CLIPModel(CLIPConfig(**sizes, attn_implementation="eager", **settings)))


def hf(sizes: dict) -> Reference:
    model = network(sizes)
    text, image = model.config.text_config, model.config.vision_config
    given = images(2, image.image_size)
    ids = captions(text.vocab_size, text.max_position_embeddings, 3)

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        of_image = model.get_image_features(pixels(given), output_hidden_states=True)
        of_text = model.get_text_features(torch.tensor(ids), output_hidden_states=True)
        logits = model(torch.tensor(ids), pixels(given)).logits_per_image
        hidden = [x for out in (of_image, of_text) for x in (*out.hidden_states[1:], out.pooler_output)]
        assert len(hidden) == image.num_hidden_layers + text.num_hidden_layers + 2
        return [x.numpy() for x in (*hidden, logits)]

    state, config = saved(model)
    # As older releases wrote them.
    for tower, count in (
        ("text", text.max_position_embeddings),
        ("vision", 1 + (len(given[0]) // image.patch_size) ** 2),
    ):
        state[f"{tower}_model.embeddings.position_ids"] = np.arange(count)[None]
    return Reference(state, config, (given, ids), compute)


# Names of transformers -> of OpenAI (spec A.7), written out here and not taken from smke_jax.convert.
OPENAI = {
    r"^vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"^vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"^vision_model\.embeddings\.patch_embedding": "visual.conv1",
    r"^vision_model\.pre_layrnorm": "visual.ln_pre",
    r"^vision_model\.post_layernorm": "visual.ln_post",
    r"^vision_model\.encoder\.layers": "visual.transformer.resblocks",
    r"^visual_projection\.weight": "visual.proj",
    r"^text_model\.embeddings\.token_embedding": "token_embedding",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.encoder\.layers": "transformer.resblocks",
    r"^text_model\.final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection",
    r"layer_norm(\d)\.": r"ln_\1.",
    r"self_attn\.out_proj": "attn.out_proj",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
}
HALF = re.compile(r"conv1|in_proj|out_proj|c_fc|c_proj|visual\.proj|text_projection")  # what OpenAI keeps in fp16


def as_openai(state: dict) -> dict:
    """The state of CLIPModel under OpenAI's names, with the three numbers that its archives hold."""
    renamed = {}
    for name, x in state.items():
        if name.endswith("position_ids"):
            continue
        x = x.T if name.endswith("projection.weight") else x
        for pattern, replacement in OPENAI.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = x
    for name in [name for name in renamed if ".self_attn.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("self_attn.q_proj.", "attn.in_proj_")] = np.concatenate(parts)
    patches = len(renamed["visual.positional_embedding"]) - 1
    return renamed | {
        "input_resolution": np.array(int(patches**0.5) * renamed["visual.conv1.weight"].shape[-1]),
        "context_length": np.array(len(renamed["positional_embedding"])),
        "vocab_size": np.array(len(renamed["token_embedding.weight"])),
    }


def openai(sizes: dict) -> Reference:
    reference = hf(sizes)
    return reference._replace(state=as_openai(reference.state), config={})


def open_clip(sizes: dict) -> Reference:
    """The exact GELU, and none of the three numbers."""
    exact = {**sizes, **{key: x | {"hidden_act": "gelu"} for key, x in sizes.items() if "config" in key}}
    reference = openai(exact)
    return reference._replace(
        state={name: x for name, x in reference.state.items() if x.dtype.kind == "f"},
        config={"model_cfg": {}},
    )


def outputs(model, params, given, ids) -> list:
    """Every hidden state and the features of the image tower, then of the text tower; then the scaled cosines."""
    (image, text), towers = apply(model, params, given, ids)
    image_blocks, text_blocks = (blocks_of(towers[f"{modality}_encoder"]) for modality in ("image", "text"))
    a, b = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return [*image_blocks, image, *text_blocks, text, jnp.exp(params["logit_scale"]) * a @ b.T]


CASES = [
    Case(layout, size, against, lambda make=make, sizes=sizes: make(sizes), outputs)
    for size, sizes in (("tiny", TINY), ("wide", WIDE), ("full", VIT_B_32))
    for layout, against, make in (
        ("clip-hf", "transformers CLIPModel", hf),
        ("clip-openai", "transformers CLIPModel, renamed", openai),
        ("clip-openclip", "transformers CLIPModel of another GELU, renamed", open_clip),
    )
]


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


def test_parity_with_another_activation():
    """LAION's networks in transformers' layout, whose config says so."""
    sizes = {**TINY, **{k: TINY[k] | {"hidden_act": "gelu", "layer_norm_eps": 1e-3} for k in TINY if "config" in k}}
    check(Case("clip-hf", "tiny", "gelu", lambda: hf(sizes), outputs))


def test_full_size_is_vit_b_32():
    """Spec A.1: 87,849,216 of images and 63,428,096 of text, projections included."""
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**VIT_B_32))
    state = {name: np.broadcast_to(np.float32(0), tuple(x.shape)) for name, x in theirs.state_dict().items()}
    description = LAYOUTS["clip-hf"].describe(state, theirs.config.to_dict())
    shapes = param_shapes(description)
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert sizes["image_encoder"] + sizes["image_projection"] == 87_849_216
    assert sizes["text_encoder"] + sizes["text_projection"] == 63_428_096
    assert sum(sizes.values()) == 151_277_313
    assert description["text"]["vocab_size"] == 49_408 and description["text"]["max_positions"] == 77


def source(state, config=None) -> Source:
    return Source(Path("ViT-B-32.pt"), state, config or {})


REFERENCE = hf(TINY)
OUTPUTS = REFERENCE.compute()


@pytest.fixture(scope="module")
def conversion():
    """Of REFERENCE."""
    return convert(source(REFERENCE.state, REFERENCE.config))


def test_what_follows_the_end_of_text_changes_nothing(conversion):
    model, (_, ids) = build_model(conversion.description), REFERENCE.inputs
    compiled = jax.jit(lambda params, ids: model.apply({"params": params}, ids, method="encode_text"))
    encode = functools.partial(compiled, conversion.params)
    after = np.arange(ids.shape[1]) > ids.argmax(1)[:, None]
    assert after.any()
    np.testing.assert_allclose(encode(np.where(after, 7, ids)), encode(ids), atol=1e-5)
    before = np.where(np.arange(ids.shape[1]) == 1, 7, ids)
    assert np.abs(np.asarray(encode(before)) - np.asarray(encode(ids))).max() > 0.1
    with pytest.raises(UserError, match="10 tokens long, this encoder has 9"):
        encode(np.ones((1, 10), np.int32))


def test_transformers_loads_what_we_give_back(conversion, tmp_path):
    back = to_torch(LAYOUTS["clip-hf"], conversion.params, conversion.description)
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE.config))
    model, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not info["unexpected_keys"] and not info["missing_keys"]
    given, ids = REFERENCE.inputs
    with torch.no_grad():
        logits = model(torch.tensor(ids), pixels(given)).logits_per_image.numpy()
    np.testing.assert_allclose(logits, OUTPUTS[-1], rtol=1e-5, atol=1e-5)


# ---- OpenAI's archive


class Tensors(nn.Module):
    """Tensors under given names, as TorchScript wants them: in modules, floats as parameters, the rest as buffers."""

    def __init__(self, state: dict):
        super().__init__()
        for name, x in state.items():
            inner, _, rest = name.partition(".")
            if not rest and x.dtype.kind == "f":
                self.register_parameter(name, nn.Parameter(torch.tensor(x)))
            elif not rest:
                self.register_buffer(name, torch.tensor(x))
            elif inner not in dict(self.named_children()):
                below = {n.partition(".")[2]: y for n, y in state.items() if n.startswith(f"{inner}.")}
                self.add_module(inner, Tensors(below))

    def forward(self, x):
        return x


def archive(path: Path, *, traced: bool) -> dict:
    """Writes a TorchScript archive of CLIP, mostly fp16 as OpenAI's is; returns its state."""
    state = {name: x.astype(np.float16) if HALF.search(name) else x for name, x in as_openai(REFERENCE.state).items()}
    module = Tensors(state)
    with pytest.warns(DeprecationWarning):
        (torch.jit.trace(module, torch.ones(1)) if traced else torch.jit.script(module)).save(path)
    return state


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "scripted"])
def test_an_archive_is_read_with_trust_alone(traced, tmp_path, capsys):
    state = archive(tmp_path / "ViT-B-32.pt", traced=traced)
    command = ["convert", f"--checkpoint={tmp_path}/ViT-B-32.pt", f"--out={tmp_path}/out"]
    assert main(command) != 0
    assert "TorchScript" in (said := capsys.readouterr().err) and "--trust_code" in said
    assert not (tmp_path / "out").exists()

    assert main([*command, "--trust_code"]) == 0
    said = capsys.readouterr().out
    assert "clip-openai" in said and "16-bit floats to fp32, exactly" in said
    description, params = read_description(tmp_path / "out")["model"], load_params(tmp_path / "out")
    assert description["type"] == "clip" and description["mean"][0] == 0.48145466
    assert params["logit_scale"].shape == ()
    back = to_torch(LAYOUTS["clip-openai"], params, description)
    assert set(state) - set(back) == {"input_resolution", "context_length", "vocab_size"}
    assert all(back[name].astype(state[name].dtype).tobytes() == state[name].tobytes() for name in back)

    given, ids = REFERENCE.inputs
    model = build_model(description)
    image, text = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))(params, given, ids)
    layers = TINY["vision_config"]["num_hidden_layers"]
    expected = OUTPUTS[layers], OUTPUTS[-2]  # the features
    for ours, theirs in zip((image, text), expected, strict=True):  # up to what fp16 made of the weights
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_the_numbers_in_the_archive_have_to_be_those_of_its_tensors():
    state = as_openai(REFERENCE.state)
    assert convert(source(state)).report.sound
    report = convert(source(state | {"input_resolution": np.array(16)})).report
    assert list(report.wrong) == ["input_resolution"]
    name = "text_model.embeddings.position_ids"
    report = convert(source({**REFERENCE.state, name: np.ones((1, 9))}, REFERENCE.config)).report
    assert list(report.wrong) == [name]


def without_numbers() -> dict:
    return {k: x for k, x in as_openai(REFERENCE.state).items() if x.dtype.kind == "f"}


def test_files_of_open_clip_are_not_taken_for_openais():
    """The same names, without the three numbers, and mostly another activation."""
    with pytest.raises(UserError, match="fits clip-openai and clip-openclip: say which it is. --from=clip-openai is"):
        convert(source(without_numbers()))
    tuned = convert(source(without_numbers()), "clip-openai")
    assert tuned.report.sound and tuned.description == convert(source(as_openai(REFERENCE.state))).description
    with pytest.raises(UserError, match="is no clip-openclip"):
        convert(source(as_openai(REFERENCE.state)), "clip-openclip")


@pytest.mark.parametrize("prefix", ["", "module.", "model.clip."])
def test_clip_inside_of_what_training_code_saves(prefix):
    state = {prefix + name: x for name, x in without_numbers().items()}
    conversion = convert(source(state | {"head.weight": np.ones(3, np.float32)} if prefix else state), "clip-openai")
    assert conversion.report.sound
    assert bool(prefix) == (conversion.report.ignored.get("head.weight") == f"outside of {prefix}")


def test_what_open_clip_says_beside_its_file():
    settings = {
        "model_cfg": {"vision_cfg": {"head_width": 4}, "text_cfg": {"heads": 2}, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
    }
    found = convert(source(without_numbers(), settings)).description
    assert found["image"]["activation"] == found["text"]["activation"] == "quick_gelu"
    assert found["image"]["num_heads"] == found["image"]["width"] // 4 and found["text"]["num_heads"] == 2
    assert found["mean"] == (0.1, 0.2, 0.3)
    del settings["model_cfg"]["quick_gelu"]
    assert convert(source(without_numbers(), settings)).description["image"]["activation"] == "gelu"


def test_heads_of_both_towers_cannot_be_given_at_once():
    with pytest.raises(UserError, match="leave --num_heads away"):
        convert(source(as_openai(REFERENCE.state)), num_heads=4)


def test_the_images_of_a_file_beside_may_be_normalised_otherwise(tmp_path):
    save_file(REFERENCE.state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE.config))
    assert convert(read_source(tmp_path)).description["std"] == (0.26862954, 0.26130258, 0.27577711)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert convert(read_source(tmp_path)).description["std"] == (0.5, 0.5, 0.5)

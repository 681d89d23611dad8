"""The image-text student goes out to PyTorch and comes back exactly: our own module, and the thesis author's names."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import Case, Reference, apply, blocks_of, check, check_whole, parametrized
from random_weights import images, pixels, randomise, state_of
from test_convert_data2vec2 import Data2Vec2
from torch import nn
from torch_modules import Attention
from transformers import BertConfig, BertModel

from smke_jax.activations import ACTIVATIONS
from smke_jax.convert.convert import convert
from smke_jax.convert.export import pytorch
from smke_jax.convert.export.thesis import state_dict
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.errors import UserError

MODELING = pytorch.import_modeling()
TINY = {"width": 32, "mlp": 48, "heads": 4, "depth": 2, "grid": 3, "patch": 4, "vocab": 50, "positions": 12}
BASE = {"width": 768, "mlp": 3072, "heads": 12, "depth": 6, "grid": 14, "patch": 16, "vocab": 30522, "positions": 512}
WIDE = BASE | {"depth": 2, "vocab": 500}

# ---- the thesis' modules, written here (spec 0.2, 26.7)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))


class Shared(nn.Module):
    """Pre-norm, LayerScale; padded keys get a logit of minus infinity.  -> (fc1 before GELU, output)."""

    def __init__(self, width, heads, mlp):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads, None), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x, mask):
        padding = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None, :]
        x = x + self.ls1.gamma * self.attn(self.norm1(x), padding)
        u = self.mlp.fc1(self.norm2(x))
        return u, x + self.ls2.gamma * self.mlp.fc2(F.gelu(u))


class Thesis(nn.Module):
    """S-SMKE; without `types` Transformer SHRe."""

    def __init__(self, *, width, mlp, heads, depth, grid, patch, vocab, positions, target, types, prenet=0):
        super().__init__()
        self.image_model = Data2Vec2(
            width=width, depth=depth, heads=heads, mlp=mlp, grid=grid, patch=patch, eps=1e-6, prenet=prenet
        )
        del self.image_model.recon_proj, self.image_model.modality_encoders["IMAGE"].decoder
        config = BertConfig(
            vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
            intermediate_size=mlp, max_position_embeddings=positions,
        )  # fmt: skip
        self.text_model = BertModel(config, add_pooling_layer=False)
        self.shared = Shared(width, heads, mlp)
        if types:
            self.token_type_embeddings, self.tte_scale = nn.Embedding(2, width), Scale(width)
        self.fc_norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, target)
        self.logit_scales = nn.Parameter(torch.empty(2))

    def align(self, x, mask, modality):
        if hasattr(self, "tte_scale"):
            x = x + self.tte_scale.gamma * self.token_type_embeddings.weight[modality]
        u, y = (x[:, 0] for x in self.shared(x, mask))
        return [u, y, self.head(self.fc_norm(y))]

    @torch.no_grad()
    def forward(self, image, ids, mask) -> list[np.ndarray]:
        image_states = self.image_model(image)[:-1]
        text = self.text_model(ids, mask, output_hidden_states=True)
        outputs = [
            *image_states,
            *(h * mask[:, :, None] for h in text.hidden_states[1:]),
            *self.align(image_states[-1], torch.ones(image_states[-1].shape[:2]), 1),
            *self.align(text.last_hidden_state, mask, 0),
        ]
        return [x.numpy() for x in outputs]


class Lightning(nn.Module):
    """What the author's checkpoints are of."""

    def __init__(self, model: Thesis):
        super().__init__()
        self.model = model
        self.logit_scale_target = nn.Parameter(torch.empty(()))


def inputs(sizes: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, and captions of which all but one are padded."""
    length, count = min(sizes["positions"], 24), 3 if sizes["width"] < 768 else 2
    ids = np.random.default_rng(1).integers(5, sizes["vocab"], (count, length), dtype=np.int32)
    mask = (np.arange(length) < np.array([[length], [3], [length // 2]])[:count]).astype(np.int32)
    return images(count, sizes["grid"] * sizes["patch"]), ids * mask, mask


def for_torch(image, ids, mask):
    return pixels(image), torch.tensor(ids, dtype=torch.int64), torch.tensor(mask)


def thesis(sizes: dict, **options) -> Reference:
    network = randomise(Lightning(Thesis(**sizes, **options)))
    extra = {"kd_loss_mb.target_memory_bank": np.ones((5, 3), np.float32)}
    config = {"num_heads": sizes["heads"]} if sizes["width"] < 768 else {}  # as --num_heads
    compute = lambda: network.model(*for_torch(*inputs(sizes)))  # noqa: E731
    return Reference(state_of(network) | extra, config, inputs(sizes), compute)


# ---- our own module, as it is exported


def config_of(sizes: dict, **changes) -> dict:
    """What its config.json says; `changes` are of both towers."""
    common = {"num_heads": sizes["heads"], "mlp_dim": sizes["mlp"], "norm_eps": 1e-6, "activation": "gelu"}
    tower = common | {"width": sizes["width"], "depth": sizes["depth"], "norm_order": "post"} | changes
    return {
        "image": tower | {"image_size": sizes["grid"] * sizes["patch"], "patch_size": sizes["patch"]},
        "text": tower | {
            "max_positions": sizes["positions"], "type_vocab_size": 2, "max_length": 8, "norm_eps": 1e-12,
        },
        "shared": common | {"layer_scale": 0.2},
        "vocab_size": sizes["vocab"],
        "target_dim": sizes["width"],
        "token_types": True,
        "level": "out",
        "logit_scales": {},
    }  # fmt: skip


def exported(config: dict, sizes: dict) -> Reference:
    network = randomise(MODELING.SmkeModel(MODELING.SmkeConfig(**config)))

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        image, ids, mask = inputs(sizes)
        hidden = []
        for tower, rows in ((network.image, 1), (network.text, mask[:, :, None])):
            for block in tower.blocks:
                block.register_forward_hook(
                    lambda module, given, result, rows=rows: hidden.append(result[0].numpy() * rows)
                )
        image, ids, mask = for_torch(image, ids, mask)
        encoded = [*network.encode_image(image).values(), *network.encode_text(ids, mask).values()]
        return [*hidden, *(x.numpy() for x in encoded)]

    return Reference(state_of(network), config, inputs(sizes), compute)


# ---- parity


def every_state(model, params, image, ids, mask) -> list:
    """Of our student: the output of every block, at tokens, then fc1, out and head of images and of texts."""
    results, towers = apply(model, params, image, ids, mask)
    states = [
        *blocks_of(towers["image_encoder"]), *(x * mask[:, :, None] for x in blocks_of(towers["text_encoder"])),
    ]  # fmt: skip
    return states + [result[level] for result in results for level in ("fc1", "out", "head")]


def thesis_cases(size: str, sizes: dict) -> list[Case]:
    s_smke, shre = {"target": sizes["width"], "types": True}, {"target": 1000, "types": False}
    return [
        Case("thesis", size, "PyTorch module, S-SMKE", lambda: thesis(sizes, **s_smke), every_state),
        Case("thesis", size, "PyTorch module, SHRe_T", lambda: thesis(sizes, **shre), every_state),
    ]


def hf_case(size: str, sizes: dict, against: str, **changes) -> Case:
    return Case("smke-hf", size, against, lambda: exported(config_of(sizes) | changes, sizes), every_state)


PRE = {part: config_of(TINY, norm_order="pre")[part] for part in ("image", "text")}
BARE = {"token_types": False, "shared": config_of(TINY)["shared"] | {"layer_scale": None}}
# An image tower of another family and width, and pixels of other statistics.
VIT = {key: x for key, x in config_of(TINY)["image"].items() if key != "norm_order"} | {"type": "vit", "width": 24}
OTHER = {"width": 32, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
DINOV2 = OTHER | {"image": VIT | {"layer_scale": 0.5, "patch_bias": True, "norm_embeddings": False}}
CLIP = OTHER | {"width": 40, "image": VIT | {"layer_scale": None, "patch_bias": False, "norm_embeddings": True}}
WITH_PRENET = {"target": 24, "types": True, "prenet": 1}
CASES = [
    *thesis_cases("tiny", TINY),
    Case("thesis", "tiny", "PyTorch module, prenet 1", lambda: thesis(TINY, **WITH_PRENET), every_state),
    *thesis_cases("wide", WIDE),
    *thesis_cases("full", BASE),
    hf_case("tiny", TINY, "modeling_smke.py"),
    hf_case("tiny", TINY, "modeling_smke.py, pre-norm", **PRE),
    hf_case("tiny", TINY, "modeling_smke.py, no token types or LayerScale", **BARE),
    hf_case("tiny", TINY, "modeling_smke.py, ViT of another width", **DINOV2),
    hf_case("tiny", TINY, "modeling_smke.py, CLIP's ViT, two projections", **CLIP),
    hf_case("wide", WIDE, "modeling_smke.py"),
    hf_case("full", BASE, "modeling_smke.py"),
]  # fmt: skip


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_known_to_the_exported_module(activation):
    config = config_of(TINY, activation=activation)
    config["shared"]["activation"] = activation
    check(Case("smke-hf", "tiny", activation, lambda: exported(config, TINY), every_state))


# ---- the thesis' checkpoints


@pytest.fixture(scope="module")
def s_smke():
    """(reference, conversion)"""
    reference = thesis(TINY, target=24, types=True)
    return reference, convert(Source(Path("smke.ckpt"), reference.state, reference.config), "thesis")


def test_what_is_no_parameter_here_stays_in_the_description(s_smke):
    reference, conversion = s_smke
    scales = conversion.description["logit_scales"]
    values = [scales["itc"][level] for level in ("fc1", "out")]
    np.testing.assert_array_equal(np.float32(values), reference.state["model.logit_scales"])
    assert np.float32(scales["target_itc"]["head"]) == reference.state["logit_scale_target"]
    types = {part: conversion.description[part]["type"] for part in ("image", "text", "shared")}
    assert types == {"image": "data2vec2", "text": "bert", "shared": "transformer"}
    assert conversion.report.ignored["kd_loss_mb.target_memory_bank"] == "the memory bank"


def test_the_whole_checkpoint_goes_out_as_it_came_and_loads_strictly(s_smke):
    reference, conversion = s_smke
    description = json.loads(json.dumps(conversion.description))  # as it stands in a file
    back = state_dict(conversion.params, description)
    assert set(reference.state) - set(back) == {"kd_loss_mb.target_memory_bank"}
    positions = "model.image_model.modality_encoders.IMAGE.fixed_positional_encoder.positions"
    np.testing.assert_allclose(back.pop(positions), reference.state[positions], atol=1e-6)
    assert all(x.tobytes() == reference.state[name].tobytes() for name, x in back.items())
    network = Lightning(Thesis(**TINY, target=24, types=True)).eval()
    state = {name: torch.from_numpy(x) for name, x in state_dict(conversion.params, description).items()}
    network.load_state_dict(state, strict=True)
    for ours, theirs in zip(network.model(*for_torch(*reference.inputs)), reference.compute(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_checkpoint_without_a_target_scale_goes_out_without_one(s_smke):
    """SHRe_T, and S-SMKE trained with the mean squared error."""
    reference, _ = s_smke
    state = {name: x for name, x in reference.state.items() if name != "logit_scale_target"}
    conversion = convert(Source(Path("shre.ckpt"), state, reference.config), "thesis")
    assert conversion.report.sound and set(conversion.description["logit_scales"]) == {"itc"}
    written = state_dict(conversion.params, conversion.description)["logit_scale_target"]
    assert written == pytest.approx(np.log(1 / 0.07))  # his module always has it
    assert "target_itc" not in conversion.description["logit_scales"]


def test_heads_and_depths_that_would_load_there_and_embed_otherwise(s_smke):
    _, conversion = s_smke
    towers = {part: {**conversion.description[part], "width": 48} for part in ("image", "text")}
    description = {**conversion.description, **towers}
    with pytest.raises(
        UserError, match=r"image\.num_heads is 4; the thesis' modules have 12, and would embed otherwise"
    ):
        state_dict(conversion.params, description)
    towers["text"] = {**conversion.description["text"], "depth": 1}
    with pytest.raises(UserError, match="towers have 2 and 1 layers; the thesis' modules have one number for both"):
        state_dict(conversion.params, {**conversion.description, "text": towers["text"]})


@pytest.mark.parametrize("settings", [None, SimpleNamespace(depth=12), {"smke_jax": None}])
def test_settings_that_say_nothing_change_nothing(s_smke, settings):
    reference, expected = s_smke
    config = reference.config | {"hyper_parameters": settings}
    assert convert(Source(Path("smke.ckpt"), reference.state, config)).description == expected.description


@pytest.mark.parametrize(("part", "field", "value"), [
    ("image", "norm_order", "pre"), ("text", "norm_order", "pre"), ("image", "activation", "relu"),
    ("text", "norm_eps", 1e-6), ("shared", "activation", "gelu_tanh"), ("shared", "layer_scale", None),
])  # fmt: skip
def test_what_the_thesis_modules_cannot_be_is_refused_by_its_field(s_smke, part, field, value):
    _, conversion = s_smke
    description = conversion.description | {part: conversion.description[part] | {field: value}}
    with pytest.raises(UserError, match=rf"the student's {part}\.{field} is {value!r}; the thesis' modules have"):
        state_dict(conversion.params, description)


@pytest.mark.parametrize(("changes", "message"), [
    ({"image": {"type": "vit"}}, "the student's image tower is a 'vit'; the thesis' modules have a data2vec2"),
    ({"text": {"type": "clip_text"}}, "the student's text tower is a 'clip_text'; the thesis' modules have a bert"),
    ({"width": 5}, "the student's towers differ in width; the thesis' modules have one"),
    ({"mean": (0.5, 0.5, 0.5)}, "the student's pixels have other statistics than ImageNet's"),
])  # fmt: skip
def test_other_towers_are_refused_in_one_line(s_smke, changes, message):
    own = s_smke[1].description
    changed = {key: {**own[key], **x} if isinstance(x, dict) else x for key, x in changes.items()}
    with pytest.raises(UserError, match=message) as refused:
        state_dict(s_smke[1].params, {**own, **changed})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("scales", [{}, {"itc": {"out": 1.0}}, {"itc": {"out": 1.0, "head": 1.0}}])
def test_runs_without_two_logit_scales_are_refused(s_smke, scales):
    _, conversion = s_smke
    with pytest.raises(UserError, match=r"config\.terms\.itc\.levels are not \('fc1', 'out'\)"):
        state_dict(conversion.params, conversion.description | {"logit_scales": scales})


OTHER_FORMS = [
    ({"shared": {"type": "mlp"}}, "the student's shared is a 'mlp', and in PyTorch there are transformer: use"),
    ({"image": {"type": "beit"}}, "the student's image is a 'beit', and in PyTorch there are data2vec2, vit: use"),
    (
        {"text": {"type": "clip_text"}},
        "the student's text is a 'clip_text', and in PyTorch there are bert: use --format",
    ),
    ({"shared": {"depth": 2}}, "shared.depth is 2"),
    ({"token_types_at": "before"}, "token_types_at is 'before'"),
    ({"token_type_scale": None}, "token_type_scale is None"),
]


@pytest.mark.parametrize(("changes", "message"), OTHER_FORMS)
def test_students_that_the_pytorch_file_cannot_build_are_refused(s_smke, changes, message):
    _, conversion = s_smke
    shared = {**conversion.description["shared"], **changes.get("shared", {})}
    with pytest.raises(UserError, match=message):
        pytorch.smke_config({**conversion.description, **changes, "shared": shared})


def test_the_exported_module_loads_strictly_and_its_config_says_all(s_smke):
    _, conversion = s_smke
    config = json.loads(json.dumps(pytorch.smke_config(conversion.description)))
    state = to_torch(LAYOUTS["smke-hf"], conversion.params, conversion.description)
    again = convert(Source(Path("model.safetensors"), state, config))
    assert again.layout.name == "smke-hf" and again.report.sound
    assert pytorch.smke_config(again.description) == config

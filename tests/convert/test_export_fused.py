"""Towers with a fusion encoder as an export: the card, the embeddings, and a student's tower that begins with one."""

import jax
import numpy as np
import pytest
from tiny_export import RECORD

import smke_jax
from smke_jax.convert.export.base import Network
from smke_jax.convert.export.check import Samples
from smke_jax.convert.export.write import write
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.networks.encoders import describe_encoder, load_encoder
from smke_jax.networks.fused_towers import fused_towers
from smke_jax.parts import part
from smke_jax.passes.fuse import towers

SIZES = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}
CAPTIONS = ["a red dog", "the dog runs over the snow"]


@pytest.fixture(scope="module")
def network():
    words = train_wordpiece(["a red dog runs over the blue snow"], 60)
    own = fused_towers(
        vocab_size=words.vocab_size, mask_token=words.mask_id, embed=6, text=part("bert", **SIZES, max_positions=12),
        image=part("vit", **SIZES, image_size=16, patch_size=8), fusion=part("concat", **SIZES),
    )  # fmt: skip
    params, description = own.export(jax.jit(own.init)(jax.random.key(0), {}), {})
    use = {"level": "out", "max_length": 12, "logit_scales": {"itc": {"out": 2.7}}}
    return Network(jax.device_get(params), description | use, words, RECORD)


@pytest.fixture(scope="module")
def photos():
    return [np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8) for i in range(2)]


@pytest.fixture(scope="module")
def exported(network, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused") / "export"
    likeness = write(folder, network, Samples({"image": photos}, CAPTIONS, "made-up photos"), format="flax")
    assert {"image/out", "text/out", "image_embeds", "text_embeds"} == set(likeness)
    return folder


def test_it_opens_and_embeds_as_its_towers_do(exported, network, photos):
    model = smke_jax.load(exported)
    image, text = towers(build_model(network.description), "own")
    ids, mask = network.tokenizer.encode(CAPTIONS, 12)
    expected = text.run({"own": network.params}, {"text": ids, "text_mask": mask}, None, False)["text/out"]
    found = model.encode_texts(CAPTIONS)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert model.encode_images(photos).shape == (2, 6)


def test_its_card_says_what_it_is(exported):
    card = (exported / "README.md").read_text()
    assert "Two towers with a fusion encoder: images of 16 px in patches of 8" in card
    assert "layers of the kind `concat`, which say whether an image and a caption match" in card
    assert "`start` of a `fused_towers`" in card


def test_other_networks_begin_with_its_towers(exported, network):
    for tower, kind in (("image", "vit"), ("text", "bert")):
        assert describe_encoder(str(exported), tower)["type"] == kind
        own = load_encoder(str(exported), tower)
        jax.tree.map(np.testing.assert_array_equal, own, network.params[f"{tower}_encoder"])


def test_no_other_format_has_a_fusion(network, photos, tmp_path):
    samples = Samples({"image": photos}, CAPTIONS, "made-up photos")
    for name in ("hf", "onnx", "thesis"):
        with pytest.raises(UserError, match=f"a model of type fused_towers, and --format={name} is for .*: use flax"):
            write(tmp_path / name, network, samples, format=name)

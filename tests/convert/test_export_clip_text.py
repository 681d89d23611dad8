"""A causal text tower as CLIP has it, between projections, leaves for PyTorch, transformers and onnxruntime."""

import jax
import numpy as np
import pytest
from made_up import clip_vocabulary
from odd_pictures import odd_pictures
from tiny_export import RECORD
from transformers import AutoModel, AutoProcessor

import smke_jax
from smke_jax.convert.export.base import Network
from smke_jax.convert.export.check import Samples
from smke_jax.convert.export.write import write
from smke_jax.data.clip_tokenizer import load_clip_tokenizer
from smke_jax.passes.aligned import shapes_of

SIZES = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
LENGTH = 9
# Shorter than the model's length, as long as it, longer, and empty.
CAPTIONS = ("a cat", "cat dog cat dog cat dog cat", "dog " * 40, "", "a dog's cat 12")


def network(folder, pool: str) -> Network:
    tokens = clip_vocabulary(folder, ("c a", "ca t</w>", "d o", "do g</w>"))
    photos = {
        "type": "vit", "image_size": 8, "patch_size": 4, "patch_bias": False, "norm_embeddings": True,
        "activation": "quick_gelu", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "makes": "photos",
        "image": "image", "pools": ("cls",), "layers": (), **SIZES,
    }  # fmt: skip
    words = {
        "type": "clip_text",
        "vocab_size": len(tokens),
        "max_positions": 12,
        "makes": "words",
        "pool": pool,
        **SIZES,
    }
    last = {
        "type": "projections", "image": ("photos/feature",), "text": ("words/feature",), "width": 5, "hidden": 0,
        "dropout": 0.0, "bias": False, "shared": None, "head": None,
    }  # fmt: skip
    description = {
        "type": "aligned", "level": "out", "max_length": LENGTH, "vocab_size": len(tokens),
        "logit_scales": {"itc": {"out": 2.0}}, "networks": {"photos": photos, "words": words, "student": last},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), shapes_of(description))
    return Network(params, description, load_clip_tokenizer(folder), RECORD)


def samples() -> Samples:
    return Samples({"image": [np.asarray(x.convert("RGB")) for x in odd_pictures()[:2]]}, CAPTIONS, "made up")


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pytorch_and_transformers_embed_as_the_network(tmp_path, transformers_cache, pool):
    """`write` compares the PyTorch files with the network; the library reads the export back into Flax."""
    likeness = write(tmp_path / "hf", network(tmp_path, pool), samples(), format="hf")
    assert {"image_embeds", "text_embeds"} <= set(likeness) and all(x.delta < 1e-5 for x in likeness.values())
    expected = smke_jax.load(tmp_path / "hf").encode_texts(CAPTIONS)
    assert np.ptp(expected, axis=0).min() > 0.02, "captions differ by far more than the tolerance"
    model = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    inputs = processor(text=list(CAPTIONS), padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (len(CAPTIONS), LENGTH)
    np.testing.assert_allclose(model.get_text_features(**inputs).detach(), expected, atol=1e-5)


def test_onnxruntime_takes_any_length(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    own = network(tmp_path, "cls")
    likeness = write(tmp_path / "onnx", own, samples(), format="onnx")
    assert all(x.delta < 1e-5 for x in likeness.values())
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "text.onnx")
    found = []
    for length in (5, 7, 12):
        ids, mask = own.tokenizer.encode(["a cat"], length)
        inputs = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        found += [session.run(None, inputs)[0]]
    np.testing.assert_allclose(found, found[:1] * 3, atol=1e-6)

"""A student of every family of towers, begun from a converted file, equals PyTorch in value and gradient."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch_efficientnet import EfficientNetLite
from torch_parts import assert_near, block, gradients, layer_norm, linear, quick_jit, randomised, to_torch
from transformers import (
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)
from transformers.core_model_loading import revert_weight_conversion

from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import read_description, save_params
from smke_jax.convert.rules import to_flax
from smke_jax.convert.source import Source
from smke_jax.models.build import param_shapes
from smke_jax.networks.encoders import describe_encoder, load_encoder
from smke_jax.parts import part
from smke_jax.training.build import build_part

SIZE, PATCH, LENGTH, VOCAB, WIDTH, HEADS, TARGET, KEPT = 12, 4, 5, 17, 8, 2, 5, 2
PIXELS = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3)}
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
PICTURE = {"image_size": SIZE, "patch_size": PATCH}
EAGER = {"attn_implementation": "eager"}
# EfficientNet-Lite with the multipliers below, written out as in tests/models/test_efficientnet.py.
LITE = {"type": "efficientnet_lite", "image_size": 36, "width_multiplier": 0.25, "depth_multiplier": 0.3, "width": 16,
        "num_classes": 4, **PIXELS}  # fmt: skip
STAGES = ((1, 3, 1, 1, 8), (1, 3, 2, 6, 8), (1, 5, 2, 6, 16), (1, 3, 2, 6, 24), (1, 5, 1, 6, 32), (2, 5, 2, 6, 48),
          (1, 3, 1, 6, 80))  # fmt: skip

rng = np.random.default_rng(0)
ARRAYS = {
    "image": rng.integers(0, 256, (3, 36, 36, 3), dtype=np.uint8),
    "text": rng.integers(1, VOCAB - 1, (3, LENGTH)).astype(np.int32),
    "text_mask": (np.arange(LENGTH) < [[5], [3], [2]]).astype(np.int32),
}
ARRAYS["text"][np.arange(3), ARRAYS["text_mask"].sum(1) - 1] = VOCAB - 1  # CLIP's end of text has the largest id


class Tower:
    """A PyTorch network, the layout of its file, and its first KEPT blocks as a function -> (B, L, D)."""

    def __init__(self, network, layout, layers, forward, side="image", description=None):
        self.network, self.layout, self._layers, self.forward = network, layout, layers, forward
        self.side, self.description = side, description
        generator = torch.Generator().manual_seed(0)
        for name, x in network.named_parameters():
            centre = float(x.ndim == 1 and name.endswith("weight"))
            torch.nn.init.normal_(x, centre, x[0].numel() ** -0.5 if x.ndim > 1 else 0.2, generator)
        network.double().eval()

    def state(self, arrays):
        """Those of PyTorch under the names of a file."""
        if hasattr(self.network, "config"):
            arrays = revert_weight_conversion(self.network, arrays)
        kept = {name: x.detach().float().numpy() for name, x in arrays.items() if not name.endswith("batches_tracked")}
        return LAYOUTS[self.layout].clean(kept)

    def write(self, folder: Path) -> str:
        """What `smke convert` makes of the whole network."""
        state, description = self.state(self.network.state_dict()), self.description
        if description is None:
            config, given = json.loads(self.network.config.to_json_string()), PIXELS if self.side == "image" else {}
            _, description, params, report = convert(Source(Path("weights"), state, config), self.layout, **given)
        else:  # of sizes that the layout does not tell from shapes
            params, report = to_flax(LAYOUTS[self.layout], state, description, param_shapes(description))
        assert report.sound, report
        folder.mkdir()
        save_params(folder / "params.safetensors", params, {"model": description})
        return str(folder)

    def truncate(self):
        for layers in self._layers(self.network):
            del layers[KEPT:]

    def gradient(self, path: str, tower: str):
        """That of the kept parameters, laid out as those of the tower."""
        description = read_description(path)["model"]
        for own in (description, *(description[x] for x in ("image", "text") if x in description)):
            own.update({key: KEPT for key in own if key == "depth"})
        grads = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in self.network.named_parameters()}
        grads |= {name: torch.zeros_like(x) for name, x in self.network.named_buffers()}
        params, _ = to_flax(LAYOUTS[self.layout], self.state(grads), description, param_shapes(description))
        return params[f"{tower}_encoder"] if self.layout.startswith("clip") else params


def bert():
    network = BertModel(BertConfig(**SIZES, vocab_size=VOCAB, max_position_embeddings=LENGTH, **EAGER), False)
    return Tower(network, "bert", lambda n: [n.encoder.layer], lambda n, *x: n(*x).last_hidden_state, "text")


def dinov2():
    network = Dinov2Model(Dinov2Config(**PICTURE, **SIZES, mlp_ratio=2, **EAGER))
    return Tower(network, "dinov2-hf", lambda n: [n.encoder.layer], lambda n, x: n(x).last_hidden_state)


def vit():
    network = ViTModel(ViTConfig(**PICTURE, **SIZES, layer_norm_eps=1e-6, **EAGER), add_pooling_layer=False)
    return Tower(network, "vit-hf", lambda n: [n.layers], lambda n, x: n(x).last_hidden_state)


def beit():
    settings = {"use_relative_position_bias": True, "use_mean_pooling": False, "layer_scale_init_value": 0.3}
    config = BeitConfig(**PICTURE, **SIZES, **settings, layer_norm_eps=1e-6, **EAGER)
    return Tower(
        BeitModel(config, add_pooling_layer=False), "beit-hf", lambda n: [n.layers], lambda n, x: n(x).last_hidden_state
    )


def lite():
    def forward(network, x):
        cells = network(x)[-3].flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], dim=1)

    network = EfficientNetLite(STAGES, width=16, classes=4)
    return Tower(network, "efficientnet-lite", lambda n: [], forward, description=LITE)


def clip():
    text = {**SIZES, "hidden_size": 12, "vocab_size": VOCAB, "max_position_embeddings": LENGTH,
            "eos_token_id": VOCAB - 1}  # fmt: skip
    network = CLIPModel(CLIPConfig(vision_config={**SIZES, **PICTURE}, text_config=text, projection_dim=6, **EAGER))

    def image(network, x):
        vision = network.vision_model
        return vision.post_layernorm(vision(x).last_hidden_state)

    def text_tower(network, ids, mask):
        states = network.text_model(ids).last_hidden_state  # causal: padding behind changes nothing
        ends = states[torch.arange(len(ids)), mask.sum(1) - 1]
        return torch.cat([ends[:, None], states[:, 1:]], dim=1)

    layers = lambda n: [n.vision_model.encoder.layers, n.text_model.encoder.layers]  # noqa: E731
    return Tower(network, "clip-hf", layers, {"image": image, "text": text_tower})


def tower_part(path, side):
    """The part of a config for the first KEPT blocks of the encoder in a file."""
    own = describe_encoder(path, side)
    unknown = ("type", "vocab_size", "pooler", "mean", "std", "num_classes")
    fields = {name: x for name, x in own.items() if name not in unknown}
    return part(own["type"], **fields | ({"depth": KEPT} if "depth" in own else {}))


@pytest.mark.parametrize("name", ["dinov2", "vit", "beit", "lite", "clip"])
def test_value_and_gradient_equal_pytorch(name, tmp_path):
    towers = {"image": {"dinov2": dinov2, "vit": vit, "beit": beit, "lite": lite, "clip": clip}[name]()}
    towers["text"] = towers["image"] if name == "clip" else bert()
    files = {"image": towers["image"].write(tmp_path / "image")}
    files["text"] = files["image"] if name == "clip" else towers["text"].write(tmp_path / "text")

    # ours
    images = tower_part(files["image"], "image")
    own = part(
        "two_towers", image=images, text=tower_part(files["text"], "text"), width=WIDTH, head=TARGET,
        shared=part("transformer", num_heads=HEADS, mlp_dim=12), image_start=files["image"], text_start=files["text"],
    )  # fmt: skip
    network = build_part("networks", "student", own, vocab_size=VOCAB)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    begun = network.start(shapes).params
    params = randomised(shapes, 1) | begun
    assert {"image_projection", "text_projection"} < set(params)
    size = images.image_size
    arrays = {**ARRAYS, "image": ARRAYS["image"][:, :size, :size]}
    passes = network.forward("student", {})
    weights = {f"{side}/{level}": rng.normal(size=(3, width)) for side in ("image", "text")
               for level, width in (("fc1", 12), ("out", WIDTH), ("head", TARGET))}  # fmt: skip

    @quick_jit
    def run(params):
        def total(params):
            made = {}
            for p in passes:
                made |= p.run({"student": params}, arrays, None, False)
            return sum((made[k] * w).sum() for k, w in weights.items()), {k: made[k] for k in weights}

        return jax.value_and_grad(total, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (_, made), grads = run(params)

    # PyTorch
    rest = to_torch({key: x for key, x in params.items() if not key.endswith("_encoder")})
    pixels = (torch.tensor(arrays["image"]).double() / 255 - torch.tensor(PIXELS["mean"])) / torch.tensor(PIXELS["std"])
    mask = torch.tensor(arrays["text_mask"], dtype=torch.long)
    inputs = {"image": (pixels.permute(0, 3, 1, 2),), "text": (torch.tensor(arrays["text"], dtype=torch.long), mask)}
    expected = {}
    for tower in towers.values():
        tower.truncate()
    for side, tower in towers.items():
        forward = tower.forward[side] if name == "clip" else tower.forward
        x = linear(rest[f"{side}_projection"], forward(tower.network, *inputs[side]))
        x = x + rest["type_embedding"][{"text": 0, "image": 1}[side]] * rest["type_scale"]["gamma"]
        seen = mask.bool() if side == "text" else None
        x, fc1, _ = block(rest["shared"], x, heads=HEADS, order="pre", eps=1e-6, mask=seen)
        x, fc1 = x[:, 0], fc1[:, 0]
        head = linear(rest["head"], layer_norm(rest["head_norm"], x, 1e-6))
        expected |= {f"{side}/fc1": fc1, f"{side}/out": x, f"{side}/head": head}
    sum((expected[k] * torch.tensor(w)).sum() for k, w in weights.items()).backward()

    assert_near(made, {k: x.detach().numpy() for k, x in expected.items()})
    assert_near({k: grads[k] for k in rest}, gradients(rest), 2e-5)
    for side, tower in towers.items():
        found = tower.gradient(files[side], side)
        assert_near(grads[f"{side}_encoder"], {k: found[k] for k in grads[f"{side}_encoder"]}, 2e-5)


def test_the_tower_begins_with_the_first_blocks_of_the_file(tmp_path):
    """At another size of images its positions are interpolated as PyTorch interpolates."""
    path = dinov2().write(tmp_path / "image")
    small = tower_part(path, "image")
    small.image_size = 8
    own = part("two_towers", image=small, text=part("bert", width=16, depth=1, num_heads=2, mlp_dim=8, max_positions=5),
               shared=part("transformer", num_heads=HEADS, mlp_dim=12), image_start=path)  # fmt: skip
    network = build_part("networks", "student", own, vocab_size=VOCAB)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    found, file = network.start(shapes).params["image_encoder"], load_encoder(path, "image")
    table = torch.tensor(file["position_embedding"][1:].reshape(1, 3, 3, 16).transpose(0, 3, 1, 2))
    places = torch.nn.functional.interpolate(table, size=(2, 2), mode="bicubic").numpy()
    np.testing.assert_allclose(found["position_embedding"][1:], places.transpose(0, 2, 3, 1).reshape(4, 16), atol=1e-6)
    np.testing.assert_array_equal(found["block_1"]["mlp"]["fc1"]["kernel"], file["block_1"]["mlp"]["fc1"]["kernel"])
    assert "block_2" not in found and network.sizes == {"image": 8}

"""Towers against Hugging Face and PyTorch models of random weights (float64), in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_parts import assert_near, block, gradients, layer_norm, quick_jit, randomised, to_torch
from transformers import BeitConfig, BeitModel, BertConfig, BertModel

from smke_jax.errors import UserError
from smke_jax.models.beit import Beit, relative_position_index
from smke_jax.models.teachers import Data2Vec2
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder, PatchEmbed, patchify, sincos_positions

WIDTH, DEPTH, HEADS, MLP, VOCAB = 8, 2, 2, 12, 11
SIZE, PATCH = 12, 4  # 3 × 3 patches
BLOCK = dict(width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP)
TEXT = dict(vocab_size=VOCAB, max_positions=10, **BLOCK)
IMAGE = dict(image_size=SIZE, patch_size=PATCH, **BLOCK)
LENGTHS = np.array([6, 3, 2])

rng = np.random.default_rng(0)
IDS = rng.integers(1, VOCAB, (3, 6)).astype(np.int32)  # not [PAD]: Hugging Face gives its row no gradient
MASK = (np.arange(6) < LENGTHS[:, None]).astype(np.int32)
IMAGES = rng.normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)


def random_params(model, *inputs, seed=1):
    return randomised(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"], seed)


@functools.partial(quick_jit, static_argnums=0)
def value_and_gradients(model, params, cotangent, *inputs):
    """-> (output, sown arrays, gradient of the parameters)."""
    with jax.default_matmul_precision("highest"):
        forward = lambda p: model.apply({"params": p}, *inputs, mutable=["intermediates"])  # noqa: E731
        out, vjp, sown = jax.vjp(forward, params, has_aux=True)
        return out, sown.get("intermediates", {}), vjp(cotangent)[0]


# Flax name -> HF name, written out here and not taken from smke_jax.convert.
LINEAR = {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "weight", "bias": "bias"}


def hf_block(p, prefix, names):
    """A Flax block's parameters (or gradients) under the names of a Hugging Face layer."""
    state = {}
    for path, name in names.items():
        leaf = p
        for part in path.split("/"):
            leaf = leaf[part]
        if isinstance(leaf, dict):
            for ours, value in leaf.items():
                theirs = (LINEAR if "kernel" in leaf else NORM)[ours]
                state[f"{prefix}{name}.{theirs}"] = np.asarray(value).T if ours == "kernel" else np.asarray(value)
        else:
            state[f"{prefix}{name}"] = np.asarray(leaf)
    return state


BERT_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
BEIT_LAYER = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "ls1/gamma": "lambda_1",
    "ls2/gamma": "lambda_2",
}


def bert_state(p):
    state = {
        "embeddings.word_embeddings.weight": p["word_embedding"],
        "embeddings.position_embeddings.weight": p["position_embedding"],
        "embeddings.token_type_embeddings.weight": p["type_embedding"],
    } | hf_block(p, "embeddings.", {"embedding_norm": "LayerNorm"})
    for i in range(DEPTH):
        state |= hf_block(p[f"block_{i}"], f"encoder.layer.{i}.", BERT_LAYER)
    return {k: np.asarray(v) for k, v in state.items()}


def beit_state(p):
    state = {
        "embeddings.cls_token": p["cls_token"],
        "embeddings.patch_embeddings.projection.weight": np.asarray(p["patch_embed"]["kernel"]).transpose(3, 2, 0, 1),
        "embeddings.patch_embeddings.projection.bias": p["patch_embed"]["bias"],
    } | hf_block(p, "", {"norm": "layernorm"} if "norm" in p else {})
    for i in range(DEPTH):
        state |= hf_block(p[f"block_{i}"], f"layers.{i}.", BEIT_LAYER)
        if f"relative_bias_{i}" in p:
            table = p[f"relative_bias_{i}"]["table"]
            state[f"layers.{i}.relative_position_bias.relative_position_bias_table"] = table
    if "relative_bias" in p:
        state["shared_position_bias.relative_position_bias_table"] = p["relative_bias"]["table"]
    return {k: np.asarray(v) for k, v in state.items()}


def load(model, state):
    """Strictly, in float64 and evaluation mode."""
    model = model.double().eval()
    model.load_state_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in state.items()}, strict=True)
    return model


# ---- text


def bert(params):
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=TEXT["max_positions"],
        attn_implementation="eager",
    )
    return load(BertModel(config, add_pooling_layer=False), bert_state(params))


@pytest.mark.parametrize("mask", [np.ones_like(MASK), MASK], ids=["full", "padded"])
def test_text_encoder_equals_hugging_face(mask):
    model = TextEncoder(**TEXT)
    params = random_params(model, IDS, mask)
    # Padded positions hold nothing of interest; the student never reads them.
    cotangent = np.random.default_rng(2).normal(size=(*IDS.shape, WIDTH)).astype(np.float32) * mask[:, :, None]
    out, _, grads = value_and_gradients(model, params, cotangent, IDS, mask)

    theirs = bert(params)
    expected = theirs(torch.tensor(IDS, dtype=torch.long), attention_mask=torch.tensor(mask)).last_hidden_state
    (expected * torch.tensor(cotangent)).sum().backward()
    assert_near(out * mask[:, :, None], expected.detach().numpy() * mask[:, :, None])
    expected_grads = {k: v.grad.numpy() for k, v in theirs.named_parameters()}
    assert_near(bert_state(grads), expected_grads)


def test_text_encoder_does_not_depend_on_padding():
    model = TextEncoder(**TEXT)
    params = random_params(model, IDS, MASK)
    run = functools.partial(quick_jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask)), params)
    padded = run(IDS, MASK)
    # Other ids under the padding, more padding, and none: the last caption alone.
    noisy = run(np.where(MASK == 1, IDS, 7), MASK)
    more = run(np.pad(IDS, ((0, 0), (0, 3)), constant_values=5), np.pad(MASK, ((0, 0), (0, 3))))
    for row, length in enumerate(LENGTHS):
        for other in (noisy[row], more[row]):
            np.testing.assert_allclose(other[:length], padded[row, :length], rtol=2e-5, atol=2e-5)
    alone = run(IDS[-1:, :length], MASK[-1:, :length])
    np.testing.assert_allclose(alone[0], padded[-1, :length], rtol=2e-5, atol=2e-5)


def test_text_encoder_refuses_captions_beyond_its_positions():
    ids = jnp.zeros((1, 11), jnp.int32)
    with pytest.raises(UserError, match="11 tokens long, this encoder has 10"):
        jax.eval_shape(TextEncoder(**TEXT).init, jax.random.key(0), ids, ids)


def test_text_encoder_full_size_is_bert_base():
    """Shapes of `bert-base-uncased` with 6 layers, spec 25 and 26.5."""
    model = TextEncoder(vocab_size=30522, width=768, depth=6, num_heads=12, mlp_dim=3072)
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 66_364_416
    tables = ("word_embedding", "position_embedding", "type_embedding", "embedding_norm")
    assert sum(x.size for name in tables for x in jax.tree.leaves(shapes[name])) == 23_837_184
    assert sum(x.size for x in jax.tree.leaves(shapes["block_0"])) == 7_087_872
    with torch.device("meta"):
        config = BertConfig(num_hidden_layers=6)
        theirs = {k: tuple(v.shape) for k, v in BertModel(config, add_pooling_layer=False).named_parameters()}
    assert shapes["word_embedding"].shape == theirs["embeddings.word_embeddings.weight"]
    assert shapes["position_embedding"].shape == theirs["embeddings.position_embeddings.weight"]
    assert sum(np.prod(s) for s in theirs.values()) == 66_364_416


def test_text_encoder_pre_norm_ends_with_a_norm():
    model = TextEncoder(**TEXT, norm_order="pre")
    params = random_params(model, IDS, MASK)
    out = quick_jit(model.apply)({"params": params}, IDS, MASK)
    normed = (np.asarray(out) - params["norm"]["bias"]) / params["norm"]["scale"]
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-3)
    assert "norm" not in random_params(TextEncoder(**TEXT), IDS, MASK)


# ---- BEiT


@pytest.mark.parametrize("shared,final_norm", [(True, True), (False, False)], ids=["shared bias, norm", "neither"])
def test_beit_equals_hugging_face(shared, final_norm):
    model = Beit(**IMAGE, norm_eps=1e-6, shared_bias=shared, final_norm=final_norm)
    params = random_params(model, IMAGES)
    cotangent = np.random.default_rng(3).normal(size=(len(IMAGES), WIDTH)).astype(np.float32)
    out, sown, grads = value_and_gradients(model, params, cotangent, IMAGES)

    config = BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        image_size=SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        use_relative_position_bias=not shared,
        use_shared_relative_position_bias=shared,
        use_mean_pooling=not final_norm,  # HF's switch of the final norm
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    state, grad_state = beit_state(params), beit_state(grads)
    theirs = load(BeitModel(config, add_pooling_layer=False), state)
    pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2), dtype=torch.float64)
    sequence = theirs(pixels).last_hidden_state
    (sequence[:, 0] * torch.tensor(cotangent)).sum().backward()
    assert_near(out, sequence[:, 0].detach().numpy())
    assert_near(sown["tokens"][0], sequence[:, 1:].detach().numpy())
    assert_near(grad_state, {k: v.grad.numpy() for k, v in theirs.named_parameters()})


@pytest.mark.parametrize("grid", [1, 2, 3, 14])
def test_relative_position_index(grid):
    """Spec 26.1, entry by entry: (dy + g-1)(2g-1) + (dx + g-1), then [CLS]→patch, patch→[CLS], [CLS]→[CLS]."""
    index = relative_position_index(grid)
    patches, span = grid * grid, 2 * grid - 1
    assert index.shape == (1 + patches, 1 + patches)
    assert index[0, 0] == span**2 + 2
    for p in range(patches):
        assert index[0, 1 + p] == span**2
        assert index[1 + p, 0] == span**2 + 1
    for query in range(patches):
        for key in range(0, patches, 1 if grid < 5 else 17):
            dy, dx = query // grid - key // grid, query % grid - key % grid
            assert index[1 + query, 1 + key] == (dy + grid - 1) * span + dx + grid - 1
    if grid == 14:  # the checkpoint's table has 732 rows
        assert index.max() == 731 and set(index.ravel()) == set(range(732))


def test_beit_full_size_is_beit_v2_base():
    model = Beit(image_size=224, patch_size=16, width=768, depth=12, num_heads=12, mlp_dim=3072)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert shapes["relative_bias"]["table"].shape == (732, 12)
    # Spec 25, "BEiT v2 used part", counts the file's mask token, which nothing reads.
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 85_666_128 - 768


# ---- Data2Vec2

ONE_BLOCK = IMAGE | {"depth": 1}  # the text encoder shows that several are chained


def independent_positions(grid: int, width: int) -> np.ndarray:
    """Channel by channel: sin then cos of x, sin then cos of y, frequencies 1 / 10000^(4i / width)."""
    table = np.zeros((grid * grid, width))
    quarter = width // 4
    for y in range(grid):
        for x in range(grid):
            for i in range(quarter):
                omega = 1 / 10000 ** (4 * i / width)
                values = (np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega))
                for part, value in enumerate(values):
                    table[y * grid + x, part * quarter + i] = value
    return table


@pytest.mark.parametrize("grid,width", [(3, 8), (14, 64)])
def test_sincos_positions(grid, width):
    np.testing.assert_allclose(sincos_positions(grid, width), independent_positions(grid, width), atol=1e-6)
    with pytest.raises(UserError, match="divisible by 4, not 6"):
        sincos_positions(2, 6)


def torch_image_encoder(p, images, order, eps=1e-6):
    x = torch.nn.functional.conv2d(
        torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64),
        p["patch_embed"]["kernel"].permute(3, 2, 0, 1),
        p["patch_embed"]["bias"],
        stride=PATCH,
    )
    x = x.flatten(2).transpose(1, 2) + torch.tensor(independent_positions(SIZE // PATCH, WIDTH))
    x = torch.cat([p["cls_token"].expand(len(images), 1, WIDTH), x], dim=1)
    if order == "post":
        x = layer_norm(p["norm"], x, eps)
    for i in range(ONE_BLOCK["depth"]):
        x = block(p[f"block_{i}"], x, heads=HEADS, order=order, eps=eps)[0]
    return layer_norm(p["norm"], x, eps) if order == "pre" else x


@pytest.mark.parametrize("order", ["post", "pre"])
def test_image_encoder_equals_pytorch(order):
    model = ImageEncoder(**ONE_BLOCK, norm_order=order)
    params = random_params(model, IMAGES)
    cotangent = np.random.default_rng(4).normal(size=(len(IMAGES), 10, WIDTH)).astype(np.float32)
    out, _, grads = value_and_gradients(model, params, cotangent, IMAGES)
    reference = to_torch(params)
    expected = torch_image_encoder(reference, IMAGES, order)
    (expected * torch.tensor(cotangent)).sum().backward()
    assert_near(out, expected.detach().numpy())
    assert_near(grads, gradients(reference))

    if order == "post":
        teacher = Data2Vec2(**ONE_BLOCK)
        feature = quick_jit(teacher.apply)({"params": params}, IMAGES)
        np.testing.assert_allclose(feature, out[:, 0], rtol=1e-4, atol=1e-5)
        shapes = jax.eval_shape(teacher.init, jax.random.key(0), IMAGES)["params"]
        assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_patch_embed_is_the_convolution():
    model = PatchEmbed(PATCH, WIDTH)
    patches = patchify(jnp.asarray(IMAGES), PATCH)
    params = random_params(model, patches)
    ours = jax.jit(model.apply)({"params": params}, patches)
    expected = torch.nn.functional.conv2d(
        torch.tensor(IMAGES.transpose(0, 3, 1, 2)),
        torch.tensor(params["kernel"].transpose(3, 2, 0, 1)),
        torch.tensor(params["bias"]),
        stride=PATCH,
    )
    np.testing.assert_allclose(ours, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_wrong_image_sizes_are_refused():
    with pytest.raises(ValueError, match=r"takes \(12, 12, 3\)"):
        jax.eval_shape(ImageEncoder(**ONE_BLOCK).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(UserError, match="12 is no multiple of the patch size 5"):
        jax.eval_shape(ImageEncoder(**ONE_BLOCK | {"patch_size": 5}).init, jax.random.key(0), IMAGES)


# ---- token dropping


@functools.partial(quick_jit, static_argnums=0)
def dropped(model, params, images, key):
    return model.apply({"params": params}, images, deterministic=False, rngs={"dropout": key})


STEM = ONE_BLOCK | {"depth": 0}


@pytest.mark.parametrize("share,kept", [(0.5, 4), (0.25, 7), (0.9, 1)])
def test_token_drop_keeps_the_right_number_and_only_in_training(share, kept):
    model, whole = ImageEncoder(**STEM, token_drop=share), ImageEncoder(**STEM)
    params = random_params(whole, IMAGES)
    assert dropped(model, params, IMAGES, jax.random.key(0)).shape == (3, 1 + kept, WIDTH)
    evaluated = quick_jit(lambda params: [one.apply({"params": params}, IMAGES) for one in (model, whole)])(params)
    np.testing.assert_array_equal(*evaluated)


def test_token_drop_positions_travel_with_their_patches():
    """Depth 0: each output token is LN(patch + its position), so every kept patch is found among the full ones."""
    model = ImageEncoder(**STEM, token_drop=0.5)
    images = np.random.default_rng(5).normal(size=(32, SIZE, SIZE, 3)).astype(np.float32)
    params = random_params(model, images)
    whole = np.asarray(quick_jit(model.apply)({"params": params}, images))  # (B, 10, D)
    part = np.asarray(dropped(model, params, images, jax.random.key(7)))  # (B, 5, D)
    assert part.shape == (32, 5, WIDTH)
    np.testing.assert_allclose(part[:, 0], whole[:, 0], atol=1e-5)
    distance = np.abs(part[:, 1:, None] - whole[:, None, 1:]).max(-1)  # (B, 4, 9)
    assert np.all(distance.min(-1) < 1e-4)
    origin = distance.argmin(-1)
    subsets = [tuple(sorted(row)) for row in origin]
    assert all(len(set(row)) == 4 for row in subsets), "a patch was drawn twice"
    assert len(set(subsets)) > 16, "rows share their subsets"
    counts = np.bincount(origin.ravel(), minlength=9)
    assert counts.min() >= 4, f"some patch is hardly ever kept: {counts}"  # 14 expected of each

    again = np.asarray(dropped(model, params, images, jax.random.key(7)))
    np.testing.assert_array_equal(part, again)
    assert np.abs(part - np.asarray(dropped(model, params, images, jax.random.key(8)))).max() > 0.1


def test_token_drop_equals_encoding_the_kept_patches():
    """The blocks see only the kept tokens: the output is that of PyTorch on the same selection."""
    model, stem = ImageEncoder(**ONE_BLOCK, token_drop=0.5), ImageEncoder(**STEM, token_drop=0.5)
    params = random_params(model, IMAGES)
    key = jax.random.key(9)
    with jax.default_matmul_precision("highest"):
        out = np.asarray(dropped(model, params, IMAGES, key))
        tokens = np.asarray(dropped(stem, {k: v for k, v in params.items() if "block" not in k}, IMAGES, key))
    reference, x = to_torch(params), torch.tensor(tokens, dtype=torch.float64)
    for i in range(ONE_BLOCK["depth"]):
        x = block(reference[f"block_{i}"], x, heads=HEADS, order="post", eps=1e-6)[0]
    assert_near(out, x.detach().numpy())

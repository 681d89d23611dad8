"""BEiT comes in exactly from unilm, timm and transformers, and for images of another size."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import Case, Reference, block_outputs, check
from random_weights import images, pixels, randomise, state_of
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionModel,
)

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.interpolate import for_image_size, resize_table
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import fit, load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.models.build import build_model, param_shapes

TINY = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "grid": 3, "patch": 4}
BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "grid": 14, "patch": 16}

# ---- the network of unilm and timm, written here


def position_index(grid: int) -> torch.Tensor:
    """Spec 26.1, entry by entry."""
    span, patches = 2 * grid - 1, grid * grid
    index = torch.empty(1 + patches, 1 + patches, dtype=torch.int64)
    for query in range(patches):
        for key in range(patches):
            dy, dx = query // grid - key // grid, query % grid - key % grid
            index[1 + query, 1 + key] = (dy + grid - 1) * span + dx + grid - 1
    index[0, :], index[:, 0], index[0, 0] = span**2, span**2 + 1, span**2 + 2
    return index


def add_positions(module: nn.Module, heads: int, grid: int) -> None:
    module.relative_position_bias_table = nn.Parameter(torch.empty((2 * grid - 1) ** 2 + 3, heads))
    module.register_buffer("relative_position_index", position_index(grid))


def bias_of(module: nn.Module) -> torch.Tensor:
    return module.relative_position_bias_table[module.relative_position_index].permute(2, 0, 1)  # (H, 1+N, 1+N)


class Attention(nn.Module):
    def __init__(self, width, heads, grid):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)
        if grid:
            add_positions(self, heads, grid)

    def forward(self, x, shared):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q + self.q_bias, k, v + self.v_bias))
        bias = bias_of(self) if shared is None else shared
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, mlp, grid):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.attn, self.mlp = Attention(width, heads, grid), Mlp(width, mlp)

    def forward(self, x, shared):
        x = x + self.gamma_1 * self.attn(self.norm1(x), shared)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class Unilm(nn.Module):
    """With one table and all that pretraining adds, or fine-tuned: a table in each block, and a mean-pooled head."""

    def __init__(self, *, width, depth, heads, mlp, grid, patch, finetuned):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, grid if finetuned else None) for _ in range(depth))
        if finetuned:
            self.fc_norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        else:
            self.rel_pos_bias = nn.Module()
            add_positions(self.rel_pos_bias, heads, grid)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            self.lm_head = nn.Linear(width, 7)
            self.cls_pt_layers = nn.ModuleList([Block(width, heads, mlp, None)])

    @torch.no_grad()
    def forward(self, x) -> list[torch.Tensor]:
        """The output of every block, then the feature."""
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        shared = bias_of(self.rel_pos_bias) if hasattr(self, "rel_pos_bias") else None
        hidden = []
        for block in self.blocks:
            x = block(x, shared)
            hidden.append(x)
        return [*hidden, (self.norm(x) if hasattr(self, "norm") else x)[:, 0]]


def unilm(sizes: dict, *, finetuned: bool) -> Reference:
    network = randomise(Unilm(**sizes, finetuned=finetuned))
    given = images(1 if sizes is BASE else 3, sizes["grid"] * sizes["patch"])
    return Reference(state_of(network), {}, (given,), [h.numpy() for h in network(pixels(given))])


def timm(sizes: dict) -> Reference:
    """As older releases wrote it: k_bias buffers of zeros; and as newer ones do: no index."""
    reference = unilm(sizes, finetuned=True)
    state = {name: x for name, x in reference.state.items() if not name.endswith("relative_position_index")}
    zeros = {f"blocks.{i}.attn.k_bias": np.zeros(sizes["width"], np.float32) for i in range(sizes["depth"])}
    return reference._replace(state=state | zeros)


# ---- transformers


def hf(kind, sizes: dict, **settings) -> Reference:
    """A network of transformers, its file as `save_pretrained` writes it."""
    settings_of = Data2VecVisionConfig if "Data2Vec" in kind.__name__ else BeitConfig
    config = settings_of(
        hidden_size=sizes["width"], num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"],
        intermediate_size=sizes["mlp"], image_size=sizes["grid"] * sizes["patch"], patch_size=sizes["patch"],
        vocab_size=7, num_labels=5, attn_implementation="eager", **settings,
    )  # fmt: skip
    network = randomise(kind(config))
    encoder = getattr(network, network.base_model_prefix, network)
    given = images(1 if sizes is BASE else 3, config.image_size)
    with torch.no_grad():
        out = encoder(pixels(given), output_hidden_states=True)
        last = network.layernorm(out.last_hidden_state) if hasattr(network, "lm_head") else out.last_hidden_state
    hidden = [h.numpy() for h in (*out.hidden_states[1:], last[:, 0])]
    assert len(hidden) == sizes["depth"] + 1
    with tempfile.TemporaryDirectory() as directory:
        network.save_pretrained(directory)
        written = json.loads(Path(directory, "config.json").read_text())
        return Reference(load_file(Path(directory, "model.safetensors")), written, (given,), hidden)


SHARED = {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True}
OWN = {"use_relative_position_bias": True}


def cases(size: str, sizes: dict) -> list[Case]:
    module = "PyTorch module"
    return [
        Case("beit-unilm", size, f"{module}, pretrained", lambda: unilm(sizes, finetuned=False)),
        Case("beit-unilm", size, f"{module}, fine-tuned", lambda: unilm(sizes, finetuned=True)),
        Case("beit-hf", size, "transformers BeitModel, one table", lambda: hf(BeitModel, sizes, **SHARED)),
        Case("beit-hf", size, "transformers BeitModel, own tables", lambda: hf(BeitModel, sizes, **OWN)),
        Case("beit-hf", size, "transformers Data2VecVisionModel", lambda: hf(Data2VecVisionModel, sizes, **SHARED)),
    ]


CASES = [*cases("tiny", TINY), *cases("full", BASE)]
MORE = {
    "timm": ("beit-unilm", lambda: timm(TINY)),
    "masked pretraining": (
        "beit-hf", lambda: hf(BeitForMaskedImageModeling, TINY, **SHARED | {"use_mean_pooling": True}),
    ),
    "classifier": ("beit-hf", lambda: hf(BeitForImageClassification, TINY, **OWN)),
    "Data2Vec classifier": ("beit-hf", lambda: hf(Data2VecVisionForImageClassification, TINY, **OWN)),
    "relu, other eps": ("beit-hf", lambda: hf(BeitModel, TINY, **OWN, hidden_act="relu", layer_norm_eps=1e-3)),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{c.against}, {c.size}", marks=pytest.mark.slow if c.size == "full" else ()) for c in CASES],
)
def test_parity(case):
    check(case)


@pytest.mark.parametrize("form", MORE)
def test_parity_of_other_forms(form):
    layout, make = MORE[form]
    check(Case(layout, "tiny", form, make))


# ---- what is left out, given back, and refused


def source(state, config=None) -> Source:
    return Source(Path("beit.pth"), state, config or {}, "")


PRETRAINED, FINETUNED = (unilm(TINY, finetuned=x).state for x in (False, True))


def test_a_wrapper_is_taken_off_and_heads_are_left_out():
    conversion = convert(source({f"module.{name}": x for name, x in PRETRAINED.items()}))
    assert conversion.report.sound and conversion.description["shared_bias"] and conversion.description["final_norm"]
    left_out = {name.split(".")[0] for name in conversion.report.ignored}
    assert left_out == {"mask_token", "lm_head", "cls_pt_layers", "rel_pos_bias"}
    conversion = convert(source(FINETUNED))
    assert not conversion.description["shared_bias"] and not conversion.description["final_norm"]
    assert {name.split(".")[0] for name in conversion.report.ignored} == {"fc_norm", "head", "blocks"}


def test_a_teacher_without_last_norm_takes_a_file_that_has_one():
    conversion = convert(source(PRETRAINED))
    target = param_shapes(conversion.description | {"final_norm": False})
    assert "norm" not in target and set(fit(target, conversion.params, source="beit")) == set(target)
    with pytest.raises(UserError, match="missing norm/bias"):
        fit(param_shapes(conversion.description), fit(target, conversion.params, source="beit"), source="beit")


def test_names_of_transformers_in_memory_are_those_of_its_files():
    """`torch.save(model.state_dict())` gives other names than `save_pretrained`."""
    for kind, settings in ((BeitModel, OWN), (BeitForMaskedImageModeling, SHARED)):
        torch.manual_seed(0)
        saved = hf(kind, TINY, **settings)
        sizes = {k: v for k, v in saved.config.items() if k in BeitConfig.__dataclass_fields__}
        in_memory = state_of(randomise(kind(BeitConfig(**sizes))))
        a, b = (convert(source(state, saved.config)) for state in (saved.state, in_memory))
        assert a.report.sound and b.report.sound and a.description == b.description
        assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))


def test_two_last_norms_are_kept_apart():
    """Masked pretraining with transformers' use_mean_pooling False: the encoder's norm is the encoder's."""
    reference = hf(BeitForMaskedImageModeling, TINY, **SHARED)
    conversion = convert(source(reference.state, reference.config))
    assert np.array_equal(conversion.params["norm"]["scale"], reference.state["beit.layernorm.weight"])
    assert "head.layernorm.weight" in conversion.report.ignored


@pytest.mark.parametrize("kind", [BeitModel, Data2VecVisionModel])
def test_transformers_loads_what_we_give_back(kind, tmp_path):
    reference = hf(kind, TINY, **OWN)
    conversion = convert(source(reference.state, reference.config))
    back = to_torch(LAYOUTS["beit-hf"], conversion.params, conversion.description)
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(reference.config))
    network, info = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not info["unexpected_keys"] and {name.split(".")[0] for name in info["missing_keys"]} <= {"pooler"}
    with torch.no_grad():
        out = network(pixels(*reference.inputs)).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(out, reference.outputs[-1], atol=1e-6)


def without(state, *starts):
    return {name: x for name, x in state.items() if not name.startswith(starts)}


def changed(state, name, x):
    assert name in state
    return state | {name: x}


INDEX = "rel_pos_bias.relative_position_index"
BAD = {
    "missing layer": (without(PRETRAINED, "blocks.1."), "missing     blocks.1.attn.qkv.weight"),
    "missing table": (
        without(FINETUNED, "blocks.2.attn.relative_position_bias_table"),
        "missing     blocks.2.attn.relative_position_bias_table",
    ),
    "table of another size": (
        changed(FINETUNED, "blocks.1.attn.relative_position_bias_table", np.ones((52, 4), np.float32)),
        "wrong       blocks.1.attn.relative_position_bias_table: shape (52, 4) gives (52, 4) for "
        "relative_bias_1/table, which is (28, 4)",
    ),
    "table of no grid": (
        changed(PRETRAINED, "rel_pos_bias.relative_position_bias_table", np.ones((30, 4), np.float32)),
        "wrong       rel_pos_bias.relative_position_bias_table: shape (30, 4)",
    ),
    "other index": (
        changed(PRETRAINED, INDEX, PRETRAINED[INDEX].T),
        f"wrong       {INDEX}: a fixed value that differs from the one this model computes",
    ),
    "key bias": (
        PRETRAINED | {"blocks.0.attn.k_bias": np.ones(32, np.float32)},
        "wrong       blocks.0.attn.k_bias: a fixed value",
    ),
    "learned positions": (
        PRETRAINED | {"pos_embed": np.zeros((1, 10, 32), np.float32)},
        "unexpected  pos_embed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused(what, tmp_path, capsys):
    state, says = BAD[what]
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, tmp_path / "bad.safetensors")
    assert main(["convert", f"--checkpoint={tmp_path}/bad.safetensors", f"--out={tmp_path}/out"]) != 0
    said = capsys.readouterr()
    assert says in said.out and "does not fit beit-unilm, see above; nothing was written" in said.err
    assert not (tmp_path / "out").exists()


def test_fewer_layers_than_the_config_says_are_refused():
    reference = hf(BeitModel, TINY, **OWN)
    report = convert(source(reference.state, reference.config | {"num_hidden_layers": 4})).report
    assert "encoder.layer.3.lambda_1" in report.missing and not report.wrong


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_sixteen_bits_are_widened(dtype):
    state = {name: x if x.dtype == np.int64 else x.astype(dtype) for name, x in PRETRAINED.items()}
    conversion = convert(source(state))
    assert conversion.report.sound and len(conversion.report.widened) == len(conversion.report.mapped)


# ---- images of another size


@pytest.mark.parametrize("new", [2, 3, 5, 7])
def test_tables_are_resized_as_pytorch_does(new):
    table = np.random.default_rng(0).normal(size=(28, 4)).astype(np.float32)
    resized = resize_table(table, 3, new)
    offsets = torch.tensor(table[:-3].reshape(1, 5, 5, 4).transpose(0, 3, 1, 2))
    span = 2 * new - 1
    expected = F.interpolate(offsets, size=(span, span), mode="bicubic", align_corners=False, antialias=True)
    assert resized.shape == (span**2 + 3, 4)
    np.testing.assert_allclose(resized[:-3], expected[0].permute(1, 2, 0).reshape(-1, 4).numpy(), atol=1e-5)
    assert np.array_equal(resized[-3:], table[-3:])
    if new == 3:
        assert np.array_equal(resized, table)


def test_a_smooth_table_stays_smooth():
    def table(grid):  # of the offsets as shares of the image, both of its sides being 1
        y, x = np.meshgrid(*[(np.arange(2 * grid - 1) + 0.5) / (2 * grid - 1)] * 2, indexing="ij")
        smooth = np.stack([np.sin(2 * y + x), np.cos(3 * x * y)], -1)
        return np.concatenate([smooth.reshape(-1, 2), np.ones((3, 2))]).astype(np.float32)

    for new in (7, 24):
        np.testing.assert_allclose(resize_table(table(14), 14, new), table(new), atol=0.02)


@pytest.mark.parametrize("state", [PRETRAINED, FINETUNED], ids=["one table", "own tables"])
def test_a_network_runs_at_another_size(state):
    conversion = convert(source(state))
    same, description = for_image_size(conversion.params, conversion.description, 12)
    assert description == conversion.description
    assert jax.tree.all(jax.tree.map(np.array_equal, same, conversion.params))
    params, description = for_image_size(conversion.params, conversion.description, 20)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, param_shapes(description))
    assert block_outputs(build_model(description), params, images(1, 20))[0].shape == (1, 26, 32)


def test_the_command_resizes(tmp_path, capsys):
    save_file(PRETRAINED, tmp_path / "beit.safetensors")
    command = ["convert", f"--checkpoint={tmp_path}/beit.safetensors", f"--out={tmp_path}/out"]
    assert main([*command, "--image_size=21"]) != 0
    assert "image size 21 is no multiple of the patch size 4" in capsys.readouterr().err
    assert main([*command, "--image_size=20"]) == 0
    assert read_description(tmp_path / "out")["model"]["image_size"] == 20
    assert load_params(tmp_path / "out")["relative_bias"]["table"].shape == (84, 4)

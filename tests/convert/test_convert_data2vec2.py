"""Data2Vec2's image encoder comes in exactly from fairseq's files, with and without prenet."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import Case, Reference, check, check_whole, parametrized
from random_weights import images, pixels, randomise, state_of
from torch import nn

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.params_file import fit, load_params, read_description
from smke_jax.convert.source import Source
from smke_jax.models.vision import ImageEncoder

TINY = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "grid": 3, "patch": 4, "eps": 1e-3}
BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "grid": 14, "patch": 16, "eps": 1e-6}
WIDE = BASE | {"depth": 3}  # with a prenet of two blocks and one that is shared
IMAGE = "modality_encoders.IMAGE."


@functools.cache
def positions(grid: int, width: int) -> torch.Tensor:
    """(1, grid², width): sine and cosine of x, then of y, entry by entry; never on the meta device."""
    quarter = width // 4
    table = np.empty((1, grid * grid, width))
    for patch in range(grid * grid):
        for half, place in enumerate((patch % grid, patch // grid)):
            for i in range(quarter):
                angle = place / 10000 ** (i / quarter)
                table[0, patch, 2 * half * quarter + i] = math.sin(angle)
                table[0, patch, (2 * half + 1) * quarter + i] = math.cos(angle)
    return torch.tensor(table, dtype=torch.float32, device="cpu")


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Post-norm (spec 0.2)."""

    def __init__(self, width, heads, mlp, eps):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn, self.mlp = Attention(width, heads), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp.fc2(F.gelu(self.mlp.fc1(x))))


class Data2Vec2(nn.Module):
    """The stem and prenet are the modality's own, the other blocks shared; fairseq norms before the prenet."""

    def __init__(self, *, width, depth, heads, mlp, grid, patch, eps, prenet):
        super().__init__()
        encoder = nn.Module()
        encoder.extra_tokens = nn.Parameter(torch.empty(1, 1, width))
        for part in ("local_encoder", "fixed_positional_encoder", "context_encoder", "decoder"):
            setattr(encoder, part, nn.Module())
        encoder.local_encoder.proj = nn.Conv2d(3, width, patch, patch)
        encoder.fixed_positional_encoder.register_buffer("positions", positions(grid, width))
        encoder.context_encoder.norm = nn.LayerNorm(width, eps=eps)
        encoder.decoder.proj = nn.Linear(width, 5)

        def blocks(count):
            return nn.ModuleList(Block(width, heads, mlp, eps) for _ in range(count))

        encoder.context_encoder.blocks, self.blocks = blocks(prenet), blocks(depth - prenet)
        self.modality_encoders = nn.ModuleDict({"IMAGE": encoder})
        self.recon_proj = nn.Linear(width, width)

    @torch.no_grad()
    def forward(self, x) -> list[torch.Tensor]:
        """The output of every block, those of the prenet among them, then the last [CLS]."""
        encoder = self.modality_encoders["IMAGE"]
        x = encoder.local_encoder.proj(x).flatten(2).transpose(1, 2) + encoder.fixed_positional_encoder.positions
        x = encoder.context_encoder.norm(torch.cat([encoder.extra_tokens.expand(len(x), -1, -1), x], 1))
        hidden = []
        for block in (*encoder.context_encoder.blocks, *self.blocks):
            x = block(x)
            hidden.append(x)
        return [*hidden, x[:, 0]]


def settings(sizes: dict, prenet: int) -> dict:
    """What the file says of its model, as far as it is read."""
    image = {"prenet_depth": prenet, "patch_size": sizes["patch"]}
    model = {"depth": sizes["depth"] - prenet, "num_heads": sizes["heads"], "norm_eps": sizes["eps"]}
    return {"model": model | {"modalities": {"image": image, "audio": None}}}


def fairseq(sizes: dict, prenet: int) -> Reference:
    network = randomise(Data2Vec2(**sizes, prenet=prenet))
    state = state_of(network) | {"_ema.blocks.0.norm1.weight": np.ones(sizes["width"], np.float32)}
    given = images(3 if sizes["width"] < 768 else 1, sizes["grid"] * sizes["patch"])
    compute = lambda: [h.numpy() for h in network(pixels(given))]  # noqa: E731
    return Reference(state, {"cfg": settings(sizes, prenet)}, (given,), compute)


def cases(size: str, sizes: dict) -> list[Case]:
    return [
        Case("data2vec2-fairseq", size, "PyTorch module, prenet 0", lambda: fairseq(sizes, 0)),
        Case("data2vec2-fairseq", size, "PyTorch module, prenet 2", lambda: fairseq(sizes, 2)),
    ]


CASES = [*cases("tiny", TINY), *cases("wide", WIDE), *cases("full", BASE)]


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


PRENET_0, PRENET_2 = (fairseq(TINY, prenet) for prenet in (0, 2))


@pytest.fixture(scope="module")
def conversion():
    """Of PRENET_2."""
    return convert(source(PRENET_2))


def source(reference: Reference, **changes) -> Source:
    return Source(Path("base_imagenet.pt"), reference.state | changes, reference.config)


def test_what_is_left_out_is_said(conversion):
    left_out = {name.removeprefix(IMAGE).split(".")[0] for name in conversion.report.ignored}
    assert left_out == {"_ema", "decoder", "recon_proj", "fixed_positional_encoder"}
    assert conversion.report.mapped["blocks.2.norm1.weight"] == ("block_2/norm1/scale",)  # its first shared block
    assert conversion.description["depth"] == 3 and conversion.description["norm_eps"] == 1e-3


def test_without_settings_the_usual_sizes_are_taken():
    given = fairseq(TINY | {"width": 192, "heads": 3, "eps": 1e-6}, 0)
    assert convert(Source(Path("d2v2.pt"), given.state, {})).description == convert(source(given)).description


@pytest.mark.parametrize("reference", [PRENET_0, PRENET_2], ids=["prenet 0", "prenet 2"])
def test_a_student_takes_the_first_blocks(reference):
    conversion = convert(source(reference))
    fields = {k: v for k, v in conversion.description.items() if k in ImageEncoder.__dataclass_fields__}
    student = ImageEncoder(**fields | {"depth": 2})
    target = jax.eval_shape(student.init, jax.random.key(0), *reference.inputs)["params"]
    params = fit(target, conversion.params, source="base_imagenet.pt")
    with jax.default_matmul_precision("highest"):
        out = jax.jit(lambda params, x: student.apply({"params": params}, x))(params, *reference.inputs)
    np.testing.assert_allclose(out, reference.compute()[1], atol=2e-5)


def test_the_command_reads_a_file_of_fairseq(conversion, tmp_path):
    tensors = {name: torch.tensor(x) for name, x in PRENET_2.state.items() if not name.startswith("_ema")}
    nested = tensors | {"_ema": {"blocks.0.norm1.weight": torch.ones(32)}}
    torch.save({"cfg": PRENET_2.config["cfg"], "model": nested, "args": None}, tmp_path / "base_imagenet.pt")
    out = tmp_path / "out"
    assert main(["convert", f"--checkpoint={tmp_path}/base_imagenet.pt", f"--out={out}"]) == 0
    assert read_description(out)["model"] == json.loads(json.dumps(conversion.description))
    assert jax.tree.all(jax.tree.map(np.array_equal, load_params(out), conversion.params))


def test_images_of_another_size_are_refused(tmp_path, capsys):
    torch.save({name: torch.tensor(x) for name, x in PRENET_0.state.items()}, tmp_path / "d2v2.pt")
    command = ["convert", f"--checkpoint={tmp_path}/d2v2.pt", f"--out={tmp_path}/out", "--num_heads=4"]
    assert main([*command, "--image_size=20"]) != 0
    assert "a model of type 'data2vec2' has no table of positions in the image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def without(reference, *starts) -> Reference:
    return reference._replace(state={k: x for k, x in reference.state.items() if not k.startswith(starts)})


def test_bad_files_are_reported():
    report = convert(source(without(PRENET_0, "blocks.1."))).report
    assert "blocks.1.attn.qkv.weight" in report.missing and not report.unexpected
    report = convert(source(without(PRENET_0, "blocks.2."))).report  # the settings in the file say how many there are
    assert "blocks.2.attn.qkv.weight" in report.missing
    name = IMAGE + "fixed_positional_encoder.positions"
    report = convert(source(PRENET_0, **{name: PRENET_0.state[name] + 0.01})).report
    assert report.wrong == {name: "a fixed value that differs from the one this model computes"}
    report = convert(source(PRENET_0, **{"norm.weight": np.ones(32, np.float32)})).report
    assert report.unexpected == ["norm.weight"]  # pre-norm


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_sixteen_bits_are_widened(dtype):
    given = PRENET_0._replace(state={name: x.astype(dtype) for name, x in PRENET_0.state.items()})
    conversion = convert(source(given))
    assert conversion.report.sound and len(conversion.report.widened) == len(conversion.report.mapped)

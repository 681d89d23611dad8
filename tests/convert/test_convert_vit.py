"""Plain Vision Transformers come in exactly: DINO, DINOv2, timm's and AugReg's, in all their names."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from parity import Case, Reference, check, check_whole, parametrized
from random_weights import images, pixels, randomise, saved, state_of
from renamed_vit import as_npz, as_timm
from safetensors.numpy import save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.interpolate import for_image_size
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source, read_source
from smke_jax.errors import UserError
from smke_jax.models.build import build_model, param_shapes

# Heads of 64 channels, which is what files that do not tell their number have.
TINY = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 12, "patch_size": 4}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 224, "patch_size": 16}
DINOV2_SMALL = {**SMALL, "image_size": 518, "patch_size": 14}
TWO = {"num_hidden_layers": 2}


def network(kind, sizes: dict, **settings):
    config_of = Dinov2Config if kind is Dinov2Model else ViTConfig
    if config_of is ViTConfig:
        settings = {"intermediate_size": 4 * sizes["hidden_size"], **settings}
    torch.manual_seed(0)
    return randomise(kind(config_of(**sizes, **settings, attn_implementation="eager")))


def outputs(model, given: np.ndarray, **arguments) -> list[np.ndarray]:
    """Every hidden state, then the normed [CLS]."""
    encoder = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        out = encoder(pixels(given), output_hidden_states=True, **arguments)
    hidden = [*out.hidden_states[1:], out.last_hidden_state[:, 0]]
    assert len(hidden) == model.config.num_hidden_layers + 1
    return [x.numpy() for x in hidden]


def hf(kind, sizes: dict, **settings) -> Reference:
    model = network(kind, sizes, **settings)
    given = images(3 if sizes["image_size"] < 224 else 1, sizes["image_size"])
    return Reference(*saved(model), (given,), lambda: outputs(model, given))


def timm(kind, sizes: dict) -> Reference:
    settings = {} if kind is Dinov2Model else {"layer_norm_eps": 1e-6}
    reference = hf(kind, sizes, **settings)
    return reference._replace(state=as_timm(reference.state), config={})


def npz(sizes: dict) -> Reference:
    reference = hf(ViTModel, sizes, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
    return reference._replace(state=as_npz(reference.state, sizes["num_attention_heads"]), config={})


def cases(size: str, sizes: dict, dinov2_sizes: dict) -> list[Case]:
    return [
        Case("vit-hf", size, "transformers ViTModel", lambda: hf(ViTModel, sizes)),
        Case("vit-timm", size, "transformers ViTModel, renamed", lambda: timm(ViTModel, sizes)),
        Case("vit-npz", size, "transformers ViTModel, renamed", lambda: npz(sizes)),
        Case("dinov2-hf", size, "transformers Dinov2Model", lambda: hf(Dinov2Model, dinov2_sizes)),
        Case("vit-timm", size, "transformers Dinov2Model, renamed", lambda: timm(Dinov2Model, dinov2_sizes)),
    ]


CASES = [
    *cases("tiny", TINY, TINY), *cases("wide", SMALL | TWO, DINOV2_SMALL | TWO), *cases("full", SMALL, DINOV2_SMALL),
]  # fmt: skip
MORE = {
    "classifier": lambda: hf(ViTForImageClassification, TINY),
    "quick GELU, other eps, other heads": lambda: hf(
        ViTModel, {**TINY, "num_attention_heads": 4}, hidden_act="quick_gelu", layer_norm_eps=1e-3
    ),
}


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


@pytest.mark.parametrize("form", MORE)
def test_parity_of_other_forms(form):
    check(Case("vit-hf", "tiny", form, MORE[form]))


# ---- what is left out, given back, and refused


def source(state, config=None, name="vit.pth") -> Source:
    return Source(Path(name), state, config or {})


def test_full_size_is_vit_small():
    """Spec A.1: 21,665,664 parameters without a head."""
    sizes = {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536}
    shapes = param_shapes({"type": "vit", **sizes})
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 21_665_664
    with pytest.raises(ValueError, match=r"takes \(224, 224, 3\)"):
        jax.eval_shape(build_model({"type": "vit", **sizes}).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))


def test_a_training_checkpoint_of_dino_gives_its_teacher(tmp_path):
    """{'student': …, 'teacher': …}, each with the projection head that is trained on top of the backbone."""
    state = {f"backbone.{name}": x for name, x in timm(ViTModel, TINY).state.items() if not name.startswith("head.")}
    teacher = {name: torch.tensor(x) for name, x in state.items()}
    teacher |= {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight_g": torch.ones(3, 1)}
    student = {f"module.{name}": x + 1 for name, x in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "checkpoint.pth")
    conversion = convert(read_source(tmp_path / "checkpoint.pth"))
    assert conversion.layout.name == "vit-timm" and conversion.report.sound
    assert sorted(conversion.report.ignored) == ["head.last_layer.weight_g", "head.mlp.0.weight"]
    assert np.array_equal(conversion.params["cls_token"], state["backbone.cls_token"])
    of_student = convert(source({name: x.numpy() for name, x in student.items()}))
    assert np.array_equal(of_student.params["cls_token"], state["backbone.cls_token"] + 1)


@pytest.mark.parametrize("prefix", ["backbone.", "teacher.backbone.", "model._orig_mod.encoder.", "net."])
def test_a_dinov2_of_ones_own_training(prefix, tmp_path, capsys):
    """Chunked blocks, a head beside the backbone, and what wrappers leave in the names."""
    plain = timm(Dinov2Model, TINY).state
    chunked = {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): x for name, x in plain.items()
    }
    tensors = {prefix + name: torch.tensor(x) for name, x in chunked.items()}
    head = {f"{prefix.partition('.')[0]}_head.mlp.0.weight": torch.ones(3, 3), "dino_loss.center": torch.ones(1, 3)}
    torch.save(
        {"model_state_dict": tensors | head, "optimizer_state_dict": {"state": {}}, "loss": 0.5}, tmp_path / "a.pth"
    )
    assert main(["convert", f"--checkpoint={tmp_path / 'a.pth'}", "--dry_run", "--num_heads=2"]) == 0
    printed = capsys.readouterr().out
    shown = prefix.replace("_orig_mod.", "")
    assert f"left out    2: outside of {shown} (" in printed and "taken off   model_state_dict around" in printed
    assert ("taken off   _orig_mod within names" in printed) == ("_orig_mod" in prefix)
    conversion, expected = convert(read_source(tmp_path / "a.pth"), num_heads=2), convert(source(plain), num_heads=2)
    assert all(map(np.array_equal, jax.tree.leaves(conversion.params), jax.tree.leaves(expected.params)))


def test_several_networks_in_one_file():
    state = {
        f"{part}.{name}": x for part in ("student", "teacher_ema") for name, x in timm(ViTModel, TINY).state.items()
    }
    with pytest.raises(
        UserError, match=r"under student\. \(vit-timm\), teacher_ema\. \(vit-timm\): give one .*--prefix"
    ):
        convert(source(state), num_heads=2)
    conversion = convert(source(state), prefix="teacher_ema.", num_heads=2)
    assert conversion.report.sound and set(conversion.report.ignored.values()) >= {"outside of teacher_ema."}


@pytest.mark.parametrize("kind", [ViTModel, Dinov2Model])
def test_names_of_transformers_in_memory_are_those_of_its_files(kind):
    """`torch.save(model.state_dict())` gives other names than `save_pretrained`."""
    model = network(kind, TINY)
    state, config = saved(model)
    in_memory = state_of(model)
    assert set(in_memory) != set(state)
    a, b = (convert(source(x, config)) for x in (state, in_memory))
    assert a.report.sound and b.report.sound and a.description == b.description
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))


@pytest.mark.parametrize("kind,layout", [(ViTModel, "vit-hf"), (Dinov2Model, "dinov2-hf")])
def test_transformers_loads_what_we_give_back(kind, layout, tmp_path):
    reference = hf(kind, TINY)
    conversion = convert(source(reference.state, reference.config))
    back = to_torch(LAYOUTS[layout], conversion.params, conversion.description)
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(reference.config))
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not info["unexpected_keys"]
    assert all(name.startswith("pooler.") or name.endswith("mask_token") for name in info["missing_keys"])
    np.testing.assert_allclose(outputs(model, *reference.inputs)[-1], reference.compute()[-1], atol=1e-6)


@pytest.mark.parametrize("image_size", [8, 12, 28], ids=["smaller", "same", "larger"])
@pytest.mark.parametrize("kind", [ViTModel, Dinov2Model])
def test_positions_are_interpolated_as_transformers_does(kind, image_size):
    model, given = network(kind, TINY), images(3, image_size)
    conversion = convert(source(*saved(model)))
    params, description = for_image_size(conversion.params, conversion.description, image_size)
    arguments = {"interpolate_pos_encoding": True} if kind is ViTModel else {}
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(build_model(description).apply)({"params": params}, given)
    np.testing.assert_allclose(ours, outputs(model, given, **arguments)[-1], rtol=1e-4, atol=1e-5)
    if image_size == 12:
        assert np.array_equal(params["position_embedding"], conversion.params["position_embedding"])


def test_pixel_statistics_come_from_the_file_beside(tmp_path, capsys):
    reference = timm(ViTModel, TINY)
    save_file(reference.state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    assert main(["convert", f"--checkpoint={tmp_path}", f"--out={tmp_path}/out"]) == 0
    assert "mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25)" in capsys.readouterr().out
    description = read_description(tmp_path / "out")["model"]
    assert description["mean"] == [0.5] * 3 and description["std"] == [0.25] * 3
    assert set(load_params(tmp_path / "out")) == set(param_shapes(description))

    reference = hf(ViTModel, TINY)
    (tmp_path / "hf").mkdir()
    save_file(reference.state, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(reference.config))
    assert convert(read_source(tmp_path / "hf")).description["mean"] == (0.485, 0.456, 0.406)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(settings))
    description = convert(read_source(tmp_path / "hf")).description
    assert description["mean"] == (0.5, 0.4, 0.3) and description["std"] == (0.1, 0.2, 0.3)


def test_an_npz_file_comes_in_with_its_prefix(tmp_path):
    reference = npz(TINY)
    for prefix in ("", "opt/target/"):
        np.savez(tmp_path / "S_16.npz", **{prefix + name: x for name, x in reference.state.items()})
        conversion = convert(read_source(tmp_path / "S_16.npz"))
        assert conversion.layout.name == "vit-npz" and conversion.report.sound
        assert {name.split("/")[0] for name in conversion.report.ignored} == {"head", "pre_logits"}
        assert conversion.description["mean"] == conversion.description["std"] == (0.5, 0.5, 0.5)


TIMM_STATE = timm(ViTModel, TINY).state
BAD = {
    "registers": (TIMM_STATE | {"register_tokens": np.ones((1, 4, 192), np.float32)}, "unexpected  register_tokens"),
    "mean pooling": (TIMM_STATE | {"fc_norm.weight": np.ones(192, np.float32)}, "unexpected  fc_norm.weight"),
    "positions of no square": (
        TIMM_STATE | {"pos_embed": np.ones((1, 9, 192), np.float32)},
        "9 positions are no class token and a square of patches",
    ),
    "one LayerScale missing": (
        TIMM_STATE | {f"blocks.{i}.ls1.gamma": np.ones(192, np.float32) for i in (0, 1)},
        "missing     blocks.0.ls2.gamma",
    ),
    "heads of another number": (
        {
            name: x.reshape(192, 4, 48) if name.endswith("0/MultiHeadDotProductAttention_1/value/kernel") else x
            for name, x in npz(TINY).state.items()
        },
        "wrong       Transformer/encoderblock_0/MultiHeadDotProductAttention_1/value/kernel: shape (192, 4, 48): "
        "it is not of 3 heads",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused(what, tmp_path, capsys):
    state, says = BAD[what]
    np.savez(tmp_path / "bad.npz", **state)
    assert main(["convert", f"--checkpoint={tmp_path}/bad.npz", f"--out={tmp_path}/out"]) != 0
    said = capsys.readouterr()
    assert says in said.out + said.err
    assert not (tmp_path / "out").exists()

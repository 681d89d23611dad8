"""What recipes keep besides parameters and optimiser, through a crash: the run ends as one that never stopped."""

import jax
import numpy as np
import pytest
from test_resume import assert_ended_alike, train
from tiny import tiny_config

RECIPES = {
    "momentum": (
        ("momentum", "teacher", "student"),
        {"regress": {}, "bank_itc": {"keys": "momentum/", "bank_size": 24}},
    ),
    "image_vq": (("teacher", "autoencoder"), {"image_vq": {"restart": True, "dead_below": 0.9}}),
    "proximal": (("student",), {"proximal_itc": {"num_images": 1}}),
}


def config(name):
    c = tiny_config()
    c.passes, c.terms = RECIPES[name]
    c.eval.update(every=0, split="")
    c.teacher.checkpoint = "random" if "teacher" in c.passes else ""
    return c


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_crashed_and_continued_it_ends_as_if_nothing_had_happened(name, tmp_path):
    """Bit by bit: averages, banks, codes.  Steps 2 and 4 are saved, the crash is in step 6."""
    whole = train(tmp_path / "whole", config=config(name))
    train(tmp_path / "crashed", config=config(name), crash_at=6)
    rest = train(tmp_path / "crashed", config=config(name))
    assert whole.outcome.step == 6 and list(rest.ids) == [5, 6]
    assert_ended_alike(tmp_path / "crashed", tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, rest.outcome.params, whole.outcome.params)

"""Which files the encoders of a run began with: of every network that can begin with one."""

import inspect

import pytest

from smke_jax.config_files import load_config
from smke_jax.networks import NETWORKS
from smke_jax.studies.encoders.towers import STARTS, starts_of

OTHER = {
    ("quantizer", "start"),  # codes, of no side
    ("projections", "image_start"), ("projections", "text_start"),  # projections behind an encoder
    ("fused_towers", "start"), ("fused_towers", "fusion_start"),  # both sides and their fusion; the fusion alone
}  # fmt: skip
STARTING = {
    (name, field) for name, builder in NETWORKS.items() for field in inspect.signature(builder).parameters
    if field.endswith("start") and builder.__module__.startswith("smke_jax.")  # tests add networks of their own
}  # fmt: skip


def test_no_network_that_begins_with_a_file_is_forgotten():
    listed = {(kind, field) for own in STARTS.values() for field, kinds in own.items() for kind in kinds}
    assert STARTING - OTHER == listed


@pytest.mark.parametrize(
    ("location", "images", "texts"),
    [
        ("kd_text", [], ["weights/bert-base-uncased"]),
        ("kd_image:flickr8k", ["weights/dinov2"], []),
        ("finetune_text:cola", [], ["weights/bert-base-uncased"]),
        ("s_smke", ["weights/beitv2-base-pt1k", "weights/data2vec2-base"], ["weights/bert-base-uncased"]),
        ("kd_text:smoke", [], []),
    ],
)
def test_they_are_found_by_side(location, images, texts):
    config = load_config(location)
    assert sorted(starts_of(config.to_dict(), "image")) == images
    assert starts_of(config.to_dict(), "text") == texts


def test_a_student_of_an_export_has_both_sides():
    config = load_config("configs/s_smke.py").to_dict()
    config["networks"] = {"student": config["networks"]["student"] | {"start": "runs/x/export", "image_start": "random",
                                                                     "text_start": "random"}}  # fmt: skip
    assert starts_of(config, "image") == starts_of(config, "text") == ["runs/x/export"]


def test_a_file_whose_weights_were_left_aside_is_none_of_them():
    config = load_config("configs/finetune_text.py").to_dict()
    config["networks"]["text"]["scratch"] = True
    assert starts_of(config, "text") == []

"""The count of FLOPs against textbooks, XLA and JAX's own roofline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import roofline
from jax.sharding import PartitionSpec

from smke_jax.forms import form_of
from smke_jax.parallel.devices import HIGH, HIGHEST
from smke_jax.parallel.mesh import DATA_AXES, make_mesh
from smke_jax.parts import (
    average,
    bank_itc,
    beit,
    hard_negatives,
    itc,
    itm,
    regress,
    stored_features,
    target_cmli,
    target_itc,
)
from smke_jax.studies.plan.flops import flops_per_example, matmul_flops


def config(**fields):
    """Two layers of images, one of captions, a teacher of three; ITC on two levels, and a bank of 40 targets."""
    form = form_of("smoke")
    c = form.run()
    c.task = form.pairs()
    c.networks.student = form.student(image={"depth": 2}, head=48, dtype="float32")
    c.networks.teacher = form.teacher()
    sizes = {"image_size": 32, "patch_size": 16, "width": 48, "depth": 3, "num_heads": 3, "mlp_dim": 48}
    c.networks.teacher.update(model=beit(**sizes), dtype="float32")
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.target_itc = target_itc(bank_size=40)
    c.update(fields)
    return c


@functools.cache
def plain():
    return flops_per_example(config())


def blocks(tokens, width, mlp_dim, depth):
    """2 FLOPs per parameter and token, and attention's two products over all pairs of tokens."""
    return depth * (2 * (4 * width**2 + 2 * width * mlp_dim) * tokens + 2 * 2 * tokens**2 * width)


def patches(size, patch, width):
    return 2 * (size // patch) ** 2 * (3 * patch**2) * width


HEAD = 2 * 32 * 48  # from the student's width to the teacher's
IMAGE = patches(32, 16, 32) + blocks(5, 32, 48, 2 + 1) + HEAD  # two layers of the tower and the shared block
TEXT = blocks(12, 32, 48, 1 + 1) + HEAD


def test_forward_passes_cost_what_the_textbook_says():
    assert plain()["teacher forward"] == {"float32": patches(32, 16, 48) + blocks(5, 48, 48, 3)}
    assert plain()["student/image forward"] == {"float32": IMAGE}
    assert plain()["student/text forward"] == {"float32": TEXT}


def test_the_backward_pass_costs_twice_the_forward_but_for_the_first_layer():
    assert plain()["student/image backward"].total() == 2 * IMAGE - patches(32, 16, 32)
    assert plain()["student/text backward"].total() == 2 * TEXT


def test_what_is_frozen_has_no_backward_pass():
    assert "teacher backward" not in plain()
    c = config()
    c.networks.student.trained = ("^head/",)
    parts = flops_per_example(c)
    assert parts["student/text forward"] == plain()["student/text forward"]
    # The gradient of the head's weights; contrast on the levels below it trains nothing.
    assert parts["student/text backward"].total() == parts["student/image backward"].total() == HEAD


def test_a_moving_average_runs_forward_alone():
    c = config()
    c.networks.momentum = average(of="student")
    c.terms.bank_itc = bank_itc(levels=("out",), keys="momentum/", bank_size=40)
    parts = flops_per_example(c)
    assert parts["momentum/student/image forward"] == {"float32": IMAGE - HEAD}, "no term reads the head of the average"
    assert not [name for name in parts if name.startswith("momentum/") and name.endswith("backward")]


def test_losses_grow_with_the_global_batch():
    large = flops_per_example(config(batch_size=32))
    per_key = 2 * (48 + 32) + 2 * 2 * 48  # one product for both directions at two levels; image and text to targets
    assert large["losses forward"] - plain()["losses forward"] == {HIGH: 16 * per_key}
    assert plain()["losses forward"] == {HIGH: 16 * per_key + 2 * 2 * 40 * 48}, "and the bank's 40 entries"
    assert large["losses backward"].total() > plain()["losses backward"].total()


def test_what_is_computed_twice_counts_once():
    again = config(micro_batch=4, loss_impl="ring")
    again.networks.student.remat = "blocks"
    assert flops_per_example(again) == plain()


def test_what_no_term_reads_costs_nothing():
    c = config()
    c.terms.target_cmli = target_cmli()
    parts, tokens = flops_per_example(c), {"image": 4, "text": 11}  # all positions but [CLS]
    for side, count in tokens.items():
        before = plain()[f"student/{side} forward"].total()
        assert parts[f"student/{side} forward"] == {"float32": before + 2 * count * 32 * 48}


def test_a_selection_compares_the_whole_batch_and_a_term_reads_what_it_chose():
    c = config()
    c.selections.hard_negatives = hard_negatives(level="out")
    c.terms.itm = itm(levels=("out",), width=8)
    parts = flops_per_example(c)
    assert parts["hard_negatives forward"].total() == 2 * 2 * 16 * 32
    projecting, head = 2 * 32 * 8, 2 * 8 * 2  # of image, text, and the wrong partner of each; of three pairs
    more = parts["losses forward"].total() - plain()["losses forward"].total()
    assert more == 4 * projecting + 3 * head
    assert "hard_negatives backward" not in parts


def test_stored_features_of_a_teacher_cost_nothing():
    form = form_of("smoke")
    c = form.run()
    c.task = form.pairs(teacher_view="fixed")
    c.networks.teacher, c.networks.student = form.teacher(), form.student()
    c.terms.regress = regress()
    c.assets.targets = stored_features()
    assert not [part for part in flops_per_example(c) if part.startswith("teacher")]


def test_it_agrees_with_xla_and_with_the_roofline_of_jax():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    args = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8))
    assert matmul_flops(convolve, *args).total() == jax.jit(convolve).lower(*args).cost_analysis()["flops"]

    def products(x, w):
        return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x)) @ x @ w

    args = jnp.ones((3, 4, 8)), jnp.ones((8, 5))
    assert (
        matmul_flops(products, *args).total()
        == roofline.roofline(products)(*args)[1].flops
        == 3 * 2 * (4 * 4 * 8 * 2 + 4 * 8 * 5)
    )


def test_loops_branches_and_devices_count_as_often_as_they_run():
    a = jnp.ones((4, 4))
    once = 2 * 4**3
    assert matmul_flops(lambda a: jax.lax.fori_loop(0, 5, lambda i, x: x @ a, a), a).total() == 5 * once
    nested = lambda a: jax.lax.scan(lambda x, _: (jax.lax.map(lambda row: a @ row, x), None), a, length=3)[0]  # noqa: E731
    assert matmul_flops(nested, a).total() == 3 * once
    rows = PartitionSpec(DATA_AXES)
    local = jax.shard_map(lambda x: x @ x.T, mesh=make_mesh(4), in_specs=rows, out_specs=rows)
    assert matmul_flops(local, jnp.ones((8, 3))).total() == 4 * 2 * 2 * 2 * 3


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", jax.lax.Precision.HIGHEST, "bfloat16"),
        ("float32", None, "float32"),
        ("float32", jax.lax.Precision.HIGH, HIGH),
        ("float32", jax.lax.Precision.HIGHEST, HIGHEST),
    ],
)
def test_precisions_are_told_apart(dtype, precision, kind):
    a = np.ones((2, 2), dtype)
    assert matmul_flops(lambda a: jnp.matmul(a, a, precision=precision), a) == {kind: 16}

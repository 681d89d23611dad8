"""The count of FLOPs against textbooks, XLA and JAX's own roofline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import roofline
from jax.sharding import PartitionSpec

from smke_jax.config import base, smoke
from smke_jax.parallel.mesh import DATA_AXES, make_mesh
from smke_jax.planning.devices import HIGHEST
from smke_jax.planning.flops import flops_per_example, matmul_flops
from smke_jax.training.experiment import resolve


def config(**fields):
    c = base()
    c.terms.itc = {"levels": ("fc1", "out")}
    c.terms.target_itc = {"bank_size": 40}
    c = smoke(c)
    c.teacher.update(depth=3, width=48, num_heads=3)
    c.student.image.depth = 2
    c.update(fields)
    return resolve(c)


@pytest.fixture(scope="module")
def parts():
    """What is counted of `config()`."""
    return flops_per_example(config())


def blocks(tokens, width, mlp_dim, depth):
    """2 FLOPs per parameter and token, and attention's two products over all pairs of tokens."""
    return depth * (2 * (4 * width**2 + 2 * width * mlp_dim) * tokens + 2 * 2 * tokens**2 * width)


def patches(size, patch, width):
    return 2 * (size // patch) ** 2 * (3 * patch**2) * width


def test_forward_passes_cost_what_the_textbook_says(parts):
    assert parts["teacher forward"] == {"float32": patches(32, 16, 48) + blocks(5, 48, 48, 3)}
    image = patches(32, 16, 32) + blocks(5, 32, 48, 2 + 1)  # two layers of the tower and the shared block
    text = blocks(12, 32, 48, 1 + 1)
    heads = 2 * 2 * 32 * 48  # from the student's width to the teacher's, for image and text
    assert parts["student forward"] == {"float32": image + text + heads}


def test_the_backward_pass_costs_twice_the_forward_but_for_the_first_layer(parts):
    forward, backward = (parts[f"student {way}"].total() for way in ("forward", "backward"))
    assert backward == 2 * forward - patches(32, 16, 32)


def test_losses_grow_with_the_global_batch(parts):
    def losses(parts):
        return {way: parts[f"losses {way}"] for way in ("forward", "backward")}

    assert config().batch_size == 16
    small, large = losses(parts), losses(flops_per_example(config(batch_size=32)))
    per_key = 2 * (48 + 32) + 2 * 2 * 48  # one product for both directions at two levels; image and text to targets
    assert large["forward"] - small["forward"] == {HIGHEST: 16 * per_key}
    assert small["forward"] == {HIGHEST: 16 * per_key + 2 * 2 * 40 * 48}, "and the bank's 40 entries"
    assert large["backward"].total() > small["backward"].total()


def test_what_is_computed_twice_counts_once(parts):
    again = config()
    again.student.remat = "blocks"
    again.update(micro_batch=4, loss_impl="ring")
    assert flops_per_example(again) == parts


def test_what_no_term_reads_costs_nothing(parts):
    c, plain = config(), parts["student forward"]
    c.terms.target_cmli = {}
    tokens = 4 + 11  # all positions but [CLS]
    assert flops_per_example(c)["student forward"] == {"float32": plain.total() + 2 * tokens * 32 * 48}


def test_terms_that_draw_random_numbers_are_counted(parts):
    c, plain = config(), parts["losses forward"].total()
    c.terms.itm = {"levels": ("out",), "width": 8}
    drawing, projecting, head = 2 * 2 * 16 * 32, 2 * 2 * 32 * 8, 3 * 2 * 8 * 2
    assert flops_per_example(c)["losses forward"].total() == plain + drawing + projecting + head


def test_a_kept_teacher_costs_nothing():
    c = base()
    c.terms.regress = {}
    c = smoke(c)
    c.teacher.cache, c.data.teacher_view = True, "fixed"
    assert not flops_per_example(resolve(c))["teacher forward"]


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
        ("float32", jax.lax.Precision.HIGHEST, HIGHEST),
    ],
)
def test_precisions_are_told_apart(dtype, precision, kind):
    a = np.ones((2, 2), dtype)
    assert matmul_flops(lambda a: jnp.matmul(a, a, precision=precision), a) == {kind: 16}

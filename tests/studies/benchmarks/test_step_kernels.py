import jax
import jax.numpy as jnp
import pytest

from smke_jax.studies.benchmarks.step_kernels import Kernel, kernels, kind_of, report


def test_a_product_is_found_once_a_step(tmp_path):
    x = jnp.ones((256, 256))
    run = jax.jit(lambda x: x @ x)
    run(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(4):
            run(x).block_until_ready()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    found = [kernel for kernel in kernels(trace, steps=4) if kind_of(kernel.name) == "products"]
    assert sum(kernel.calls for kernel in found) == pytest.approx(1)
    assert all(0 < kernel.milliseconds < 1000 for kernel in found)


def test_kinds_and_their_shares():
    assert kind_of("nvjet_sm90_tst_256x128") == kind_of("ynn_fusion.3") == "products"
    assert kind_of("cudnn_generated_fort_native_sdpa_sm90") == "attention"
    assert kind_of("loop_pad_fusion_80") == "padding"
    text = report([Kernel("dot.1", 3.0, 2), Kernel("loop_multiply_fusion", 1.0, 1)], top=1)
    assert "| products | 3.00 | 75% |" in text and "| all | 4.00 | |" in text
    assert "| dot.1 | 3.000 | 2 |" in text and "loop_multiply_fusion" not in text

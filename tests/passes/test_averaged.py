"""The passes of a moving average read each other, and not the passes of the network that it follows."""

import numpy as np

from smke_jax.passes.averaged import averaged
from smke_jax.passes.base import Pass


def test_a_pass_reads_what_the_averages_of_its_siblings_make():
    first = Pass("first", ("net",), ("x",), ("a",), lambda params, arrays, *_: {"a": arrays["x"] * params["net"]})

    def add(params, arrays, key, train):
        return {"b": arrays["a"] + arrays["a@chosen"] + arrays["other"] + params["net"]}

    second = Pass("second", ("net",), ("a", "a@chosen", "other"), ("b",), add)
    passes = (first, second)
    one, two = (averaged(p, "net", "slow", passes) for p in passes)
    assert (one.needs, one.provides) == (("x",), ("slow/a",))
    assert (two.needs, two.provides) == (("slow/a", "slow/a@chosen", "other"), ("slow/b",))
    params = {"slow": 10.0}
    assert one.run(params, {"x": np.float32(2)}, None, True) == {"slow/a": 20}
    arrays = {"slow/a": 20.0, "slow/a@chosen": 5.0, "other": 1.0}
    assert two.run(params, arrays, None, True) == {"slow/b": 36}

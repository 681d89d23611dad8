"""What has to be true before the first device is touched."""

import subprocess
import sys


def test_importing_the_programs_starts_no_device():
    """`jax.distributed.initialize` refuses to run after any computation, so a module-level one breaks every pod."""
    code = (
        "import smke_jax.programs.train, smke_jax.programs.evaluate, smke_jax.programs.demo, smke_jax.forms\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

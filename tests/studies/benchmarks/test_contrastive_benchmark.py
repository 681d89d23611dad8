"""The benchmark's three forms are the same loss, and its table has a line per case."""

import jax
import numpy as np

from smke_jax.studies.benchmarks.contrastive import FORMS, compiled_loss, main


def test_the_forms_are_one_loss():
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(16, 6)).astype(np.float32) for _ in range(2))
    results = [jax.device_get(compiled_loss(form, 16, 4, 6)(images, texts, np.float32(3.0))) for form in FORMS]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], other)


def test_it_writes_its_table(tmp_path, capsys):
    out = tmp_path / "table.md"
    assert main(["--batch", "16", "--devices", "1", "2", "--width", "4", "--out", str(out)]) == 0
    lines = [line for line in out.read_text().splitlines() if line.startswith("| 16 ")]
    assert len(lines) == 2 and all(line.count("|") == 9 for line in lines)
    assert "MiB" in capsys.readouterr().out

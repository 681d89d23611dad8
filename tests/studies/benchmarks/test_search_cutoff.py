"""The rates of the cut-off on planted embeddings, and its table on made-up photos."""

import numpy as np
from made_up import jpeg, prepare, write
from tiny_export import save_model

from smke_jax.studies.benchmarks import search_cutoff
from smke_jax.studies.benchmarks.search_cutoff import fits_of, mean_rates, rates


def test_rates_of_planted_photos():
    """Ten photos that are their own captions: each is found, and no other answers."""
    rng = np.random.default_rng(0)

    def unit(*shape):
        x = rng.normal(size=shape).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    photos, phrases = unit(10, 400), unit(50, 400)
    fit = fits_of(photos, photos, phrases)
    assert np.diag(fit).min() > 12 > 5 > (fit - 100 * np.eye(10)).max()
    others = fits_of(photos, unit(20, 400), phrases)
    assert rates(fit, photos @ photos.T, others, 6.0) == [1, 1, 1, 1]
    assert rates(fit, photos @ photos.T, None, 100.0) == [0, 0, 1]
    assert rates(fit, photos @ photos.T, others, -100.0) == [1, 1, 0, 0]
    # Where the photo itself is among the unlike, it answers.
    assert rates(fit, -photos @ photos.T, None, 6.0) == [1, 1, 0]
    assert mean_rates(fit, photos @ photos.T, others, 6.0, 4) == [1, 1, 1, 1]


def test_the_table_is_written(tmp_path):
    files = {f"{i}.jpg": jpeg(i) for i in range(6)} | {f"{i}.txt": f"a red dog {i}\nblue snow" for i in range(6)}
    prepare("folder", write(tmp_path / "photos", files), tmp_path / "data", "--holdout=4")
    (tmp_path / "lines.txt").write_text("a line that has more than forty-five characters in it, as it has to\n" * 3)
    model, out = save_model(tmp_path / "model"), tmp_path / "table.md"
    argv = [f"--model={model}", f"--data={tmp_path}/data", f"--out={out}"]
    assert search_cutoff.main([*argv, f"--sentences={tmp_path}/lines.txt"]) == 0
    text = out.read_text()
    assert "of 4 photos" in text and "3 lines of lines.txt" in text and text.count(" % |") == 12
    assert search_cutoff.main([*argv, "--photos=2"]) == 0 and out.read_text().count(" % |") == 9

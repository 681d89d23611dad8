"""Which sets of GLUE the text encoders are asked, and which rows a probe is fitted to."""

import numpy as np

from smke_jax.data.glue import sentences
from smke_jax.studies.encoders import texts
from smke_jax.studies.encoders.texts import TextTask, text_probe, text_tasks


def write(file, *lines):
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))


def test_every_dev_set_that_there_is(tmp_path):
    """MNLI has two; Microsoft's own files of MRPC have a test set in place of one."""
    for name in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / "MNLI" / f"{name}.tsv", "sentence1\tsentence2\tgold_label", f"{name}\tb\tneutral")
    for name in ("train", "test"):
        write(tmp_path / "MRPC" / f"msr_paraphrase_{name}.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
              f"1\t1\t2\t{name}\tb")  # fmt: skip
    found = text_tasks(tmp_path)
    assert [task.title for task in found] == ["mrpc test", "mnli dev_matched", "mnli dev_mismatched"]
    assert [task.dev.texts[0] for task in found] == [["test"], ["dev_matched"], ["dev_mismatched"]]
    assert [task.fitted.texts[0] for task in found] == [["train"]] * 3


def test_a_probe_of_a_sorted_file_sees_every_class(monkeypatch):
    """The first rows alone would be of one class."""
    monkeypatch.setattr(texts, "FITTED", 40)
    labels = np.repeat(np.arange(2), 200).astype(np.int32)
    names = [str(i) for i in range(400)]
    known = {name: np.array([1.0, 2.0 * label - 1.0]) + 0.01 * (i % 7) for i, (name, label) in
             enumerate(zip(names, labels, strict=True))}  # fmt: skip
    seen = []

    def vectors(asked):
        seen.append(list(asked))
        return np.stack([known[name] for name in asked])

    rows = sentences("sst2", (names,), labels, {})
    assert text_probe(vectors, TextTask("sst2", rows, rows)).scalars == {"accuracy": 100.0}
    fitted = [int(name) for name in seen[0]]
    assert len(set(fitted)) == 40 and fitted == sorted(fitted) and 5 < sum(row < 200 for row in fitted) < 35
    text_probe(vectors, TextTask("sst2", rows, rows))
    assert seen[2] == seen[0], "the same rows for every encoder"

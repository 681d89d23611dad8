"""The task of labelled sentences: pairs cut by BERT's rule, batches that go on where they stopped, bad fields."""

import sys

import numpy as np
import pytest

from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.labelled_text import labelled_text

labelled_text_module = sys.modules[labelled_text.__module__]

WORDS = "the rain falls on a dry stone and the stone gets wet while nobody looks at it".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, count)) for count in RNG.integers(1, 14, 46)]
PAIRS = list(zip(TEXTS[::2], TEXTS[1::2], strict=True))  # 23


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 60)


@pytest.fixture
def folder(tmp_path):
    rows = [f"{i}\t{a}\t{b}\t{i % 2}" for i, (a, b) in enumerate(PAIRS)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]))
    return tmp_path


def task(folder, *, glue: str = "wnli", **fields):
    given = {"keep": folder / "run", "data": str(folder), "vocab_size": 60, "max_length": 12, "threads": 1}
    return labelled_text(glue=glue, **given | fields).finish({})


def cut(a: list, b: list, room: int) -> None:
    """BERT's rule as its own code has it: one token after the other."""
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()


@pytest.mark.parametrize("length", [3, 4, 7, 8, 12, 40])
def test_the_longer_sentence_is_cut_first(tokenizer, length):
    ids, mask, types = tokenizer.encode_pairs(*zip(*PAIRS, strict=True), length)
    (start, end), pad = tokenizer.encode([""], 3)[0][0, :2], tokenizer.pad_id
    for row, pair in enumerate(PAIRS):
        a, b = ([x for x in tokenizer.encode([text], 64)[0][0].tolist() if x not in (start, end, pad)] for text in pair)
        cut(a, b, length - 3)
        want = [start, *a, end, *b, end]
        assert ids[row].tolist() == want + [pad] * (length - len(want))
        assert mask[row].tolist() == [1] * len(want) + [0] * (length - len(want))
        assert types[row].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (length - len(want))


def plan(**fields):
    return BatchPlan(**{"batch_size": 4, "seed": 3} | fields)


def test_an_epoch_has_every_row_once_with_its_own_label(folder):
    made = task(folder)
    batches = made.batches(plan())
    rows = [next(batches) for _ in range(10)]
    epochs = [np.concatenate([row["id"] for row in rows[i : i + 5]]).tolist() for i in (0, 5)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1], "three of 23 are left over"
    known = made.tokenizer.encode_pairs(*zip(*PAIRS, strict=True), 12)
    for batch in rows:
        assert batch.keys() == made.example().keys()
        for name, shape in made.example().items():
            assert batch[name].dtype == shape.dtype and batch[name].shape == (4, *shape.shape)
        np.testing.assert_array_equal(batch["label"], batch["id"] % 2)
        for name, whole in zip(("text", "text_mask", "text_types"), known, strict=True):
            np.testing.assert_array_equal(batch[name], whole[batch["id"]])


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_go_on_where_they_stopped_for_any_number_of_processes(folder, threads):
    made = task(folder, threads=threads)
    whole, batches = made.batches(plan()), []
    for _ in range(4):
        batches.append(next(whole))
    state = whole.get_state()
    batches += [next(whole) for _ in range(4)]
    for number in (0, 1):
        other = made.batches(plan(process=(number, 2)))
        other.set_state(state)
        for want in batches[4:]:
            for name, rows in next(other).items():
                np.testing.assert_array_equal(rows, want[name][2 * number : 2 * number + 2])


def test_a_split_has_every_row_in_order(folder):
    made = task(folder)
    dev = made.split("dev")
    assert dev.name == "wnli dev" and {column.rows for column in dev.columns.values()} == {23}
    first, second = zip(*PAIRS, strict=True)
    for name, want in zip(dev.columns, made.tokenizer.encode_pairs(first, second, 12), strict=True):
        np.testing.assert_array_equal(dev.columns[name].read([5, 0]), want[[5, 0]])
    np.testing.assert_array_equal(dev.facts["labels"], np.arange(23) % 2)
    assert dev.facts["classes"] == ("0", "1") and made.facts == {"classes": 2, "vocab_size": made.tokenizer.vocab_size}
    assert made.counts("dev") == [{"data": "wnli dev", "rows": 23, "skipped": 0}]


def test_a_block_of_a_split_is_cut_into_tokens_once(folder, monkeypatch):
    """However many columns are read of it; another block is another one."""
    dev, calls = task(folder).split("dev"), []
    whole = labelled_text_module.encode_rows
    monkeypatch.setattr(labelled_text_module, "encode_rows", lambda *args: calls.append(args[2]) or whole(*args))
    for rows in ([0, 1, 2], [3, 4]):
        for column in dev.columns.values():
            column.read(rows)
    assert len(dev.columns) == 3 and calls == [(0, 1, 2), (3, 4)]


def test_single_sentences_have_no_types_and_scores_are_floats(folder):
    (folder / "train.tsv").write_text("".join(f"x\t{i % 2}\t\t{text}\n" for i, text in enumerate(TEXTS)))
    single = task(folder, glue="cola", keep=folder / "cola")
    batch = next(single.batches(plan()))
    assert batch.keys() == {"text", "text_mask", "label", "id"} == single.example().keys()
    np.testing.assert_array_equal(batch["text"], single.tokenizer.encode([TEXTS[i] for i in batch["id"]], 12)[0])
    (folder / "train.tsv").write_text(
        "".join(f"{i}" + "\tx" * 6 + f"\t{a}\t{b}\t2.5\n" for i, (a, b) in enumerate(PAIRS))
    )
    scored = task(folder, glue="stsb", keep=folder / "stsb")
    assert next(scored.batches(plan()))["label"].tolist() == [2.5] * 4 and scored.facts["classes"] == 1
    assert scored.example()["label"].dtype == np.float32


def test_fields_that_do_not_fit_are_refused(folder):
    with pytest.raises(UserError, match="data is empty: give the folder with the files of wnli"):
        task(folder, data="")
    with pytest.raises(UserError, match="data is for files: leave it out with files='scenes'"):
        task(folder, files="scenes")
    with pytest.raises(UserError, match="GLUE has no task 'cloa' .*: did you mean cola"):
        task(folder, glue="cloa")
    with pytest.raises(UserError, match="an epoch has 23 rows, fewer than one batch of 24"):
        task(folder).batches(plan(batch_size=24))

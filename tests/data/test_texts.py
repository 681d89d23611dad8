"""Running text: what becomes of the lines of files, and which rows a run reads."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from smke_jax.data.prepare.text import running
from smke_jax.data.sources import open_prepared
from smke_jax.data.texts import open_texts, read_rows, text_batches, whole_lines
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.programs.prepare import main
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.text import text

WORDS = "red blue green dog cat bird runs sits over under big small".split()
LENGTH = 10


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a vocabulary of WORDS, each one token."""
    folder = tmp_path_factory.mktemp("vocabulary") / "words"
    train_wordpiece([" ".join(WORDS)] * 3, 200).save(folder)
    return folder


def lines_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in lengths]


def write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def prepare(words, out, *arguments, length=LENGTH):
    assert main(["text", *map(str, arguments), f"--out={out}", f"--tokenizer={words}", f"--length={length}"]) == 0
    return json.loads((out / "manifest.json").read_text())


def texts_of(folder, split, length=LENGTH):
    """Every row as text, framed by its marks."""
    rows, manifest = open_texts(folder, split), json.loads((folder / "manifest.json").read_text())
    ids, mask = read_rows((rows,), range(len(rows)), length)
    special = manifest["special"]
    assert (ids[:, 0] == special["start"]).all() and (ids[mask == 0] == special["pad"]).all()
    assert all(row[count - 1] == special["end"] for row, count in zip(ids, mask.sum(1), strict=True))
    names = {i: line for i, line in enumerate((folder / "tokenizer" / "vocab.txt").read_text().split("\n"))}
    return [" ".join(names[i] for i in row[1 : count - 1]) for row, count in zip(ids, mask.sum(1), strict=True)]


def test_rows_are_whole_lines_as_many_as_fit(words, tmp_path):
    """Lines of 3, 5, 1, 20 and 2 words in rows of 8: the long one is cut, what is left of it stands alone."""
    lines = lines_of(3, 5, 1, 20, 2)
    file = write(tmp_path / "a.txt", [lines[0], "", "  " + lines[1] + " ", "---", *lines[2:]])
    manifest = prepare(words, tmp_path / "out", file)
    long = lines[3].split()
    cut = [" ".join(long[i : i + 8]) for i in (0, 8, 16)]
    assert texts_of(tmp_path / "out", "train") == [f"{lines[0]} {lines[1]}", lines[2], *cut, lines[4]]
    own = manifest["splits"]["train"]
    assert (own["rows"], own["tokens"], own["lines"], own["blank_lines"]) == (6, 31, 5, 2)


def test_running_rows_are_full(words, tmp_path):
    lines = lines_of(3, 5, 1, 20, 2)
    prepare(words, tmp_path / "out", write(tmp_path / "a.txt", lines), "--rows=running")
    everything = " ".join(lines).split()
    found = texts_of(tmp_path / "out", "train")
    assert found == [" ".join(everything[i : i + 8]) for i in range(0, 31, 8)] and len(found[-1].split()) == 7


def test_a_line_of_a_million_tokens_is_cut_in_the_time_that_it_takes_to_read():
    """A copy of what is left for every row would be half an hour."""
    begin = time.monotonic()
    assert sum(map(len, running([list(range(1_000_000))], 8))) == 1_000_000 and time.monotonic() - begin < 20


@pytest.mark.parametrize("rows", [whole_lines, running])
def test_no_token_is_lost(rows):
    rng = np.random.default_rng(0)
    lines = [rng.integers(0, 99, n).tolist() for n in rng.integers(1, 30, 200)]
    made = list(rows(lines, 8))
    assert sum(made, []) == sum(lines, []) and all(0 < len(row) <= 8 for row in made)


def test_held_out_rows_are_the_last_ones_and_other_files_are_dev(words, tmp_path):
    a, b = write(tmp_path / "a.txt", lines_of(*[8] * 9)), write(tmp_path / "b.txt", lines_of(*[8] * 3, seed=1))
    prepare(words, tmp_path / "whole", a)
    whole = texts_of(tmp_path / "whole", "train")
    held = prepare(words, tmp_path / "held", a, "--holdout=4")
    assert texts_of(tmp_path / "held", "train") == whole[:5] and texts_of(tmp_path / "held", "dev") == whole[5:]
    assert held["splits"]["train"]["tokens"] == 40 and held["splits"]["dev"]["rows"] == 4
    assert sorted(path.name for path in (tmp_path / "held").iterdir()) == [
        "dev.ends", "dev.tokens", "manifest.json", "skipped.jsonl", "tokenizer", "train.ends", "train.tokens",
    ]  # fmt: skip
    prepare(words, tmp_path / "both", a, "--dev", b)
    assert texts_of(tmp_path / "both", "dev") == lines_of(*[8] * 3, seed=1)
    digests = [open_texts(tmp_path / name, "train").digest for name in ("whole", "held", "both")]
    assert digests[0] == digests[2] != digests[1]


def test_lines_that_are_no_text_are_skipped_and_counted(words, tmp_path, capsys):
    russian = "\u0441\u043e\u0431\u0430\u043a\u0430".encode("cp1251")
    file = write(tmp_path / "a.txt", ["red dog", russian, "blue\0cat", "green bird"])
    manifest = prepare(words, tmp_path / "out", file, write(tmp_path / "empty.txt", [""]))
    assert texts_of(tmp_path / "out", "train") == ["red dog green bird"]
    assert manifest["skip_reasons"] == {
        "line is not UTF-8": 1, "line holds a zero byte": 1, "file holds no line of text": 1,
    }  # fmt: skip
    assert "skipped 1x: line is not UTF-8 (first: a.txt:2)" in capsys.readouterr().out
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 3


def test_what_cannot_be_prepared_is_said_in_a_line_and_leaves_nothing(words, tmp_path):
    file, empty = write(tmp_path / "a.txt", ["red dog"]), write(tmp_path / "empty.txt", ["", " "])
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    for arguments, said in (
        ([empty, f"--out={tmp_path / 'out'}"], "empty.txt holds no line of text"),
        ([file, "--dev", empty, f"--out={tmp_path / 'out'}"], "empty.txt holds no line of text"),
        ([tmp_path / "gone.txt", f"--out={tmp_path / 'out'}"], "gone.txt is no file: give text files"),
        (
            [file, "--holdout=1", f"--out={tmp_path / 'out'}"],
            "has 1 rows: --holdout=1 leaves none to train on",
        ),
        ([file, "--length=2", f"--out={tmp_path / 'out'}"], "a row of 2 tokens has no room"),
        ([file, f"--out={full}"], "is not an empty folder: choose another --out"),
    ):
        with pytest.raises(UserError, match=said):
            main(["text", *map(str, arguments), f"--tokenizer={words}"])
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


# ---- reading


@pytest.fixture(scope="module")
def prepared(words, tmp_path_factory):
    """Two folders, of 9 and of 5 rows."""
    root = tmp_path_factory.mktemp("prepared")
    for name, count, seed in (("a", 9, 0), ("b", 5, 1)):
        prepare(words, root / name, write(root / f"{name}.txt", lines_of(*[8] * count, seed=seed)), "--holdout=1")
    return str(root / "a"), str(root / "b")


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_an_epoch_has_every_row_once_and_the_next_another_order(prepared):
    sources = tuple(open_texts(folder, "train") for folder in prepared)
    batches = take(text_batches(sources, batch_size=4, length=12, seed=3), 6)
    ids = np.stack([batch["id"] for batch in batches]).reshape(2, 12)
    assert [sorted(epoch) for epoch in ids.tolist()] == [list(range(12))] * 2 and (ids[0] != ids[1]).any()
    for batch in batches:
        text, mask = read_rows(sources, batch["id"].tolist(), 12)
        assert (text == batch["text"]).all() and (mask == batch["text_mask"]).all()
    # A row of the second folder is the row of its own.
    np.testing.assert_array_equal(read_rows(sources, [8], 12)[0], read_rows(sources[1:], [0], 12)[0])


def test_a_state_of_one_process_goes_on_in_two(prepared):
    sources = (open_texts(prepared[0], "train"),)
    options = {"batch_size": 4, "length": 12, "seed": 0}
    whole = text_batches(sources, **options)
    take(whole, 3)
    state = whole.get_state()
    expected = take(whole, 3)
    shares = []
    for p in (0, 1):
        part = text_batches(sources, **options, process=(p, 2), threads=1)
        part.set_state(state)
        shares.append(take(part, 3))
    for batch, first, second in zip(expected, *shares, strict=True):
        for name, x in batch.items():
            np.testing.assert_array_equal(x, np.concatenate([first[name], second[name]]))


def test_the_task_says_what_it_holds(prepared, tmp_path):
    draft = text(keep=tmp_path, data=prepared, vocab_size=vocabulary(prepared), max_length=12)
    task = draft.finish({})
    assert task.length() == 12 and task.facts == {"vocab_size": vocabulary(prepared)}
    assert [(x["rows"], x["tokens"]) for x in task.counts("train")] == [(8, 64), (4, 32)]
    batch = next(task.batches(BatchPlan(4, 0)))
    assert {name: x.shape for name, x in batch.items()} == {"text": (4, 12), "text_mask": (4, 12), "id": (4,)}
    split = task.split("dev")
    assert split.columns["text"].rows == 2 and split.columns["text_mask"].read([1, 0]).sum() == 20
    assert split.facts["texts"][1] == lines_of(*[8] * 5, seed=1)[-1]
    with pytest.raises(UserError, match="this task has no images"):
        draft.finish({"image": 32})


def vocabulary(prepared):
    return len((Path(prepared[0]) / "tokenizer/vocab.txt").read_text().split())


def test_what_cannot_be_read_is_said_in_a_line(prepared, words, tmp_path):
    folder, size = prepared[0], vocabulary(prepared)
    other = tmp_path / "other"
    train_wordpiece(["one two three"], 200).save(tmp_path / "vocabulary")
    prepare(tmp_path / "vocabulary", other, write(tmp_path / "a.txt", ["one two"]))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "manifest.json").write_text('{"dataset": "flickr8k"}')

    def opened(read="train", **fields):
        text(keep=tmp_path / "run", vocab_size=size, **fields).finish({}).split(read)

    for fields, said in (
        ({"data": ()}, "config.task.data is empty"),
        ({"data": (str(tmp_path / "gone"),)}, "no prepared text at .*gone: write it with `smke prepare text FILE"),
        ({"data": (str(tmp_path / "photos"),)}, "holds prepared images, no text"),
        ({"data": (folder, str(other))}, "other was prepared with another tokenizer than this run reads"),
        ({"data": (str(other),)}, "a tokenizer of .* tokens: set config.task.vocab_size="),
        ({"data": (folder,), "max_length": 9}, "has rows of 10 tokens: set config.task.max_length=10"),
        ({"data": (folder,), "read": "test"}, "has no split 'test': it has train, dev"),
        ({"data": (folder,), "source": "web"}, "config.task.source 'web' is neither"),
    ):
        with pytest.raises(UserError, match=said):
            opened(**fields)
    # Also where a run is evaluated on other text, as by `smke evaluate --data`.
    text(keep=tmp_path / "run", vocab_size=size, data=(folder,))
    later = text(keep=tmp_path / "run", known={"vocab_size": size}, vocab_size=size, data=(str(other),)).finish({})
    with pytest.raises(UserError, match="other was prepared with another tokenizer than this run reads"):
        later.split("train")
    with pytest.raises(UserError, match="the text has 8 rows, fewer than one batch of 9: lower batch_size"):
        text_batches((open_texts(folder, "train"),), batch_size=9, length=12, seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((), []),
        ((), {"kind": "text"}),
        ((), "[" * 100_000),
        (("splits",), ["train"]),
        (("splits", "train"), 8),
        (("splits", "train", "rows"), "8"),
        (("splits", "train", "tokens"), -2),
        (("special", "pad"), None),
        (("length",), 10.5),
        (("vocab_size",), True),
        (("tokenizer",), None),
    ],
)
def test_a_damaged_manifest_is_said_in_a_line(prepared, tmp_path, key, value):
    whole = json.loads((Path(prepared[0]) / "manifest.json").read_text())
    inner = whole
    for name in key[:-1]:
        inner = inner[name]
    if key:
        inner[key[-1]] = value
    text = value if isinstance(value, str) and not key else json.dumps(whole if key else value)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json (is damaged|cannot be read \(.*\)): prepare the text again$"):
        open_texts(tmp_path, "train")


def test_text_is_no_folder_of_images(prepared):
    with pytest.raises(UserError, match="holds prepared text, no images with captions: give another folder"):
        open_prepared(prepared[0], "train")


def test_a_file_that_was_cut_short_is_refused(words, tmp_path):
    prepare(words, tmp_path / "out", write(tmp_path / "a.txt", lines_of(8, 8)))
    file = tmp_path / "out" / "train.tokens"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match="train.tokens has 30 bytes, not the 32 that were written"):
        open_texts(tmp_path / "out", "train")

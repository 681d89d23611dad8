"""GLUE's files: every row counts, whatever its quotation marks, and a file of something else is refused."""

import numpy as np
import pytest

from smke_jax.data import datasets
from smke_jax.data.drawn_sentences import drawn_sentences
from smke_jax.data.glue import GLUE, read_glue, splits_in
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError

# The first lines of GLUE's own files, with sentences of ours.
HEADERS = {
    "rte": "index\tsentence1\tsentence2\tlabel",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "wnli": "index\tsentence1\tsentence2\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "sst2": "sentence\tlabel",
    "qnli": "index\tquestion\tsentence\tlabel",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
}
ROWS = {
    "rte": ("7\tIt rains.\tIt is wet.\tnot_entailment", ("It rains.", "It is wet."), 1),
    "stsb": ("3\tnews\tx\t2014\t12\ta\tb\tIt rains.\tIt is wet.\t3.250", ("It rains.", "It is wet."), 3.25),
    "wnli": ("3\tIt rains.\tIt is wet.\t1", ("It rains.", "It is wet."), 1),
    "mrpc": ("1\t11\t12\tIt rains.\tIt is wet.", ("It rains.", "It is wet."), 1),
    "qqp": ("5\t6\t7\tDoes it rain?\tIs it wet?\t0", ("Does it rain?", "Is it wet?"), 0),
    "sst2": ("it rains \t0", ("it rains",), 0),
    "qnli": ("9\tDoes it rain?\tIt is wet.\tentailment", ("Does it rain?", "It is wet."), 0),
    "mnli": ("0\t1\t1e\tnews\t( a )\t( b )\t(S a)\t(S b)\tIt rains.\tIt is wet.\tneutral\tcontradiction",
             ("It rains.", "It is wet."), 2),
    "cola": ("gj04\t0\t*\tRains it.", ("Rains it.",), 0),
}  # fmt: skip


def write(folder, name: str, *rows: str, file: str = "train.tsv", end: str = "\n"):
    lines = [HEADERS[name]] if name in HEADERS else []
    (folder / file).write_bytes(end.join([*lines, *rows, ""]).encode())
    return folder


@pytest.mark.parametrize("name", sorted(GLUE))
def test_each_task_finds_its_columns(tmp_path, name):
    row, texts, label = ROWS[name]
    found = read_glue(name, write(tmp_path, name, row, row), "train")
    assert found.name == f"{name} train" and found.texts == tuple([text] * 2 for text in texts)
    np.testing.assert_array_equal(found.labels, [label, label])
    assert found.labels.dtype == (np.float32 if name == "stsb" else np.int32)


def test_a_quotation_mark_is_a_letter(tmp_path):
    """A reader that takes quotation marks for fences loses rows 1 to 3."""
    texts = ['"Stop, he said.', 'He said "no.', 'A plain one"', '""', "Last."]
    rows = [f"{i}\tnews\tx\t2014\t1\ta\tb\t{text}\tThe other.\t{i}.5" for i, text in enumerate(texts)]
    found = read_glue("stsb", write(tmp_path, "stsb", *rows), "train")
    assert found.texts[0] == texts and found.labels.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] and not found.skipped


def test_other_line_breaks_belong_to_the_sentence(tmp_path):
    text = "One\u2028two\x85three\x0bfour"
    found = read_glue("sst2", write(tmp_path, "sst2", f"{text}\t1", "next\t0", end="\r\n"), "train")
    assert found.texts == ([text, "next"],)


def test_files_of_the_same_task_by_other_names(tmp_path):
    raw = write(tmp_path, "cola", ROWS["cola"][0], "bc01\t1\t\tIt rains.", file="in_domain_train.tsv")
    assert read_glue("cola", raw, "train").labels.tolist() == [0, 1]
    (tmp_path / "msr_paraphrase_test.txt").write_text("\ufeff" + HEADERS["mrpc"] + "\n" + ROWS["mrpc"][0])
    assert read_glue("mrpc", tmp_path, "test").labels.tolist() == [1]
    bare = ROWS["stsb"][0]
    (tmp_path / "dev.tsv").write_text(f"{bare}\n{bare}\n")  # without a header
    assert read_glue("stsb", tmp_path, "dev").labels.tolist() == [3.25, 3.25]
    for half in ("matched", "mismatched"):
        write(tmp_path, "mnli", ROWS["mnli"][0], file=f"dev_{half}.tsv")
        assert read_glue("mnli", tmp_path, f"dev_{half}").name == f"mnli dev_{half}"


def test_the_digest_is_of_texts_and_labels(tmp_path):
    digests = set()
    for row in ("It rains.\t1", "It rains.\t0", "It  rains.\t1", "It rains.\t1\tmore"):
        digests.add(read_glue("sst2", write(tmp_path, "sst2", row), "train").digest)
    assert len(digests) == 3


def test_rows_without_a_sentence_are_counted(tmp_path, caplog):
    good = ROWS["qqp"][0]
    folder = write(tmp_path, "qqp", good, "5\t6\t7\t\tIs it?\t1", "5\t6\t7\tOnly one", "5\t6\t7\t  \t \t0", good)
    found = read_glue("qqp", folder, "train")
    assert len(found.labels) == 2 and found.skipped == {"cut short": 1, "an empty sentence": 2}
    assert f"{folder / 'train.tsv'}: 3 rows are left out (2 an empty sentence, 1 cut short)" in caplog.text


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("rte", ["1\ta\tb\tyes"], "train.tsv, line 2: the label 'yes' is none of entailment, not_entailment: is it"),
        ("sst2", ["fine\t1", "fine\t2"], "train.tsv, line 3: the label '2' is none of 0, 1"),
        ("stsb", ["0\tg\tf\ty\t1\ta\tb\tc\td\tgood"], "line 2: the score 'good' is no number: is it a file of stsb"),
        ("stsb", ["0\tg\tf\ty\t1\ta\tb\tc\td\t5.1"], "line 2: the score 5.1 of stsb is not between 0 and 5"),
        ("stsb", ["0\tg\tf\ty\t1\ta\tb\tc\td\tnan"], "line 2: the score nan of stsb is not between 0 and 5"),
        ("qnli", [], "train.tsv has no rows of qnli"),
    ],
)  # fmt: skip
def test_labels_that_are_none(tmp_path, name, rows, message):
    with pytest.raises(UserError) as error:
        read_glue(name, write(tmp_path, name, *rows), "train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_of_another_task_are_refused(tmp_path):
    rte = write(tmp_path, "rte", ROWS["rte"][0])
    with pytest.raises(UserError, match="has no column 'question1' among 'index, .*: is it a file of qqp with labels?"):
        read_glue("qqp", rte, "train")
    with pytest.raises(UserError, match="line 2: the label 'not_entailment' is none of 0, 1: is it a file of wnli"):
        read_glue("wnli", rte, "train")
    with pytest.raises(UserError, match="line 1: the label 'sentence1' is none of 0, 1: is it a file of cola"):
        read_glue("cola", rte, "train")
    (tmp_path / "dev.tsv").write_text("sentence\nno label here\n")
    with pytest.raises(UserError, match="dev.tsv has no column 'label'"):
        read_glue("sst2", tmp_path, "dev")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no dev.tsv or in_domain_dev.tsv in {tmp_path}: give the folder of cola"):
        read_glue("cola", tmp_path, "dev")
    with pytest.raises(UserError, match="mnli has no split 'dev': it has train, dev_matched, dev_mismatched"):
        read_glue("mnli", tmp_path, "dev")
    with pytest.raises(UserError, match="GLUE has no task 'sts' among cola, .*: did you mean stsb"):
        read_glue("sts", tmp_path, "dev")
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\n\xff\xfe\t1\n")
    with pytest.raises(UserError, match="train.tsv cannot be read as UTF-8 text"):
        read_glue("sst2", tmp_path, "train")


def test_sentences_of_drawn_scenes(monkeypatch):
    scenes = make_scenes(12, 6)
    monkeypatch.setattr(datasets, "scenes", lambda *_: scenes)
    captions = scenes.train.captions
    single = drawn_sentences(GLUE["cola"], "train")
    assert single.labels.tolist() == [1, 0] * 6 and single.texts[0][0] == captions[0][0]
    assert single.texts[0][1].split() == captions[1][0].split()[::-1]
    pairs = drawn_sentences(GLUE["mnli"], "gallery")
    assert pairs.labels.tolist() == [0, 1, 2, 0, 1, 2] and pairs.texts[1][0] == scenes.gallery.captions[0][1]
    assert pairs.texts[1][1] == scenes.gallery.captions[0][1], "of the scene before"
    scored = drawn_sentences(GLUE["stsb"], "train")
    first, second = (set(column[3].split()) for column in scored.texts)
    assert scored.labels[3] == pytest.approx(5 * len(first & second) / len(first | second))
    assert scored.labels[0::2].mean() > scored.labels[1::2].mean()
    with pytest.raises(UserError, match="the scenes have no split 'dev': they have train, gallery"):
        drawn_sentences(GLUE["rte"], "dev")


def test_the_raw_dev_set_of_cola_is_both_of_its_files(tmp_path):
    """GLUE's dev set is their union; half of it does not go by its name."""
    write(tmp_path, "cola", ROWS["cola"][0], "bc01\t1\t\tIt rains.", file="in_domain_dev.tsv")
    half = read_glue("cola", tmp_path, "dev")
    assert half.labels.tolist() == [0, 1] and half.name == "cola in-domain dev"
    write(tmp_path, "cola", "w_80\t1\t\tIt is wet.", file="out_of_domain_dev.tsv")
    whole = read_glue("cola", tmp_path, "dev")
    assert whole.labels.tolist() == [0, 1, 1] and whole.name == "cola dev" and whole.texts[0][-1] == "It is wet."
    write(tmp_path, "cola", ROWS["cola"][0], file="dev.tsv")
    assert len(read_glue("cola", tmp_path, "dev").labels) == 1


def test_a_row_without_a_label_is_counted(tmp_path, caplog):
    """Where annotators did not agree a file has '-'."""
    fields = ROWS["mnli"][0].rpartition("\t")[0]
    rows = (ROWS["mnli"][0], f"{fields}\t-", f"{fields}\t")
    found = read_glue("mnli", write(tmp_path, "mnli", *rows), "train")
    assert len(found.labels) == 1 and found.skipped == {"no label": 2}
    assert "2 rows are left out (2 no label)" in caplog.text


@pytest.mark.parametrize("name", ["cola", "rte"])
def test_a_file_may_begin_with_empty_lines(tmp_path, name):
    write(tmp_path, name, ROWS[name][0])
    file = tmp_path / "train.tsv"
    file.write_text("\n\n" + file.read_text())
    assert read_glue(name, tmp_path, "train").labels.tolist() == [ROWS[name][2]]
    with file.open("a") as more:
        more.write(ROWS[name][0].replace(ROWS[name][0].split("\t")[{"cola": 1, "rte": 3}[name]], "9") + "\n")
    with pytest.raises(UserError, match=f"train.tsv, line {4 + (name == 'rte')}: the label '9'"):
        read_glue(name, tmp_path, "train")


def test_another_split_that_there_is_is_named(tmp_path):
    """Microsoft's own files of MRPC have no dev set."""
    for part in ("train", "test"):
        write(tmp_path, "mrpc", ROWS["mrpc"][0], file=f"msr_paraphrase_{part}.txt")
    assert splits_in("mrpc", tmp_path) == ("train", "test")
    with pytest.raises(UserError, match="no dev.tsv in .* files, or another split: there is train and test"):
        read_glue("mrpc", tmp_path, "dev")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "train", "dev"),
    [
        ("cola", "cola_public/raw", 8_551, 527),
        ("rte", "glue/RTE", 1_244, 139),
        ("stsb", "glue/STS-B", 4_249, 1_500),
        ("wnli", "glue/WNLI", 565, 70),
    ],
)
def test_no_row_of_the_real_files_is_lost(real_data, name, folder, train, dev):
    """The lines that `wc -l` counts, of RTE and WNLI less that of their header."""
    found = [read_glue(name, real_data / "text" / folder, split) for split in ("train", "dev")]
    assert [len(own.labels) for own in found] == [train, dev] and not any(own.skipped for own in found)

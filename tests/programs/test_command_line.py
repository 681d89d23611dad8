"""Mistakes at the command line: one line that names the thing and the remedy, status 2, nothing lost."""

import json
import re
import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from smke_jax.__main__ import main
from smke_jax.convert.params_file import save_params
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.models.teachers import build_teacher

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


@pytest.fixture
def fails(capsys):
    """Runs `smke …`; returns the one line it printed as its error."""

    def run(*argv) -> str:
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        printed = capsys.readouterr().err.splitlines()
        errors = [line for line in printed if line.startswith("error: ")]
        assert len(errors) == 1 and printed[-1] == errors[0], printed
        assert not [line for line in printed if "Traceback" in line]
        return errors[0]

    return run


@pytest.fixture
def train_fails(fails, config_file, tmp_path):
    """`smke train` of the tiny config with more flags."""
    return lambda *flags: fails("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *flags)


def test_an_unknown_program_is_named_beside_the_known_ones(capsys):
    assert main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert err == "error: smke has no program 'trian'\n" and "train " in out and "evaluate " in out


def test_help_is_no_error(capsys):
    assert main(["--help"]) == 0
    assert "prepare" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize("program", ["prepare", "evaluate", "export"])
def test_programs_explain_their_flags(program, capsys):
    with pytest.raises(SystemExit) as stop:
        main([program, "--help"])
    assert stop.value.code == 0 and f"smke {program}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([program, "--unknown_flag=1"])
    assert stop.value.code == 2


def test_a_missing_config_file(fails, tmp_path):
    assert f"no config file {tmp_path / 'x.py'}: give --config=FILE" in fails(
        "train", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'run'}"
    )


@pytest.mark.parametrize("text,problem", [
    ("def get_config(:\n", "invalid syntax"),
    ("import no_such_module\n", "no_such_module"),
    ("def get_config():\n    return undefined_name\n", "undefined_name"),
    ("x = 1 / 0\n", "division by zero"),
    ("from smke_jax.config import base\ndef get_config():\n    c = base()\n    c.bach_size = 3\n    return c\n",
     "bach_size"),
    ("from smke_jax.config import base\ndef get_config():\n    c = base()\n    c.batch_size = 'many'\n    return c\n",
     "batch_size"),
    ("y = 1\n", "get_config"),
])  # fmt: skip
def test_a_config_file_that_does_not_run(fails, tmp_path, text, problem):
    path = tmp_path / "broken.py"
    path.write_text(text)
    message = fails("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert "broken.py" in message and problem in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag,parts", [
    ("--config.bach_size=3", ["config.bach_size", "did you mean config.batch_size?"]),
    ("--config.student.image.patchsize=3", ["did you mean config.student.image.patch_size?"]),
    ("--config.batch_size=many", ["batch_size", "many"]),
    ("--config.optimizer.learning_rate=fast", ["learning_rate", "fast"]),
    ("--wrokdir=x", ["unknown flag --wrokdir", "did you mean workdir?"]),
    ("stray", ["unexpected argument 'stray'"]),
])  # fmt: skip
def test_flags_that_do_not_exist_or_do_not_fit(train_fails, flag, parts):
    message = train_fails(flag)
    assert all(part in message for part in parts), message


def test_missing_flags(fails, config_file, tmp_path):
    assert "needs --config=FILE and --workdir=DIR" in fails("train", f"--config={config_file}")
    assert "needs --config=FILE and --workdir=DIR" in fails("train", f"--workdir={tmp_path / 'run'}")


def test_data_that_is_not_there(train_fails, tmp_path):
    assert "config.data.dir is empty" in train_fails("--config.data.source=prepared")
    message = train_fails("--config.data.source=prepared", f"--config.data.dir={tmp_path / 'none'}")
    assert f"no prepared dataset at {tmp_path / 'none'}: make it with `smke prepare" in message
    assert "unknown config.data.source 'web'" in train_fails("--config.data.source=web")
    assert "no split 'trian'" in train_fails("--config.data.split=trian")
    assert "neither 'pairs' nor 'images'" in train_fails("--config.data.unit=captions")
    assert not (tmp_path / "run/checkpoints").exists()


def write_flickr8k(root: Path) -> Path:
    """Four photos to train with; the only one for dev is cut off."""
    (root / "Flicker8k_Dataset").mkdir(parents=True)
    for i, name in enumerate("abcde"):
        path = root / "Flicker8k_Dataset" / f"{name}.jpg"
        noise = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((40, 36)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    text = root / "Flickr8k_text"
    text.mkdir()
    rows = [f"{n}.jpg#{k}\t{word} {n} runs\n" for n in "abcde" for k, word in enumerate(("dog", "cat"))]
    (text / "Flickr8k.token.txt").write_text("".join(rows))
    (text / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n")
    (text / "Flickr_8k.devImages.txt").write_text("e.jpg\n")
    return root


def test_an_empty_split(train_fails, tmp_path):
    source = write_flickr8k(tmp_path / "source")
    assert main(["prepare", "flickr8k", f"--source={source}", f"--out={tmp_path / 'data'}"]) == 0
    message = train_fails(
        "--config.data.source=prepared", f"--config.data.dir={tmp_path / 'data'}", "--config.data.split=dev"
    )
    assert "split 'dev'" in message and "is empty" in message and "use train" in message


def test_a_batch_that_does_not_divide_over_the_devices(train_fails, tmp_path):
    message = train_fails("--config.batch_size=12", "--config.num_devices=8")
    assert "batch_size 12 does not divide over 8 devices" in message
    assert int(re.search(r"set it to (\d+)", message)[1]) % 8 == 0
    assert f"{jax.device_count() + 1} devices were asked for" in train_fails(
        f"--config.num_devices={jax.device_count() + 1}"
    )
    message = train_fails("--config.batch_size=64", "--config.terms.target_itc.bank_size=0")
    assert "fewer than one batch of 64: lower batch_size" in message
    assert not (tmp_path / "run/run.json").exists()


def variant(config_file: Path, lines: str) -> Path:
    """A config file that changes the tiny config by `lines`."""
    path = config_file.with_name("changed.py")
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    path.write_text(tiny.CONFIG_FILE + f"\n\ndef get_config(base=get_config):\n    c = base()\n{body}    return c\n")
    return path


@pytest.mark.parametrize("lines,parts", [
    ("c.passes = ('student',)", ["config.terms.target_itc needs target/cls", "(student)", "image/head"]),
    ("c.passes = ('student', 'tutor')", ["unknown pass 'tutor'", "teacher"]),
    ("c.passes = ('teacher',)", ["trains nothing", "student"]),
    ("c.terms.itcc = {'weight': 1.0}", ["unknown term 'itcc'", "itc"]),
    ("c.terms.itc.level = ('out',)", ["config.terms.itc", "'level'"]),
    ("c.terms.itc.weight = 0.0\nc.terms.target_itc.weight = 0.0", ["all its weights are 0"]),
    ("c.terms.itc.levels = ('fc3',)", ["config.terms.itc needs image/fc3", "image/fc1"]),
    ("c.terms.target_itc.bank_size = 4", ["bank_size 4 is smaller than the batch of 8"]),
    ("c.total_steps = 0", ["either config.total_steps or config.epochs", "0 and 0"]),
    ("c.epochs = 1.0", ["either config.total_steps or config.epochs", "6 and 1.0"]),
    ("c.optimizer.name = 'sgd'", ["sgd", "adamw"]),
    ("c.student.image.patch_size = 15", ["patch", "15"]),
    ("c.student.image.num_heads = 5", ["width 32", "5 heads"]),
    ("c.student.text.width = 16", ["equal widths", "16"]),
    ("c.student.text.max_positions = 4", ["8 tokens", "4 positions"]),
    ("c.student.image.activation = 'swish'", ["swish", "gelu"]),
    ("c.student.image.norm_order = 'middle'", ["config.student.image.norm_order is 'middle'", "pre"]),
    ("c.teacher.type = 'inception'", ["inception", "beit"]),
    ("c.data.views = 'three_views'", ["three_views", "two_views"]),
    ("c.data.tokenizer = '/nowhere'", ["no tokenizer at /nowhere"]),
    ("c.data.vocab_size = 8", ["vocab_size=8 is too small"]),
    ("c.student.image.init = '/nowhere.safetensors'", ["no weights at /nowhere.safetensors"]),
    ("c.eval.level = 'fc9'", ["eval.level", "fc9", "out"]),
    ("c.eval.split = 'test'", ["no split 'test'"]),
])  # fmt: skip
def test_recipes_that_cannot_work(fails, config_file, tmp_path, lines, parts):
    message = fails("train", f"--config={variant(config_file, lines)}", f"--workdir={tmp_path / 'run'}")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run/run.json").exists(), "the mended command could not use this folder"


@pytest.fixture(scope="module")
def teacher():
    """(its config, random parameters)"""
    config = tiny.tiny_config().teacher
    images = np.zeros((1, 32, 32, 3), np.float32)
    return config, jax.device_get(jax.jit(build_teacher(config).init)(jax.random.key(0), images)["params"])


def write_teacher(path: Path, teacher, **changes) -> Path:
    config, params = teacher
    model = {**{k: v for k, v in config.items() if k != "checkpoint"}, **changes}
    save_params(path, params, {"model": model})
    return path


def test_teachers_that_cannot_be_used(train_fails, teacher, tmp_path):
    assert "teacher.checkpoint is empty: give a safetensors file, or 'random'" in train_fails(
        "--config.teacher.checkpoint="
    )
    path = tmp_path / "teacher.safetensors"
    flag = f"--config.teacher.checkpoint={path}"
    assert f"no weights at {path}" in train_fails(flag)
    write_teacher(path, teacher, width=64)
    message = train_fails(flag)
    assert f"{path} does not fit the model" in message and "is (32,) in the file and (64,) in the model" in message
    write_teacher(path, teacher, depth=2)
    assert "missing block_1/" in train_fails(flag)
    write_teacher(path, teacher, type="student")
    assert "type 'student', which is no teacher" in train_fails(flag)
    write_teacher(path, teacher, vocab_size=3)
    assert "describes its model by 'vocab_size'" in train_fails(flag)
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path} is no sound safetensors file" in train_fails(flag)
    path.write_bytes(b"not safetensors at all")
    assert f"{path} is no sound safetensors file" in train_fails(flag)


@pytest.mark.slow
def test_a_poisoned_teacher_stops_the_run_with_the_tensors_name(train_fails, teacher, tmp_path):
    config, params = teacher
    poisoned = jax.tree.map(np.array, params)
    poisoned["norm"]["scale"][3] = np.nan
    path = write_teacher(tmp_path / "teacher.safetensors", (config, poisoned))
    message = train_fails(f"--config.teacher.checkpoint={path}")
    note = tmp_path / "run/non-finite-step-1.json"
    assert "step 1: representation/target/cls is not finite" in message and str(note) in message
    written = json.loads(note.read_text())
    assert written["tensor"] == "representation/target/cls" and len(written["ids"]) == 8
    assert set(written["ids"]) <= set(range(16))
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.slow
def test_an_enormous_learning_rate_stops_the_run(train_fails, tmp_path):
    message = train_fails("--config.optimizer.learning_rate=1e38", "--config.optimizer.warmup_fraction=0.0")
    found = re.search(r"step (\d): (\S+) is not finite", message)
    assert found and int(found[1]) in (2, 3) and found[2].startswith(("params/", "representation/"))
    assert "another --workdir with a lower learning rate" in message
    for saved in tmp_path.glob("run/checkpoints/*"):
        assert int(saved.name) < int(found[1])


@pytest.mark.slow
# tensorstore's threads complain about closed event loops after the failure provoked here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_while_saving(train_fails, config_file, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        message = train_fails()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "disk full while saving step 2" in message and "newest sound checkpoint is none" in message
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_another_vocabulary_than_the_runs(fails, train_fails, config_file, tmp_path):
    run = tmp_path / "run"
    assert main(["train", f"--config={config_file}", f"--workdir={run}"]) == 0
    shutil.rmtree(run / "tokenizer")
    train_wordpiece(["quite another vocabulary for the very same run"], 60).save(run / "tokenizer")
    message = train_fails()
    assert "tokenizer" in message and "there" in message
    message = fails("evaluate", f"--workdir={run}")
    assert f"{run / 'tokenizer'} is not the vocabulary" in message and "put the original back" in message


@pytest.mark.slow
@pytest.mark.real_data
def test_flickr8k_from_photos_to_figures(real_data, tmp_path, capsys):
    photos = real_data / "flickr8k"
    source = tmp_path / "source"
    text = source / "Flickr8k_text"
    text.mkdir(parents=True)
    (source / "Flicker8k_Dataset").symlink_to(photos / "Flicker8k_Dataset")
    shutil.copy(photos / "Flickr8k_text/Flickr8k.token.txt", text)
    names = {s: (photos / f"Flickr8k_text/Flickr_8k.{s}Images.txt").read_text().split() for s in ("train", "dev")}
    for split, chosen in (("train", names["train"][:300]), ("dev", names["dev"][:60]), ("test", names["dev"][60:80])):
        (text / f"Flickr_8k.{split}Images.txt").write_text("\n".join(chosen) + "\n")
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["prepare", "flickr8k", f"--source={source}", f"--out={data}", "--max_side=96"]) == 0
    assert main([
        "train", f"--config={REPOSITORY / 'configs/flickr8k.py'}:itc", f"--workdir={run}", f"--config.data.dir={data}",
        "--config.batch_size=32", "--config.total_steps=3", "--config.num_devices=2", "--config.eval.batch_size=32",
        "--config.data.vocab_size=600", "--config.data.max_length=12",
        "--config.student.image.image_size=32", "--config.student.image.depth=1", "--config.student.text.depth=1",
        "--config.student.image.width=48", "--config.student.text.width=48",
        "--config.student.image.mlp_dim=64", "--config.student.text.mlp_dim=64", "--config.student.shared.mlp_dim=64",
    ]) == 0  # fmt: skip
    assert_figures(json.loads((run / "evals/3/retrieval.json").read_text()), 60)
    for split, count, name in (("dev", 60, "retrieval.json"), ("test", 20, "retrieval-test.json")):
        out = tmp_path / f"{split}.json"
        capsys.readouterr()
        assert main(["evaluate", f"--workdir={run}", f"--split={split}", f"--out={out}"]) == 0
        printed = capsys.readouterr().out
        assert f"{count} images, {5 * count} captions" in printed and str(out) in printed
        written = json.loads(out.read_text())
        assert_figures(written, count)
        assert written == json.loads((run / "evals/3" / name).read_text())


def assert_figures(figures: dict, images: int) -> None:
    assert {"protocol", "n_images", "n_captions", "image_to_text", "text_to_image"} <= set(figures)
    assert (figures["n_images"], figures["n_captions"]) == (images, 5 * images)
    assert (
        figures["protocol"].startswith("flickr8k ")
        and "any-of-n" in figures["protocol"]
        and "32 px squashed, 12 tokens" in figures["protocol"]
    )
    for direction, rivals in (("image_to_text", 5 * images), ("text_to_image", images)):
        values = figures[direction]
        assert set(values) == {"r1", "r5", "r10", "median_rank"}
        assert 0 <= values["r1"] <= values["r5"] <= values["r10"] <= 100 and 1 <= values["median_rank"] <= rivals

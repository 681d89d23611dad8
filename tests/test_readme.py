"""Every command of the README in small form, in its order, in an empty folder."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from made_up import jpeg, write

from smke_jax.__main__ import main
from smke_jax.flags import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
SHORT = [
    *("--config.total_steps=2", "--config.batch_size=8", "--config.eval_batch_size=8"),
    "--config.optimizer.name=adamw",  # Muon compiles for longer, and other tests train with it
]


def sizes_of(part: str, **more) -> list[str]:
    return [f"--config.networks.{part}.{key}={value}" for key, value in {**SIZES, **more}.items()]


# {how a command begins: what makes it small}; None: what test runs it instead.
SMALL = {
    "smke doctor": None,  # tests/programs/test_doctor.py: it may find that the machine is full
    "smke demo": None,  # tests/programs/test_demo.py
    "smke prepare flickr8k": [],
    "smke train --config=configs/lit.py:flickr8k": [
        *SHORT,
        "--config.networks.dinov2.layers=1",
        "--config.networks.lite0.layers=1",
        "--config.networks.lite2.layers=1",
    ],
    "smke convert --checkpoint=package": None,  # tests/programs/test_real_weights.py
    "smke report": [],
    "smke evaluate": [],
    "smke export": [],
    "smke convert": [],
    "smke index": [],
    "smke search": ["--min_score=-1", "--top=3"],  # a model of two steps has no answers
    "smke search --similar": ["--min_score=0.001"],
    "smke serve": None,  # tests/programs/test_serve_program.py
    "smke plan": ["--no-largest", "--examples=100", *sizes_of("student.image"), *sizes_of("student.text")],
    "smke sweep": ["--dry_run"],  # tests/studies/test_sweep.py trains one
    "smke compare": [],
}
PLANNED = [
    *("--config.networks.student.shared.num_heads=2", "--config.networks.student.shared.mlp_dim=48"),
    *("--config.networks.student.head=32", "--config.batch_size=8", "--config.terms.target_itc.bank_size=64"),
    *(f"--config.networks.teacher.model.{key}={value}" for key, value in SIZES.items()),
]


def commands() -> list[str]:
    """What stands in the README's blocks of shell commands and begins with `smke`."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [part.partition("#")[0].strip() for block in blocks for line in block.splitlines()
             for part in line.split("&&")]  # fmt: skip
    return [line for line in lines if line.startswith("smke ")]


def flickr8k(folder: Path) -> None:
    """Photos, captions and lists as the data set has them."""
    names = {split: [f"{split}{i}.jpg" for i in range(n)] for split, n in (("train", 16), ("dev", 6), ("test", 2))}
    words = ("a red dog runs", "two people sit", "the blue car", "children in the snow", "a bird over water")
    files = {f"Flicker8k_Dataset/{name}": jpeg(i) for i, name in enumerate(sum(names.values(), []))}
    photos = enumerate(sum(names.values(), []))
    tokens = [f"{name}#{k}\t{word} {i} ." for i, name in photos for k, word in enumerate(words)]
    lists = {f"Flickr8k_text/Flickr_8k.{split}Images.txt": "\n".join(known) for split, known in names.items()}
    write(folder, files | lists | {"Flickr8k_text/Flickr8k.token.txt": "\n".join(tokens)})


def towers(folder: Path) -> None:
    """Tiny networks of random weights in place of the trained ones."""
    from smke_jax.convert.params_file import save_params
    from smke_jax.data.tokenizer import train_wordpiece
    from smke_jax.models.build import param_shapes

    words = train_wordpiece(["a red dog runs over the blue snow"], 80)
    vit = {"type": "vit", "image_size": 28, "patch_size": 14, **SIZES, "mean": [0.5] * 3, "std": [0.5] * 3}
    bert = {"type": "bert", "vocab_size": words.vocab_size, "max_positions": 24, "pooler": False, **SIZES}
    bert["depth"] = 4  # of which three stay as they are
    for name, description in {"lite0": vit, "lite2": vit, "dinov2": vit, "minilm": bert}.items():
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
        (folder / name).mkdir(parents=True)
        save_params(folder / name / "params.safetensors", params, {"model": description})
    words.save(folder / "minilm/tokenizer")


def beit(path: Path) -> None:
    """A tiny BEiT v2 in its authors' file."""
    torch = pytest.importorskip("torch")
    from smke_jax.convert.layouts.beit import UNILM
    from smke_jax.convert.rules import to_torch
    from smke_jax.models.build import param_shapes

    description = {
        "type": "beit", "image_size": 32, "patch_size": 16, "width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 48,
        "shared_bias": True, "layer_scale": 0.1, "final_norm": True,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
    state = {name: torch.from_numpy(np.array(x)) for name, x in to_torch(UNILM, params, description).items()}
    torch.save({"model": state}, path)


def small(command: str) -> list[str] | None:
    """The arguments of a command in small form; None where another test runs it."""
    known = [start for start in SMALL if command.startswith(start)]
    assert known, f"{command!r} has no small form: give it one in SMALL"
    more = SMALL[max(known, key=len)]
    if more is None:
        return None
    arguments = shlex.split(command.replace("FLICKR8K", "photos").replace("PHOTOS", "photos"))[1:]
    if arguments[0] == "plan":
        more = [*more, *PLANNED]
    if arguments[0] == "compare":
        arguments = [x.replace("runs/scaling", "runs/flickr8k") for x in arguments]
    return [*arguments, *more]


def test_the_examples_of_the_programs_are_commands_of_the_readme():
    """So the test below runs them, but for those that other tests run."""
    elsewhere = {
        "train": "smke train --config=configs/scenes.py --workdir=runs/scenes",  # tests/programs/test_demo.py
        "ladder": "smke ladder --minutes=5",  # tests/studies/ladder/test_ladder_program.py
        "completion": "smke completion bash",  # tests/flags/test_completion.py
    }
    assert {name: x.example for name, x in PROGRAMS.items() if x.example not in commands()} == elsewhere


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch, capsys):
    found = commands()
    assert len(found) >= 8
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    flickr8k(tmp_path / "photos")
    towers(tmp_path / "weights")
    beit(tmp_path / "beitv2_base_patch16_224_pt1k.pth")
    for command in found:
        arguments = small(command)
        if arguments is not None:
            assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err[-2000:]}"
    assert (tmp_path / "exports/flickr8k/model.safetensors").is_file()
    assert (tmp_path / "found.html").read_text().count("data:image/jpeg") == 3
    assert (tmp_path / "runs/flickr8k/evals/2/retrieval.json").is_file()

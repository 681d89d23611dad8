"""`smke <program> …`: a dispatcher, nothing else."""

import contextlib
import errno
import functools
import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator

from smke_jax.cache_folder import cache_folder
from smke_jax.errors import UserError
from smke_jax.flags import PROGRAMS, parser_of

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
        print("usage: smke PROGRAM …")
        print("\n".join(f"  {name:{width}}  {program.summary}" for name, program in PROGRAMS.items()))
        print("`smke PROGRAM --help` begins with an example")
        return 0 if asked_for_help else 2
    keep_compiled_programs()
    return run_program(functools.partial(_run, arguments[0]), arguments[1:])


def _run(name: str, argv: list[str]) -> int:
    parser_of(name).parse_args(argv)  # help and mistakes end here, before the libraries are imported
    with quick_imports():
        program = importlib.import_module(f"smke_jax.programs.{name}")
    return program.main(argv)


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """For imports of libraries: what they make stays, and looking for garbage in it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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


def keep_compiled_programs() -> None:
    """JAX's persistent compilation cache, on unless JAX_COMPILATION_CACHE_DIR says where else or '' for nowhere."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder()))


def start_logging() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("smke_jax").setLevel(logging.INFO)
    # Orbax tells every reader that it only reads, and prints the traceback of an error that it raises as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())

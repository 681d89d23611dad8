"""`smke convert`: the work behind smke_jax/flags/convert.py, which says what it does."""

import argparse
import sys

from smke_jax.__main__ import run_program
from smke_jax.convert.convert import Conversion, convert, tokenizer_files, write
from smke_jax.convert.interpolate import for_image_size
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.packaged import opened
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.flags.convert import parser


def main(argv: list[str]) -> int:
    """Parses the command line, reads, reports and writes; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.layouts:
        print("\n".join(f"{name:20} {layout.summary}" for name, layout in sorted(LAYOUTS.items())))
        return 0
    if arguments.checkpoint is None:
        raise UserError("give --checkpoint=FILE, the file to read, or --layouts to see which kinds are read")
    if not arguments.dry_run:
        if arguments.out is None:
            raise UserError("give --out=DIR to write to, or --dry_run to see the report alone")
        if arguments.out.exists():
            raise UserError(f"{arguments.out} is already there: remove it or choose another --out")
    heads = arguments.num_heads
    if heads is not None and heads < 1:
        raise UserError(f"--num_heads={heads}: give the number of attention heads, 1 or more")
    fields = {} if heads is None else {"num_heads": heads}
    with opened(arguments.checkpoint, trust_code=arguments.trust_code) as source:
        conversion = _with_pixel_statistics(
            convert(source, arguments.layout, prefix=arguments.prefix, **fields), arguments
        )
        _report(conversion, source, detail=arguments.dry_run)
        tokenizer_files(source, conversion.description)  # what is wrong with them is said by a dry run, too
        if arguments.image_size is not None:
            before = conversion.description
            params, description = for_image_size(conversion.params, before, arguments.image_size)
            conversion = conversion._replace(params=params, description=description)
            print(f"resized     from images of {before['image_size']} to {arguments.image_size} pixels")
        if not arguments.dry_run:
            write(arguments.out, conversion, source)
            print(f"wrote {arguments.out}")
    return 0


def _report(conversion: Conversion, source: Source, *, detail: bool) -> None:
    """Prints what became of the file; raises UserError where it does not fit its layout."""
    print(f"layout      {conversion.layout.name}: {conversion.layout.summary}")
    print("model       " + ", ".join(f"{k} {v}" for k, v in conversion.description.items()))
    for note in source.notes:
        print(note)
    print("\n".join(conversion.report.lines(detail=detail)))
    if not conversion.report.sound:
        raise UserError(f"{source.path} does not fit {conversion.layout.name}, see above; nothing was written")


def _with_pixel_statistics(conversion: Conversion, arguments: argparse.Namespace) -> Conversion:
    """`conversion` with the --mean and --std that were given."""
    given = {name: tuple(x) for name in ("mean", "std") if (x := getattr(arguments, name)) is not None}
    if given.keys() - conversion.description.keys():
        raise UserError(f"--{' and --'.join(given)}: a {conversion.description['type']} takes none, leave them out")
    report = conversion.report
    report = report._replace(assumed=tuple(name for name in report.assumed if name not in given))
    return conversion._replace(description={**conversion.description, **given}, report=report)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))

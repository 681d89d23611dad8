"""`smke export`: a run's trained network as a directory for others to use, checked against the original.

Of a self-supervised run it is the encoder without its projector, of a run that learns codes the quantiser, both in the
format flax alone: what the config of another run begins with.  Of any other run it is the whole student.  Images and
captions of the run's own data go through both networks; their difference stands in the export's README.md, and an
export that differs too much is not written.  Of a quantiser random vectors go through both.

--dtype=int8 keeps matrices as whole numbers of 8 bits with a scale for each channel, in the format flax; what computes
with them is fp32.  Its README.md says what it retrieves on the split of the run's own evaluation, beside the run.
"""

from pathlib import Path

from smke_jax.convert.export import DTYPES, FORMATS
from smke_jax.flags import Parser, program_parser, step


def parser() -> Parser:
    """The parser of `smke export`."""
    formats = "\n".join(f"  {name:8} {summary}" for name, summary in FORMATS.items())
    parser = program_parser("export", __doc__, "formats:", formats)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of `smke train`")
    parser.add_argument("--step", type=step, metavar="N|best|latest", help="default: latest")
    parser.add_argument("--format", choices=FORMATS, default="flax", help="default: flax")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; default: float32")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    return parser

"""`smke train`: trains what a config describes; the same command continues a run.

A config of several stages is trained in order, each stage in WORKDIR/STAGE.  --config.a.b=value changes a field of the
config; --config.STAGE.a.b=value changes one of the stages, and without the name of a stage the last one.  Ctrl-C saves
and stops.

Every config comes in a form FILE:smoke, of two steps on drawn scenes, to see it work in less than two minutes.
"""

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke train`."""
    parser = program_parser("train", __doc__, changes_config=True)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]", help="config file, or the name of a shipped one")
    add("--workdir", required=True, metavar="DIR", help="run directory; an existing one is continued")
    add("--coordinator", metavar="HOST:PORT", help="of process 0; default: SMKE_COORDINATOR")
    add("--num_processes", type=int, metavar="N", help="how many processes; default: SMKE_NUM_PROCESSES")
    add("--process_id", type=int, metavar="I", help="the number of this one; default: SMKE_PROCESS_ID")
    return parser

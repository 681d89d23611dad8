"""`smke evaluate`: what the evaluators of a run find, at any of its checkpoints and on any split or prepared folder.

Neither the training data nor files of weights are needed that no evaluator reads.
`--config.evaluators.NAME.FIELD=VALUE` changes a field of an evaluator; what departs from the run's own evaluation
stands in the name of its file, such as evals/STEP/retrieval-test.json.  --evaluator also takes an evaluator that the
run does not have, such as `--evaluator=zero_shot --data=data/flowers`: there, and with `--evaluator=probe`, --data is a
folder of labelled images.
`--evaluator=encoders --data=data/glue` probes the encoders of any run on the tasks in this folder, beside the files
that they began with.
"""

from pathlib import Path

from smke_jax.flags import Parser, program_parser, step


def parser() -> Parser:
    """The parser of `smke evaluate`."""
    parser = program_parser("evaluate", __doc__, changes_config=True)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="run directory of `smke train`, or an export, or converted weights"
    )
    parser.add_argument("--evaluator", metavar="NAME", help="of the run, or another one (default: all of the run's)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="written by `smke prepare` (default: the run's own); with --evaluator=zero_shot or probe: labelled images",
    )  # fmt: skip
    parser.add_argument("--split", help="default: each evaluator's own; of an export, test or else dev of --data")
    parser.add_argument("--step", type=step, metavar="N|best|latest", help="default: latest")
    parser.add_argument("--level", help="what is compared: fc1, out or head (default: each evaluator's own)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the figures of one evaluator there too, as JSON"
    )
    return parser

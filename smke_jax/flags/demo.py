"""`smke demo`: distil a self-supervised image teacher into a small image-text model, on drawn scenes, in minutes."""

from pathlib import Path

from smke_jax.flags import Parser, program_parser

SMALL_TEACHER_STEPS = 150


def parser() -> Parser:
    """The parser of `smke demo`."""
    parser = program_parser("demo", __doc__)
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/demo"), help="default: runs/demo; continued if there"
    )
    parser.add_argument("--compare", action="store_true", help="train ITC alone too, instead of its recorded figures")
    parser.add_argument(
        "--train_teacher", action="store_true", help="remake a small teacher instead of the shipped one"
    )
    parser.add_argument("--teacher_steps", type=int, default=SMALL_TEACHER_STEPS, help="steps of that teacher")
    parser.add_argument("--steps", type=int, help="training steps, to try things out in less time")
    return parser

"""`smke index`: embeds the photos below a folder, so that `smke search` finds them.

  smke index --model=runs/flickr8k --photos=$HOME/Pictures --out=photos.index

The same command brings the index up to date: photos that are new or changed are embedded, those that were deleted are
forgotten, and those that were moved or renamed keep their embedding.  It also continues after a kill.  Hidden files,
hidden and system folders and links to folders are passed over.  What cannot be read is skipped and listed in
skipped.jsonl with its reason.  The photos stay where they are, and nothing leaves this machine.
"""

from pathlib import Path

from smke_jax.flags import Parser, positive, program_parser, step


def parser() -> Parser:
    """The parser of `smke index`."""
    parser = program_parser("index", __doc__)
    parser.add_argument("--model", required=True, metavar="RUN|EXPORT", help="what `smke_jax.load` opens")
    parser.add_argument("--step", type=step, metavar="N|best|latest", help="of a run; default: latest")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos at once; default: 32")
    return parser

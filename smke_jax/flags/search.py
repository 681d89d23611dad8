"""`smke search`: finds photos of an index by a text, by a photo, or by both.

  smke search "two dogs in the snow" --index=photos.index
  smke search --image=a.jpg --minus="a red car" --index=photos.index
  smke search --similar --index=photos.index

Several texts and images are added up, and each --minus is taken away.  A text alone shows the photos that answer the
text by the cut-off of smke_jax/search/cutoff.py, or says that none does.  Anything else shows the best ones.
--min_score sets a cosine in place of the cut-off; -1 shows all.  The exit status is 0 where something was found, 1
where nothing was, 2 after an error.  The model knows the languages and things that it was trained on, and reads no
text inside of photos.
"""

import argparse
from pathlib import Path

from smke_jax.flags import Parser, positive, program_parser
from smke_jax.search.dates import seconds_of


def parser() -> Parser:
    """The parser of `smke search`."""
    parser = program_parser("search", __doc__)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="what to look for, in quotes; several are added up")
    add("--index", type=Path, required=True, metavar="INDEX", help="what `smke index` wrote")
    add("--model", metavar="RUN|EXPORT", help="where the model of the index is now; default: where it was")
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="a photo to add to the query")
    add("--minus", action="append", default=[], metavar="TEXT", help="a text to take away from the query")
    add("--similar", action="store_true", help="instead of a query: groups of photos that are nearly the same")
    add("--top", type=positive, default=12, metavar="N", help="photos, or groups of --similar; default: 12")
    add("--min_score", "--min-score", type=float, metavar="X", help="lowest cosine, in place of the cut-off")
    add("--since", type=_date, metavar="DATE", help="photos of that day or later: YYYY, YYYY-MM or YYYY-MM-DD")
    add("--folder", metavar="DIR", help="photos below this folder only")
    add("--sort", choices=("score", "date"), default="score", help="date: of what is shown, the newest first")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--paths", action="store_true", help="print paths alone")
    add("--html", type=Path, metavar="FILE", help="write a page with the photos, too")
    return parser


def _date(text: str) -> int:
    try:
        return seconds_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: give YYYY, YYYY-MM or YYYY-MM-DD") from None

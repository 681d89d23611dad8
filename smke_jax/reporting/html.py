"""Pieces of a self-contained HTML page: everything is escaped, every picture is embedded."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from smke_jax.errors import UserError

# The policy is a second lock behind the escaping: no script runs and nothing is fetched, whatever a caption
# holds.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.  On a dark page the darker ones are
# lightened.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
SERIES_ON_DARK = ("#4AA8E8", "#F07A2A", "#1FC297", "#DE95BC", "#EBB13A", "#8BCFF5", "#A0A6AC")

LIGHT = {
    "page": "#f4f6f8", "box": "#ffffff", "ink": "#1c2126", "soft": "#5c6670", "line": "#dfe3e8", "grid": "#e3e6ea",
    "own": "#eef5fb", "right": "#1a8a3c", "wrong": "#c62828",
}  # fmt: skip
DARK = {
    "page": "#101418", "box": "#1a2026", "ink": "#e6e9ec", "soft": "#a3adb6", "line": "#313a43", "grid": "#333c45",
    "own": "#1d2d3b", "right": "#4cc474", "wrong": "#ff7b72",
}  # fmt: skip


def _variables(colours: dict[str, str], series: tuple[str, ...]) -> str:
    numbered = {f"series{number}": colour for number, colour in enumerate(series)}
    return " ".join(f"--{name}: {colour};" for name, colour in {**colours, **numbered}.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT, SERIES)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK, SERIES_ON_DARK)} }} }}
"""
STYLE += """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 16px 0 4px; }
p { margin: 4px 0; overflow-wrap: anywhere; }
section { background: var(--box); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin: 16px 0; }
.soft, figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 16px 0; }
.tiles div { background: var(--box); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
thead tr:not(:last-child) th { text-align: center; border-bottom: 0; padding-bottom: 0; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 130px; }
table.said th { text-align: left; white-space: normal; }
table.said td { text-align: left; white-space: normal; overflow-wrap: break-word; }
.whole { white-space: nowrap; }
.confusion { width: auto; }
.confusion th, .confusion td { padding: 6px 5px; vertical-align: middle; }
.confusion th { overflow-wrap: break-word; }
.confusion tbody th { position: sticky; left: 0; max-width: 12rem; min-width: 0; background: var(--box); }
.confusion thead th { vertical-align: bottom; } .confusion th + th { text-align: center; }
.confusion span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 12rem; vertical-align: bottom;
  text-align: left; white-space: normal; }
.confusion td { min-width: 2.2rem; text-align: center; font-size: .9rem; }
.confusion td:last-child { text-align: right; }
.recalls td:last-child { text-align: left; white-space: normal; min-width: 160px; color: var(--soft);
  font-size: .85rem; }
td small { display: block; color: var(--soft); font-size: .72rem; }
tr.own td { background: var(--own); font-weight: 600; }
tr.own small, tr.own td:last-child { font-weight: 400; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; }
.plot { width: 100%; max-width: 640px; height: auto; display: block; color: var(--ink); }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { fill: currentColor; font-family: system-ui, sans-serif; }
.hits { display: grid; grid-template-columns: repeat(5, minmax(0, 160px)); gap: 10px; }
.hits.many { grid-template-columns: repeat(auto-fill, minmax(min(45%, 160px), 1fr)); }
.row { padding: 12px 0; border-top: 1px solid var(--line); }
.row > p { margin-bottom: 8px; font-weight: 500; }
.pair { display: grid; grid-template-columns: 160px 1fr; gap: 16px; align-items: start; }
.hit img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; border-radius: 6px;
  border: 4px solid var(--line); }
.hit.right img { border-color: var(--right); } .hit.wrong img { border-color: var(--wrong); }
.mark { font-weight: 700; }
.right .mark { color: var(--right); } .wrong .mark { color: var(--wrong); }
ol { margin: 0; padding-left: 24px; } li { overflow-wrap: anywhere; margin-bottom: 2px; }
dl { display: grid; grid-template-columns: 200px 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--page); border-radius: 6px; padding: 10px; font-size: .85rem; margin: 8px 0 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (max-width: 600px) {
  section { padding: 12px; }
  .hits { grid-template-columns: repeat(3, minmax(0, 1fr)); } .pair { grid-template-columns: 92px 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  th, td { padding: 6px; } th:first-child, td:first-child { min-width: 76px; }
  td small { white-space: normal; }
}
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
"""


# Where names of fields and files may go on in a new line; a number such as 1,000 or 0.35 stays in one.
AFTER = re.compile(r"(?<=[./_,=])(?!(?<=\d[.,])\d)(?=\w)")
WHOLE = re.compile(r"\b\d[\d.,]*(?:e-\d+| %)")  # such as 1e-06 and 5.0 %, which browsers break inside
EMBEDDED = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")


def escape(value) -> str:
    """`value` as text that is safe between tags and inside quoted attributes."""
    # A file name may carry lone surrogates, which UTF-8 cannot hold.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def page(title: str, body: str) -> str:
    """A whole document; `title` is text, `body` is HTML."""
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def section(heading: str, *parts: str, note: str = "") -> str:
    """A titled box around HTML parts, with a line of plain text under the heading."""
    head = f"<h2>{escape(heading)}</h2>\n{paragraph(note, 'soft')}"
    return "\n".join(["<section>", head, *parts, "</section>"])


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text; nothing for no text."""
    return f'<p class="{style}">{escape(text)}</p>\n' if text else ""


def figure(drawing: str, caption: str) -> str:
    """An <svg> element with its caption below it."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _broken(text) -> str:
    """`text` escaped, with the places at which a narrow page may break a long name."""
    broken = "<wbr>".join(escape(piece) for piece in AFTER.split(str(text)))
    return WHOLE.sub(r'<span class="whole">\g<0></span>', broken)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, said: bool = False) -> str:
    """A table of plain text, which scrolls where it is wider than the page.  `said`: its cells are no numbers."""
    cell = _broken if said else escape
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = "\n".join(f"<tr>{''.join(f'<td>{cell(text)}</td>' for text in row)}</tr>" for row in rows)
    style = ' class="said"' if said else ""
    return f'<div class="scroll"><table{style}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def hit(image, is_right: bool | None, note: str = "", alt: str = "") -> str:
    """A photo framed green (right), red (wrong) or grey (unknown), with tick or cross and a note below it."""
    return (
        f'<figure class="hit {_verdict(is_right)}"><img alt="{escape(alt)}" src="{photo(image)}">'
        f"<figcaption>{_mark(is_right)} {escape(note)}</figcaption></figure>"
    )


def hits(found: Iterable[str]) -> str:
    """Photos beside each other, as `hit` makes them."""
    return f'<div class="hits">{"".join(found)}</div>'


def caption_item(caption: str, is_right: bool | None) -> str:
    """A list item: a caption with its tick or cross."""
    return f'<li class="{_verdict(is_right)}">{_mark(is_right)} {escape(caption)}</li>'


def list_item(text: str) -> str:
    """A list item of plain text."""
    return f"<li>{escape(text)}</li>"


def photo(image, side: int = 256) -> str:
    """`small_jpeg` as the address of an embedded picture; such an address is returned as it is."""
    if isinstance(image, str) and EMBEDDED.fullmatch(image):
        return image
    return f"data:image/jpeg;base64,{_base64(small_jpeg(image, side))}"


def small_jpeg(image, side: int) -> bytes:
    """A uint8 image (H, W, 3) or (H, W) as a JPEG of at most `side` pixels each way; UserError otherwise."""
    pixels = np.asarray(image)
    has_pixels = pixels.ndim in (2, 3) and pixels.size and pixels.shape[2:] in ((), (3,))
    if pixels.dtype != np.uint8 or not has_pixels:
        raise UserError(
            f"an image of the report is {pixels.dtype}{list(pixels.shape)}: give uint8 (H, W, 3) "
            "from before normalisation"
        )
    thumbnail = Image.fromarray(pixels)
    thumbnail.thumbnail((side, side))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _verdict(is_right):
    return "" if is_right is None else "right" if is_right else "wrong"


def _mark(is_right):
    # Said in words too: a screen reader reads no colours.
    if is_right is None:
        return ""
    return f'<span class="mark" title="{_verdict(is_right)}">{"✓" if is_right else "✗"}</span>'

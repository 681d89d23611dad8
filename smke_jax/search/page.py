"""The answer to a query as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

from smke_jax import atomic
from smke_jax.data.decode import BadImage
from smke_jax.data.given import pixels_of
from smke_jax.reporting import html
from smke_jax.search.query import Hit


def write_page(path: Path, title: str, notes: Sequence[str], groups: Sequence[tuple[str, Sequence[Hit]]]) -> Path:
    """A grid of photos for each group (heading, hits); the pictures are inside the file, whole or not at all."""
    body = [f"<h1>{html.escape(title)}</h1>", *map(html.paragraph, notes)]
    body += [
        html.section(heading, f'<div class="hits many">{"".join(map(_figure, hits))}</div>') for heading, hits in groups
    ]
    return atomic.write_text(path, html.page(title, "\n".join(body)))


def _figure(hit: Hit) -> str:
    note = f"{hit.score:.3f} · {hit.taken[:10]} · {hit.path}"
    try:
        return html.hit(pixels_of(hit.path), None, note, alt=hit.path.name)
    except BadImage as error:  # it was changed since it was indexed
        return f"<figure>{html.paragraph(f'{note}: {error}', 'soft')}</figure>"

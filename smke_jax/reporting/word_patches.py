"""What a report shows of words and patches: the matched patches on the photo, and what they look at."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smke_jax.reporting import html

SIDE = 288  # pixels of a drawn photo
NUMBERS = 22  # height of the numbers on it, in pixels
ATTENTIONS = 3  # words whose patch's attention is drawn: those of the largest cosines
# Blue and orange tell apart for every kind of colour vision, and differ in print.
MATCHED, LOOKED_AT = (0, 90, 181), (255, 176, 0)


def drawn(example: tuple) -> list:
    """(photo (H, W, 3), caption, matches) -> [outlined photo, caption, [[word, cosine], …], [[photo, word], …]].

    The matches have `word`, `patch`, `cosine` and `attention` (N,).  The photos are drawn, and embedded as they are.
    """
    photo, caption, matches = example
    strongest = sorted(matches, key=lambda match: -match.cosine)[:ATTENTIONS]
    return [
        html.photo(outlined(photo, [match.patch for match in matches], _side(matches)), SIDE),
        caption,
        [[match.word, f"{match.cosine:.2f}"] for match in matches],
        [[html.photo(attended(photo, match.patch, match.attention), SIDE), match.word] for match in strongest],
    ]


def outlined(photo: np.ndarray, patches: Sequence[int], side: int) -> np.ndarray:
    """The photo, SIDE pixels wide and high, with a numbered frame around each of `patches` of a grid of side²."""
    image = Image.fromarray(photo).resize((SIDE, SIDE))
    draw, font, places = ImageDraw.Draw(image), ImageFont.load_default(NUMBERS), {}
    for number, patch in enumerate(patches, 1):
        places.setdefault(patch, []).append(str(number))
    for patch, numbers in places.items():
        box = _box(patch, side)
        draw.rectangle(box, outline=MATCHED, width=3)
        text, (x, y) = ",".join(numbers), box[:2]
        left, top, right, bottom = draw.textbbox((x + 4, y + 3), text, font)
        draw.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=(255, 255, 255))
        draw.text((x + 4, y + 3), text, MATCHED, font)
    return np.asarray(image)


def attended(photo: np.ndarray, patch: int, attention: np.ndarray) -> np.ndarray:
    """The photo in grey, the more orange the more `patch` looks at a place; the patch itself is framed."""
    side = math.isqrt(len(attention))
    grey = np.asarray(Image.fromarray(photo).resize((SIDE, SIDE)).convert("L"), np.float32)[:, :, None]
    share = (attention / max(attention.max(), 1e-12)).reshape(side, side).astype(np.float32)
    share = np.asarray(Image.fromarray(share).resize((SIDE, SIDE), Image.Resampling.NEAREST))[:, :, None]
    mixed = grey * (1 - 0.75 * share) + np.array(LOOKED_AT, np.float32) * 0.75 * share
    image = Image.fromarray(mixed.round().astype(np.uint8))
    ImageDraw.Draw(image).rectangle(_box(patch, side), outline=MATCHED, width=3)
    return np.asarray(image)


def words_section(examples: Sequence[Sequence], at: str) -> str:
    """What `drawn` made, as a titled box; `at` ends the title."""
    rows = []
    for photo, caption, words, looks in examples:
        items = "".join(html.list_item(f"{word} ({cosine})") for word, cosine in words)
        shown = html.hit(photo, None, caption, alt=f"photo with the patches that match words of: {caption}")
        seen = [
            html.hit(x, None, f"where the patch of “{word}” looks", alt=f"attention for {word}") for x, word in looks
        ]
        rows.append(f'<div class="row pair">{shown}<ol>{items}</ol></div>{html.hits(seen)}')
    note = (
        "Each word has its number on the patch that it is nearest to, and the cosine of the two beside it. Below, the "
        "attention of the matched patch in the last layer, for the words of the largest cosines."
    )
    return html.section("Words and the patches they match" + at, *rows, note=note) if rows else ""


def _side(matches) -> int:
    return math.isqrt(len(matches[0].attention)) if matches else 1


def _box(patch: int, side: int) -> tuple[float, float, float, float]:
    row, column = divmod(patch, side)
    size = SIDE / side
    return column * size, row * size, (column + 1) * size - 1, (row + 1) * size - 1

"""What a report shows of hidden words: the caption, the words hidden in it, and what was taken for each."""

from collections.abc import Sequence

from smke_jax.reporting import html

SIDE = 288  # pixels of a photo


def drawn_words(example: tuple) -> list:
    """(photo (H, W, 3), words with `text` and `guesses`) -> [photo, [[text, [[guess, probability], …]], …]]."""
    photo, words = example
    return [
        html.photo(photo, SIDE),
        [[word.text, [[guess, f"{100 * p:.0f} %"] for guess, p in word.guesses]] for word in words],
    ]


def masked_words_section(examples: Sequence[Sequence], at: str) -> str:
    """What `drawn_words` made, as a titled box; `at` ends the title."""
    rows = []
    for photo, words in examples:
        caption = " ".join(f"[{text}]" if guesses else text for text, guesses in words)
        items = "".join(
            html.list_item(f"{text}: " + ", ".join(f"{guess} {share}" for guess, share in guesses))
            for text, guesses in words
            if guesses
        )
        rows.append(f'<div class="row pair">{html.hit(photo, None, caption, alt=caption)}<ol>{items}</ol></div>')
    note = (
        "The words in brackets were hidden. Beside the photo each of them has what the network took for it, from the "
        "rest of the caption and the photo, with its probability."
    )
    return html.section("Hidden words and what was taken for them" + at, *rows, note=note) if rows else ""

"""Hidden words of held-out captions: figures against loops, the other image, and what a report shows of them."""

import numpy as np
import pytest
from scipy.special import softmax

from smke_jax.errors import UserError
from smke_jax.evaluators.masked_words import masked_words
from smke_jax.reporting.evaluations import read_examples, write_examples
from smke_jax.reporting.masked_words import masked_words_section
from smke_jax.tasks.base import Column, Split, Task

PHOTOS, EACH, LENGTH, VOCAB, MOST = 40, 2, 6, 9, 2
rng = np.random.default_rng(0)
OWNERS = np.repeat(np.arange(PHOTOS), EACH)
IDS = rng.integers(2, VOCAB, (len(OWNERS), LENGTH))
WORDS = np.tile([-1, 0, 1, 1, 2, -1], (len(OWNERS), 1))
TABLE = rng.normal(size=(PHOTOS, VOCAB))  # what a photo says of words
IMAGES = np.arange(PHOTOS)[:, None]


class Vocabulary:
    def decode(self, ids):
        return f"w{ids[0]}"


TASK = Task(**dict.fromkeys(Task._fields))._replace(tokenizer=Vocabulary())


def hidden_of(draw):
    """The places that the number of a row hides: 1 and 4, or 3 alone."""
    return [1, 4] if draw % 2 else [3]


def logits_of(photo, place):
    return TABLE[photo] + 0.1 * place


def encode(names, on):
    rows = range(on.columns["text"].rows)
    ids, draws, photos = (np.asarray(on.columns[x].read(list(rows))) for x in ("text", "draws", "image"))
    logits, labels = np.zeros((len(ids), MOST, VOCAB)), np.full((len(ids), MOST), -1)
    chosen = np.zeros((len(ids), LENGTH))
    for row, (own, draw, photo) in enumerate(zip(ids, draws, photos[:, 0], strict=True)):
        for number, place in enumerate(hidden_of(draw)):
            logits[row, number], labels[row, number] = logits_of(photo, place), own[place]
            chosen[row, place] = 1
    made = {"masked_text/logits": logits, "masked_text/labels": labels, "masked_text/chosen": chosen}
    return {name: made[name].astype(np.float32) for name in names}


def split(photos=PHOTOS):
    rows = OWNERS < photos
    read = lambda x: Column(len(x), lambda some: x[np.asarray(some)])  # noqa: E731
    columns = {"image": read(IMAGES[:photos]), "text": read(IDS[rows]), "text_words": read(WORDS[rows])}
    facts = {"captions": [""], "caption_image": OWNERS[rows], "pixels": lambda i: np.full((20, 30, 3), 5 * i, np.uint8)}
    return Split("made up dev", "", columns, facts)


def test_figures_are_those_of_loops():
    found = masked_words(captions=35, pictures=0).run(encode, TASK, split())
    photos = np.random.default_rng(0).permutation(PHOTOS)[:35]  # as `drawn_rows`
    figures = {}
    for name, shift in (("", 0), ("other_image/", 1)):
        losses, ranks = [], []
        for number, photo in enumerate(photos):
            for place in hidden_of(photo):
                shares = softmax(logits_of(photos[(number + shift) % 35], place))
                own = IDS[EACH * photo, place]
                losses.append(-np.log(shares[own]))
                ranks.append(np.sum(shares > shares[own]))
        ranks = np.array(ranks)
        figures |= {
            f"{name}loss": np.mean(losses), f"{name}accuracy": np.mean(ranks == 0), f"{name}top5": np.mean(ranks < 5),
        }  # fmt: skip
    assert found.scalars == pytest.approx(figures, abs=1e-5)
    assert found.record["captions"] == 35 and found.record["tokens"] == len(ranks) and found.examples is None
    assert masked_words().rank(found) == -found.scalars["loss"]


def test_a_report_shows_each_hidden_word_with_what_was_taken_for_it(tmp_path):
    evaluator = masked_words(captions=10, pictures=3, guesses=2)
    found = evaluator.run(encode, TASK, split())
    shown = found.examples()["masked_words"]
    photos = np.random.default_rng(0).permutation(PHOTOS)[:3]
    assert len(shown) == 3 and [int(x.photo[0, 0, 0]) for x in shown] == [5 * int(i) for i in photos]
    for photo, (_, words) in zip(photos, shown, strict=True):
        assert [word.text for word in words] == [f"w{i}" for i in IDS[EACH * photo, 1:5]], "no special tokens"
        assert [i + 1 for i, word in enumerate(words) if word.guesses] == hidden_of(photo)
        best = np.argsort(-TABLE[photo])[:2]
        for word in words:
            if word.guesses:
                assert [text for text, _ in word.guesses] == [f"w{i}" for i in best]
                assert [p for _, p in word.guesses] == pytest.approx(softmax(TABLE[photo])[best], abs=1e-5)
    write_examples(tmp_path, "words", 5, found.examples())
    problems = []
    page = masked_words_section(read_examples(tmp_path, problems)["words"]["masked_words"], " (words, step 5)")
    place = hidden_of(photos[0])[0]
    best = np.argmax(TABLE[photos[0]])
    assert not problems and "Hidden words and what was taken for them (words, step 5)" in page
    assert f"[w{IDS[EACH * photos[0], place]}]" in page and page.count("<img") == 3
    assert f"w{best} {100 * softmax(TABLE[photos[0]])[best]:.0f} %" in page


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="captions is 0: it has to be at least 1"):
        masked_words(captions=0)
    with pytest.raises(UserError, match="compares images with each other: made up dev has 1, give two"):
        masked_words().run(encode, TASK, split(photos=1))
    with pytest.raises(UserError, match="reads captions and their photos: made up dev has none"):
        masked_words().check(TASK, split()._replace(facts={}))

"""Which words are hidden: how many, which never, whole words, and what stands in their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.fuse import OF_TEXT, keys_of
from smke_jax.passes.text_masks import mask_words, most_masked, places_of
from smke_jax.selections.draws import draws
from smke_jax.training.step import run_selection

MASK, STRANGERS = 4, np.arange(5, 60)
# Two captions of 5 and 3 words; the second and third words of the first have 2 and 3 pieces.  -1: special or padding.
WORDS = np.array([[-1, 0, 1, 1, 2, 2, 2, 3, 4, -1, -1], [-1, 0, 1, 2, -1, -1, -1, -1, -1, -1, -1]], np.int32)
IDS = np.where(WORDS < 0, 0, 10 + np.arange(WORDS.size).reshape(WORDS.shape)).astype(np.int32)


def masked(count, row=0, **options):
    """(ids, chosen) of `count` draws of one caption."""
    options = {"mask_token": MASK, "strangers": STRANGERS, **options}
    run = jax.vmap(lambda key: mask_words(key, IDS[row], WORDS[row], **options))
    return jax.device_get(jax.jit(run)(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize(("ratio", "tokens", "words"), [(0.25, 2, 2), (0.4, 4, 2), (0.6, 5, 3), (1.0, 8, 5)])
def test_as_many_as_the_ratio_says_rounded_up_and_never_a_special_token(ratio, tokens, words):
    """Of 8 tokens in 5 words: ⌈0.25 · 8⌉ = 2, ⌈0.4 · 8⌉ = 4, ⌈0.6 · 8⌉ = 5; and ⌈0.25 · 5⌉ = 2, 2, 3."""
    ids, chosen = masked(200, ratio=ratio, unit="token")
    assert set(chosen.sum(axis=1)) == {tokens} and tokens <= most_masked(WORDS.shape[1], ratio, "token")
    assert not chosen[:, WORDS[0] < 0].any() and np.all(chosen[:, WORDS[0] >= 0].any(axis=0))
    np.testing.assert_array_equal(ids, np.where(chosen, MASK, IDS[0]))
    ids, chosen = masked(200, ratio=ratio, unit="word")
    for row in chosen:
        hidden, seen = (set(WORDS[0][row == x]) for x in (True, False))
        assert not hidden & seen and len(hidden) == words and -1 not in hidden, "words are whole"
    assert chosen.sum(axis=1).max() <= most_masked(WORDS.shape[1], ratio, "word")
    np.testing.assert_array_equal(ids, np.where(chosen, MASK, IDS[0]))


def test_all_words_are_drawn_alike():
    chosen = masked(4000, ratio=0.25, unit="word")[1]
    for word in range(5):
        share = chosen[:, WORDS[0] == word].all(axis=1).mean()
        assert abs(share - 2 / 5) < 5 * np.sqrt(0.4 * 0.6 / 4000)


def test_some_become_any_word_and_some_stay():
    ids, chosen = masked(3000, row=1, ratio=1.0, unit="token", random=0.2, kept=0.3)
    assert np.all(chosen == (WORDS[1] >= 0))
    found, here = ids[chosen], np.broadcast_to(IDS[1], ids.shape)[chosen]
    # One of the 55 random words is the own one, and none is a special token.
    expected = {"mask": 0.5, "kept": 0.3 + 0.2 / len(STRANGERS)}
    for name, share in (("mask", np.mean(found == MASK)), ("kept", np.mean(found == here))):
        assert abs(share - expected[name]) < 5 * np.sqrt(0.25 / len(found)), name
    assert set(found) == {MASK, *STRANGERS}


def test_a_caption_without_words_stays():
    nothing = jnp.full(5, -1)
    for unit in ("token", "word"):
        options = {"ratio": 0.5, "unit": unit, "mask_token": MASK, "strangers": STRANGERS}
        ids, chosen = mask_words(jax.random.key(0), jnp.arange(5), nothing, **options)
        assert not chosen.any() and np.array_equal(ids, np.arange(5))


def test_the_chosen_places_come_first_and_in_order():
    chosen = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
    places = np.asarray(places_of(jnp.array(chosen), 3))
    assert places.tolist() == [[1, 3, 0], [4, 0, 1]] and np.take_along_axis(chosen, places, 1).sum() == 3


def test_masks_do_not_depend_on_the_devices():
    """Nor on micro-batches, of which a pass gets its rows' numbers; they change with the step's key."""
    ids = np.arange(16, dtype=np.int32)

    def drawn(devices, seed):
        mesh = make_mesh(devices)
        run = jax.jit(lambda arrays: run_selection(draws(), mesh, {}, arrays, key=jax.random.key(seed)))
        return np.asarray(run(put_batch({"id": ids}, mesh))["draws"])

    one = drawn(1, 0)
    assert len(set(one.tolist())) == 16 and one.min() >= 0
    for devices in (2, 8):
        np.testing.assert_array_equal(drawn(devices, 0), one)
    assert not np.any(drawn(1, 1) == one)
    uses = [np.asarray(jax.random.key_data(keys_of(jnp.array(one), what))) for what in (OF_TEXT, OF_TEXT + 1)]
    assert not np.any(np.all(uses[0] == uses[1], axis=1)), "texts and images draw apart"


def test_the_words_of_a_caption_in_the_vocabulary():
    tokenizer = train_wordpiece(["the dog runs", "a dog", "the runs"] * 20, 30)
    ids, mask = tokenizer.encode(["a dog runs", "dogs and 7 runs"], 16)
    numbers = tokenizer.word_numbers(ids)
    tokens = [[tokenizer._backend.id_to_token(int(i)) for i in row] for row in ids]
    assert numbers.dtype == np.int32 and np.all(numbers[mask == 0] == -1)
    for names, row in zip(tokens, numbers, strict=True):
        special = [name.startswith("[") for name in names]
        assert np.array_equal(row < 0, special)
        word = -1
        for name, number in zip(names, row, strict=True):
            if number >= 0:
                word += not name.startswith("##")
                assert number == word, (names, row)
    assert any("##" in name for row in tokens for name in row) and "[UNK]" in tokens[1]

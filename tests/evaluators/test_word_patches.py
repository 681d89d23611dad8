"""Which patch a word is nearest to, against loops over plain vectors; and what the last layer looks at."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from smke_jax.errors import UserError
from smke_jax.evaluators.word_patches import chosen_captions, word_patches
from smke_jax.models.student import build_student
from smke_jax.passes.encode import encode_image, image_attention
from smke_jax.reporting.evaluations import read_examples, write_examples
from smke_jax.reporting.word_patches import MATCHED, SIDE, outlined, words_section
from smke_jax.tasks.base import Column, Split, Task

PHOTOS, CAPTIONS, LENGTH, PATCHES, WIDTH = 5, 9, 6, 4, 3
RNG = np.random.default_rng(0)
OWNER = np.sort(np.concatenate([np.arange(PHOTOS), RNG.integers(0, PHOTOS, CAPTIONS - PHOTOS)]))
IDS = RNG.integers(5, 30, (CAPTIONS, LENGTH))
MASK = np.arange(LENGTH) < RNG.integers(3, LENGTH + 1, (CAPTIONS, 1))  # of all tokens; [CLS] first and [SEP] last
ARRAYS = {
    "image/tokens": RNG.normal(size=(PHOTOS, PATCHES, WIDTH)),
    "image/attention": softmax(RNG.normal(size=(PHOTOS, PATCHES + 1, PATCHES + 1)), axis=2),
    "text/tokens": RNG.normal(size=(CAPTIONS, LENGTH - 2, WIDTH)),
    "text/mask": MASK[:, 2:].astype(np.int32),
}


class Words:
    def decode(self, ids):
        return f"w{ids[0]}"


def encode(names, split):
    column = split.columns["image" if names[0].startswith("image") else "text"]
    rows = np.asarray(column.read(range(column.rows)))
    rows = rows[:, 0] if names[0].startswith("image") else [int(np.flatnonzero((IDS == row).all(1))[0]) for row in rows]
    return {name: ARRAYS[name][rows] for name in names}


def picture(row):
    return np.full((20, 30, 3), 10 * row, np.uint8)


SPLIT = Split(
    "made up dev", "",
    {"image": Column(PHOTOS, lambda rows: np.asarray(rows)[:, None]), "text": Column(CAPTIONS, lambda rows: IDS[rows])},
    {"captions": [f"caption {i}" for i in range(CAPTIONS)], "caption_image": OWNER, "pixels": picture},
)  # fmt: skip
TASK = Task(**dict.fromkeys(Task._fields))._replace(tokenizer=Words())


def cosine(a, b):
    return a @ b / np.sqrt(a @ a * (b @ b))


def test_figures_and_matches_are_those_of_loops():
    found = word_patches(count=3).run(encode, TASK, SPLIT)
    captions, photos = chosen_captions(OWNER, 3)
    assert [OWNER[i] for i in captions] == photos.tolist() and len(set(photos.tolist())) == 3
    own, other, words = [], [], []
    for place, (caption, photo) in enumerate(zip(captions, photos, strict=True)):
        words.append([])
        for i in np.flatnonzero(ARRAYS["text/mask"][caption]):
            word = ARRAYS["text/tokens"][caption, i]
            all_own = [cosine(word, patch) for patch in ARRAYS["image/tokens"][photo]]
            own.append(max(all_own))
            other.append(max(cosine(word, patch) for patch in ARRAYS["image/tokens"][photos[(place + 1) % 3]]))
            words[-1].append((f"w{IDS[caption, 1 + i]}", int(np.argmax(all_own)), max(all_own)))
    assert found.scalars == pytest.approx(
        {"own": np.mean(own), "other": np.mean(other), "gap": np.mean(own) - np.mean(other)}
    )
    shown = found.examples()["words"]
    assert [caption for _, caption, _ in shown] == [f"caption {i}" for i in captions]
    for (image, _, matches), expected, photo in zip(shown, words, photos, strict=True):
        assert image[0, 0, 0] == 10 * photo
        assert [(match.word, match.patch) for match in matches] == [(word, patch) for word, patch, _ in expected]
        for match, (_, patch, best) in zip(matches, expected, strict=True):
            assert match.cosine == pytest.approx(best)
            np.testing.assert_array_equal(match.attention, ARRAYS["image/attention"][photo, 1 + patch, 1:])


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(UserError, match="reads captions and their photos: made up dev has none"):
        word_patches().run(encode, TASK, SPLIT._replace(facts={}))
    with pytest.raises(UserError, match="give at least two"):
        word_patches(count=1).run(encode, TASK, SPLIT)


def test_a_report_shows_them(tmp_path):
    found = word_patches(count=2).run(encode, TASK, SPLIT)
    write_examples(tmp_path, "words", 7, found.examples())
    problems = []
    (examples,) = read_examples(tmp_path, problems).values()
    page = words_section(examples["words"], " (words, step 7)")
    assert not problems and page.count("<ol>") == 2 and "caption" in page and "step 7" in page
    count = sum(min(3, len(matches)) for _, _, matches in found.examples()["words"])
    assert page.count("data:image/jpeg") == 2 + count
    assert words_section([], "") == ""


def test_the_frame_stands_around_its_patch():
    image = outlined(np.full((9, 9, 3), 128, np.uint8), [2], 2)
    framed = np.argwhere((np.abs(image.astype(int) - MATCHED) < 5).all(axis=2))
    assert framed.min(0).tolist() == [SIDE // 2, 0] and framed.max(0).tolist() == [SIDE - 1, SIDE // 2 - 1]


def test_attention_is_that_of_the_shared_block():
    """Against its own softmax in NumPy, of what the shared block is given; the layers before have other attention."""
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12, "norm_eps": 1e-6, "activation": "gelu"}
    model = build_student(
        {
            "dtype": "float32", "token_types": True,
            "image": {"image_size": 8, "patch_size": 4, "norm_order": "post", **tower},
            "text": {"max_positions": 8, "norm_order": "post", **tower},
            "shared": {"num_heads": 2, "mlp_dim": 12, "norm_eps": 1e-6, "activation": "gelu", "layer_scale": 0.2,
                       "init_std": 0.5},
        },
        vocab_size=9, target_dim=4,
    )  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    ids = jnp.zeros((1, 3), jnp.int32)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), ids, ids)["params"]
    found = image_attention(model, "net").run({"net": params}, {"image": images}, None, False)["image/attention"]
    assert found.shape == (2, 5, 5)
    seen = {}

    def spy(next_function, args, kwargs, context):
        if context.module.name == "attention":
            seen[context.module.path] = np.asarray(args[0], np.float64)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(spy):
        encode_image(model, "net").run({"net": params}, {"image": images}, None, False)
    x, own = seen["shared", "attention"], params["shared"]["attention"]
    q, k = (x @ np.asarray(own[name]["kernel"]) + np.asarray(own[name].get("bias", 0)) for name in ("query", "key"))
    q, k = (y.reshape(2, 5, 2, 4) for y in (q, k))
    expected = softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / 2, axis=3).mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)

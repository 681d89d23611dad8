"""What is made of hidden patches, against plain loops; the pictures of pixels and of gradients, and their report."""

import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.reconstruction import drawn_rows, hog_cells, reconstruction
from smke_jax.networks.patch_predictor import patch_predictor
from smke_jax.passes.patch_targets import patch_targets
from smke_jax.reporting.evaluations import read_examples, write_examples
from smke_jax.reporting.reconstructions import SIDE, reconstructions_section, strokes
from smke_jax.tasks.base import Column, Split, Task

PHOTOS, SIZE, PATCH = 70, 16, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (PHOTOS, SIZE, SIZE, 3), dtype=np.uint8)
OWNER = np.repeat(np.arange(PHOTOS), 2)[1:]  # the first photo has one caption
CHOSEN = np.stack([RNG.permutation(4) < 2 for _ in range(PHOTOS)])
TASK = Task(**dict.fromkeys(Task._fields))


def split(images=IMAGES):
    columns = {
        "image": Column(len(images), lambda rows: images[list(rows)]),
        "text": Column(len(OWNER), lambda rows: np.asarray(list(rows))[:, None]),
    }
    return Split("made up dev", "", columns, {"caption_image": OWNER})


def targets_of(images):
    run = patch_targets("net", PATCH, hog_cells=2, mean=MEAN, std=STD).run
    return {k: np.asarray(x) for k, x in run({}, {"image": images}, None, False).items()}


def encode_with(target, error=0.1, images=IMAGES):
    """An encoder whose prediction is off by `error`, and which hides CHOSEN of the photo that 'draws' names."""
    made = targets_of(images)
    asked = []

    def encode(names, on):
        rows = on.columns["image"].rows
        draws = np.asarray(on.columns["draws"].read(range(rows)))
        np.testing.assert_array_equal(on.columns["image"].read(range(rows)), images[draws])
        np.testing.assert_array_equal(OWNER[on.columns["text"].read(range(rows))[:, 0]], draws)
        asked.append(rows)
        wanted, chosen = made[f"image/{target}"][draws], CHOSEN[draws]
        pixels = (images[draws] / 255 - np.array(MEAN)) / np.array(STD)
        hidden = chosen.reshape(-1, 2, 2).repeat(PATCH, axis=1).repeat(PATCH, axis=2)[..., None]
        found = wanted + np.where(chosen[:, :, None], error * (1 + draws[:, None, None] % 3), 99)
        every = {
            "mim/target": wanted, "mim/prediction": found, "mim/error": np.abs(found - wanted).mean(2),
            "masked_image/chosen": chosen.astype(np.float32), "image/pixel": made["image/pixel"][draws],
            "masked_image/pixels": np.where(hidden, 0, pixels),
        }  # fmt: skip
        return {name: every[name] for name in names}

    return encode, asked


def test_figures_are_those_of_hidden_patches_alone():
    encode, asked = encode_with("hog")
    found = reconstruction(target="hog", images=66, pictures=0).run(encode, TASK, split())
    photos, _ = drawn_rows(split(), 66)
    assert asked == [64, 2] and len(set(photos.tolist())) == 66
    made = targets_of(IMAGES)["image/hog"].astype(np.float64)
    errors, wanted = [], []
    for photo in photos:
        for patch in np.flatnonzero(CHOSEN[photo]):
            errors.append(0.1 * (1 + photo % 3))
            wanted.append(made[photo, patch])
    wanted = np.array(wanted)
    squares = np.sum(np.square(errors)) * wanted.shape[1]
    explained = 1 - squares / np.square(wanted - wanted.mean(0)).sum()
    assert found.scalars == pytest.approx({"loss": np.mean(errors), "explained": explained}, rel=1e-4)
    assert found.record["patches"] == 132 and found.examples is None
    other = reconstruction(target="hog", images=66, pictures=0).run(encode, TASK, split())
    assert other.scalars == found.scalars, "the same patches of the same images"


def test_photos_need_no_captions():
    on = split()
    photos = on._replace(columns={"image": on.columns["image"]}, facts={"caption_image": OWNER[:0]})
    chosen, part = drawn_rows(photos, 5)
    assert len(chosen) == 5 and set(part.columns) == {"image", "draws"}
    some = on._replace(facts={"caption_image": np.arange(3).repeat(4)})  # the other photos have none
    chosen, part = drawn_rows(some, 5)
    assert sorted(chosen) == [0, 1, 2]
    np.testing.assert_array_equal(part.columns["text"].read(range(3))[:, 0], 4 * chosen)


@pytest.mark.parametrize("target", ["pixel", "pixel_norm"])
def test_a_right_prediction_gives_the_photo_back(target):
    encode, _ = encode_with(target, error=0.0)
    evaluator = reconstruction(target=target, images=5, pictures=2)
    shown = evaluator.run(encode, TASK, split()).examples()["reconstructions"]
    photos, _ = drawn_rows(split(), 5)
    assert len(shown) == 2
    for photo, example in zip(photos, shown):
        hidden = CHOSEN[photo].reshape(2, 2).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        np.testing.assert_array_equal(example.photo, IMAGES[photo])
        np.testing.assert_array_equal(example.target, IMAGES[photo])
        assert np.abs(example.predicted.astype(int) - IMAGES[photo])[hidden].max() <= 1
        np.testing.assert_array_equal(example.predicted[~hidden], IMAGES[photo][~hidden])
        grey = np.rint(255 * np.array(MEAN))
        assert np.all(np.abs(example.seen[hidden] - grey) <= 1)
        np.testing.assert_array_equal(example.seen[~hidden], IMAGES[photo][~hidden])


def test_a_stroke_is_along_its_edge():
    """A vertical edge in a photo is a vertical stroke: through what makes the target and what draws it."""
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[:, :, 12:] = 200
    cells = hog_cells(targets_of(image)["image/hog"])
    assert cells.shape == (1, 4, 4, 9)
    picture = strokes(cells[0])[..., 0]
    assert picture.shape == (SIDE, SIDE) and picture[:, : SIDE // 2].max() == 0
    rows, columns = np.nonzero(picture[: SIDE // 4, SIDE // 2 : 3 * SIDE // 4])
    assert np.ptp(rows) > 4 * np.ptp(columns) > 0
    # A slanted edge: dark above the diagonal from the lower left to the upper right.
    y, x = np.mgrid[:16, :16]
    image[0] = np.where(x + y > 15, 200, 0)[..., None]
    cell = strokes(hog_cells(targets_of(image)["image/hog"])[0])[: SIDE // 4, -SIDE // 4 :, 0]
    assert cell[SIDE // 4 - 20, 20] > 0 and cell[20, 20] == 0, "from the lower left to the upper right"


def test_a_report_shows_them(tmp_path):
    for number, target in enumerate(("hog", "pixel")):
        encode, _ = encode_with(target)
        found = reconstruction(target=target, images=3, pictures=2).run(encode, TASK, split())
        folder = tmp_path / target
        folder.mkdir()
        write_examples(folder, "rebuilt", 7, found.examples())
        problems = []
        (examples,) = read_examples(folder, problems).values()
        page = reconstructions_section(examples["reconstructions"], f" (rebuilt, step {number})")
        assert not problems and page.count("data:image/jpeg") == 8 and f"step {number}" in page
    assert reconstructions_section([], "") == ""


@pytest.mark.parametrize("target", ["hog", "pixel", "pixel_norm", "ema"])
def test_the_target_of_another_predictor_is_named_before_the_run(target):
    """Also of targets of as many channels, which no figure would give away."""
    for other in ("hog", "pixel", "pixel_norm", "ema"):
        passes = patch_predictor(target=other, average="teacher").forward("patches", {})
        check = reconstruction(target=target).check_passes
        if other == target:
            check(passes)
            continue
        with pytest.raises(UserError, match=f"target is {target}, and mim/target is {other}: set target={other}, as"):
            check(passes)


def test_what_an_average_says_has_no_picture():
    evaluator = reconstruction(target="ema")
    assert "image/pixel" not in evaluator.needs and evaluator.adds == ("draws",)
    with pytest.raises(UserError, match="target is 'pixels': give that of the patch_predictor"):
        reconstruction(target="pixels")
    with pytest.raises(UserError, match="images is 0: it has to be at least 1"):
        reconstruction(images=0)

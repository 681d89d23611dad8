"""Views: crops in range, one crop shared with the teacher, jitter, the squashed evaluation view, determinism."""

from unittest import mock

import numpy as np
import pytest
from PIL import Image

from smke_jax.data.datasets import SOURCES
from smke_jax.data.sources import ArraySource
from smke_jax.data.transforms import (
    TEACHER_VIEWS,
    Crop,
    StudentTeacherViews,
    TwoViews,
    View,
    needed_side,
    random_crop,
    render,
    squash,
)
from smke_jax.tasks import images, pairs
from smke_jax.tasks.base import BatchPlan

THESIS = {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}


def smooth(height=90, width=120) -> Image.Image:
    """A picture without fine detail, different in every place and channel."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (x + y) / 2], axis=-1).astype(np.uint8))


def flat(size: int, color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(100, 100), (75, 120), (333, 500), (1, 1), (64, 640)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0), (0.5, 0.5)])
def test_crops_lie_in_the_image_within_area_and_aspect(shape, scale):
    height, width = shape
    ratio = (3 / 4, 4 / 3)
    largest = min(width, height * ratio[1]) * min(height, width / ratio[0])
    areas = []
    for seed in range(200):
        left, top, right, bottom = random_crop(shape, rng(seed), scale=scale, ratio=ratio, flip=0.5).box
        assert -1e-9 <= left < right <= width + 1e-9 and -1e-9 <= top < bottom <= height + 1e-9
        assert ratio[0] - 1e-9 <= (right - left) / (bottom - top) <= ratio[1] + 1e-9
        areas.append((right - left) * (bottom - top) / (height * width))
    areas = np.array(areas)
    fallback = np.isclose(areas, largest / (height * width))
    assert np.all(fallback | ((scale[0] - 1e-9 <= areas) & (areas <= scale[1] + 1e-9)))
    if shape == (100, 100):
        assert fallback.mean() < 0.2
        if scale[0] < scale[1]:
            assert areas.max() - areas.min() > 0.7 * (scale[1] - scale[0])


@pytest.mark.parametrize("shape,box", [((10, 100), (50 - 20 / 3, 0, 50 + 20 / 3, 10)), ((100, 9), (0, 44, 9, 56))])
def test_what_no_crop_fits_gets_the_largest_centred_box(shape, box):
    np.testing.assert_allclose(random_crop(shape, rng(), **THESIS).box, box)


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0), (1.5, 2.0), (0.4, 0.5), (0.5, 3.0)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_no_crop_of_an_image_with_the_needed_side_has_to_be_enlarged(scale, ratio):
    size, smallest = 224, np.inf
    side = needed_side(size, scale, ratio)
    for other in (side, round(1.2 * side), round(1.7 * side), 3 * side, 40 * side):
        for shape in ((side, other), (other, side)):
            for seed in range(100):
                left, top, right, bottom = random_crop(shape, rng(seed), scale=scale, ratio=ratio, flip=0.5).box
                smallest = min(smallest, right - left, bottom - top)
    assert smallest >= size - 1e-6
    assert smallest < 1.25 * size or scale[0] > 0.5  # and no more is asked for than small crops need


def test_the_side_that_each_pair_of_views_needs():
    student, teacher = View(100, (1.0, 1.0), (1.0, 1.0)), View(150, (0.25, 1.0), (1.0, 1.0))
    needed = {kind: StudentTeacherViews(student, {"teacher_image": teacher}, kind).min_side for kind in TEACHER_VIEWS}
    assert needed == {"same": 100, "shared": 150, "independent": 300, "fixed": None}
    assert TwoViews(teacher).min_side == 300 == teacher.min_side
    assert View(224).min_side == 273


@pytest.mark.parametrize("probability,low,high", [(0.0, 0, 0), (0.5, 430, 570), (1.0, 1000, 1000)])
def test_flip_rate(probability, low, high):
    generator = rng()
    options = {**THESIS, "flip": probability}
    assert low <= sum(random_crop((50, 60), generator, **options).flip for _ in range(1000)) <= high


def test_a_crop_shows_its_box_and_its_mirror_image():
    image = smooth()
    plain = np.asarray(render(image, Crop((20, 10, 60, 50), False), 40))
    np.testing.assert_array_equal(plain, np.asarray(image)[10:50, 20:60])
    mirrored = np.asarray(render(image, Crop((20, 10, 60, 50), True), 40))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def shown(image, student=32, teacher=0, seed=0, task=pairs, **fields) -> dict[str, np.ndarray]:
    """What the task shows of `image` in training, to networks that take images of so many pixels per side."""
    sizes = {"image": student} | ({"teacher_image": teacher} if teacher else {})
    fields |= {"keep": None} if task is pairs else {}
    with mock.patch.dict(SOURCES, one=lambda *_: ArraySource(np.asarray(image)[None], [["a caption"]])):
        made = task(source="one", threads=0, crop_scale=(0.3, 0.6), **fields).finish(sizes)
        arrays = frozenset(name for name in made.example() if not name.startswith("text")) - {"id"}
        batch = next(made.batches(BatchPlan(1, seed, arrays=arrays)))
    assert set(batch) == {*arrays, "id"}
    return {name: batch[name][0] for name in arrays}


@pytest.mark.parametrize("seed", range(4))
def test_student_and_teacher_share_crop_and_flip_at_two_resolutions(seed):
    views = shown(smooth(), 32, 64, seed)
    assert views["image"].shape == (32, 32, 3) and views["teacher_image"].shape == (64, 64, 3)
    halved = np.asarray(Image.fromarray(views["teacher_image"]).resize((32, 32), Image.Resampling.BOX))
    assert np.abs(halved.astype(int) - views["image"]).max() <= 3
    other = shown(smooth(), 32, 64, seed + 100)
    assert np.abs(other["image"].astype(int) - views["image"]).max() > 10  # the comparison above can tell crops apart


def test_one_array_serves_both_at_one_resolution():
    assert set(shown(smooth(), 32, 32)) == {"image"}


def test_the_shared_teacher_view_is_not_jittered_when_the_students_is():
    blue = (40, 120, 200)
    views = shown(flat(50, blue), 16, 32, jitter=0.4)
    assert np.all(views["teacher_image"] == blue)
    assert np.any(views["image"] != blue)


def test_an_independent_teacher_view_has_its_own_crop_and_jitter():
    seen = [shown(smooth(), 32, 32, seed, teacher_view="independent") for seed in range(8)]
    assert all(np.any(views["image"] != views["teacher_image"]) for views in seen)
    blue = (40, 120, 200)
    out = shown(flat(50, blue), 32, 32, teacher_view="independent")
    assert np.all(out["image"] == blue)  # the student's is not jittered
    assert np.any(out["teacher_image"] != blue)
    # Without jitter the crop alone still differs.
    bare_view = View(32, crop_scale=(0.3, 0.6))
    bare = StudentTeacherViews(bare_view, {"teacher_image": bare_view}, "independent")
    once = bare(smooth(), rng(1))
    assert np.any(once["image"] != once["teacher_image"])


def test_a_fixed_teacher_view_is_the_evaluation_view():
    seen = [shown(smooth(), 32, 24, seed, teacher_view="fixed", jitter=0.3) for seed in (0, 1)]
    np.testing.assert_array_equal(seen[0]["teacher_image"], squash(np.asarray(smooth()), 24))
    np.testing.assert_array_equal(seen[0]["teacher_image"], seen[1]["teacher_image"])
    assert np.any(seen[0]["image"] != seen[1]["image"])


def test_two_views_differ_and_have_the_encoders_size():
    views = shown(smooth(), 24, task=images, views=2)
    assert set(views) == {"view1", "view2"}
    assert views["view1"].shape == views["view2"].shape == (24, 24, 3)
    assert np.any(views["view1"] != views["view2"])


def test_grayscale_rate():
    view = View(8, grayscale=0.3)
    generator, grey = rng(), 0
    for _ in range(300):
        channels = view(smooth(20, 20), generator)
        grey += bool(np.all(channels == channels[..., :1]))
    assert 60 <= grey <= 120


def test_jitter_changes_brightness_contrast_and_colour_within_its_strength():
    grey = flat(30, (100, 100, 100))
    means = [View(8, jitter=0.2)(grey, rng(seed)).mean() for seed in range(100)]
    assert 79 <= min(means) < 88 and 112 < max(means) <= 121  # brightness alone acts on a grey picture


@pytest.mark.parametrize("shape", [(20, 80), (80, 20), (64, 64)])
def test_squash_keeps_the_whole_image_and_gives_up_its_aspect_ratio(shape):
    image = np.zeros((*shape, 3), np.uint8)
    image[: shape[0] // 2, : shape[1] // 2] = 255  # the top left quarter, whatever the shape
    small = squash(image, 32)
    assert small.shape == (32, 32, 3) and small.dtype == np.uint8
    assert small[2:12, 2:12].min() > 250 and small[20:].max() < 5 and small[:, 20:].max() < 5


def test_squash_leaves_an_image_of_the_right_size_alone():
    image = np.asarray(smooth(32, 32))
    np.testing.assert_array_equal(squash(image, 32), image)


@pytest.mark.parametrize(
    "fields",
    [{"task": pairs, "teacher": 24, "teacher_view": "independent"}, {"task": images}, {"task": images, "views": 2}],
    ids=["pairs", "one view", "two views"],
)
def test_views_depend_on_the_seed_only(fields):
    first, again, other = (shown(smooth(), 16, seed=i, jitter=0.3, grayscale=0.3, **fields) for i in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert np.any(first[name] != other[name])

"""Views of an image (spec 0.5): random crop, flip and colour jitter on uint8 pixels, from the caller's generator."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC


@dataclasses.dataclass(frozen=True)
class Crop:
    """Where and how an image is looked at: a box in pixels, mirrored or not."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    flip: bool


def random_crop(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Crop:
    """A RandomResizedCrop box covering `scale` of the area at an aspect `ratio`, mirrored with probability `flip`.

    Ten tries, then the largest centred box within `ratio`, as torchvision documents it.  shape: (height, width).
    """
    height, width = shape
    draw = rng.random  # several times faster than `rng.uniform`, which makes its numbers of the same ones
    mirrored = draw() < flip
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = (scale[0] + (scale[1] - scale[0]) * draw()) * height * width
        aspect = math.exp(low + (high - low) * draw())
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = (width - w) * draw(), (height - h) * draw()
            return Crop((left, top, left + w, top + h), mirrored)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return Crop((left, top, left + w, top + h), mirrored)


def needed_side(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> int:
    """How many pixels of the shorter side are enough for a view of size × size through `random_crop`.

    An image that has more can be decoded smaller, down to this many. Every crop then still has `size` pixels or more on
    each side, so that no view is enlarged.
    """
    # Let m be the shorter side. The image then has m² pixels or more. A crop of the share s of its area and of the
    # aspect r has sides of sqrt(s · area · r) and sqrt(s · area / r) pixels. Both have at least
    # m · sqrt(s · min(r, 1 / r)), which is smallest for the lowest s and for the r farthest from 1.
    crop = math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1]))
    # Where no crop fits, the centred box has one whole side of the image, and on the other at least m / ratio[0] or
    # m · ratio[1]: less than m only where `ratio` does not hold 1.
    box = min(1.0, 1 / ratio[0], ratio[1])
    return math.ceil(size / min(crop, box))


def render(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """What `crop` sees of an RGB image, bicubic, size × size."""
    view = image.resize((size, size), BICUBIC, box=crop.box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else view


def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, in random order, each by a factor in 1 ± strength."""
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for i in rng.permutation(len(changes)):
        image = changes[i](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """The evaluation view: the whole image at size × size, aspect ratio given up (spec 0.5).  -> uint8 (S, S, 3)."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), BICUBIC))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the centre: what image encoders are evaluated with.  -> uint8 (size, size, 3)."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), BICUBIC))


@dataclasses.dataclass(frozen=True)
class View:
    """A random view's settings; `jitter` and `grayscale` (a probability) are off by default."""

    size: int
    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    grayscale: float = 0.0

    @property
    def min_side(self) -> int:
        """Pixels that an image's shorter side needs, so that this view is enlarged no more than from the full image."""
        return needed_side(self.size, self.crop_scale, self.crop_ratio)

    def crop(self, image: Image.Image, rng: np.random.Generator) -> Crop:
        return random_crop(
            (image.height, image.width), rng, scale=self.crop_scale, ratio=self.crop_ratio, flip=self.flip
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator, crop: Crop | None = None) -> np.ndarray:
        """RGB image -> uint8 (size, size, 3), through `crop` where one is given."""
        view = render(image, crop or self.crop(image, rng), self.size)
        if self.jitter:
            view = color_jitter(view, rng, self.jitter)
        if self.grayscale and rng.random() < self.grayscale:
            view = view.convert("L").convert("RGB")
        return np.asarray(view)


@dataclasses.dataclass(frozen=True)
class StudentTeacherViews:
    """Makes 'image', the student's view, and under other names the teachers' views, each where it is another.

    student:      the student's view; its crop is also that of teachers who share it
    teachers:     {array: view}
    teacher_view: of every teacher, a key of TEACHER_VIEWS
    with_student: whether 'image' is made
    """

    student: View
    teachers: Mapping[str, View] = dataclasses.field(default_factory=dict)
    teacher_view: str = "shared"
    with_student: bool = True

    def narrowed(self, arrays: Iterable[str]) -> "StudentTeacherViews | None":
        """What makes these arrays and no others; None where it would make none."""
        arrays = frozenset(arrays)
        teachers = {name: view for name, view in self.teachers.items() if name in arrays}
        with_student = self.with_student and "image" in arrays
        if not teachers and not with_student:
            return None
        return dataclasses.replace(self, teachers=teachers, with_student=with_student)

    @property
    def min_side(self) -> int | None:
        """`View.min_side` for all views; None where the full image is needed."""
        if self.teachers and self.teacher_view == "fixed":
            return None  # the same pixels as in evaluation, which decodes at full size
        seen = [self.student]
        if self.teacher_view == "shared":
            seen += [dataclasses.replace(self.student, size=view.size) for view in self.teachers.values()]
        if self.teacher_view == "independent":
            seen += self.teachers.values()
        return max(view.min_side for view in seen)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, np.ndarray]:
        crop = self.student.crop(image, rng)
        views = {"image": self.student(image, rng, crop)} if self.with_student else {}
        for name, view in self.teachers.items():
            seen = TEACHER_VIEWS[self.teacher_view](self, view, image, rng, crop)
            if seen is not None:
                views[name] = seen
        return views

    def _shared(self, view, image, rng, crop):
        if (
            self.with_student
            and view.size == self.student.size
            and not self.student.jitter
            and not self.student.grayscale
        ):
            return None  # the student's view is the same
        return np.asarray(render(image, crop, view.size))

    def _same(self, view, image, rng, crop):
        return None if self.with_student else self._shared(view, image, rng, crop)

    def _independent(self, view, image, rng, crop):
        return view(image, rng)

    def _fixed(self, view, image, rng, crop):
        return squash(np.asarray(image), view.size)


# same: the student's view; where there is no student, as shared.
# shared: the student's crop, without jitter and grayscale.
# independent: a crop of its own with colour jitter, as in the thesis' code (register 6).
# fixed: the whole image as in evaluation; it never changes, so the teacher's feature of it can be kept.
TEACHER_VIEWS = {
    "same": StudentTeacherViews._same,
    "shared": StudentTeacherViews._shared,
    "independent": StudentTeacherViews._independent,
    "fixed": StudentTeacherViews._fixed,
}


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """'view1' and 'view2': independent views for self-supervised training."""

    view: View

    @property
    def min_side(self) -> int:
        """`View.min_side`."""
        return self.view.min_side

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"view1": self.view(image, rng), "view2": self.view(image, rng)}

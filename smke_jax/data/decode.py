"""Image file bytes to upright 8-bit RGB, or a plain reason why not."""

import functools
import importlib
import io
import os
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from smke_jax.errors import UserError

LIMIT = "SMKE_MAX_PIXELS"  # environment variable that sets another limit than MAX_PIXELS
MAX_PIXELS = 1 << 28  # 268 megapixels, 800 MB as RGB; larger pictures are refused with a reason
LARGE = 89_478_485  # a JPEG with more pixels is decoded at a smaller scale, which has at least a quarter as many
JPEGS = ("JPEG", "MPO")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
JPEG_START = b"\xff\xd8\xff"
# Second bytes of JPEG markers: frames that PIL's decoder takes (baseline, extended, progressive); the start of the
# pixels; and what may come before and says nothing of orientation or of further pictures, as APP1 (Exif) and APP2 may.
FRAMES, PIXELS, PASSED = {0xC0, 0xC1, 0xC2}, 0xDA, {0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE3, 0xF0)}
PNG_MARK = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# PIL's own warnings would be a second message about the same picture, and do not name it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(ValueError):
    """The bytes are not a picture that can be shown whole; `reason` says why in a few words."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode_image(data: bytes, *, min_side: int | None = None) -> np.ndarray:
    """`open_image` with the same arguments, its picture as a uint8 array (H, W, 3)."""
    return np.array(open_image(data, min_side=min_side), np.uint8)


def size_of(data: bytes) -> tuple[int, int]:
    """(shorter, longer) side of a picture that `open_image` can decode, in pixels."""
    shorter, longer = sorted(_opened(data).size)
    return shorter, longer


def open_image(data: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decodes any still picture PIL can read.

    Transparency is composited over white, 16-bit greys keep their high byte, EXIF orientation is applied,
    and of an animation the first frame is taken. Colour profiles are ignored, as common training code does.

    Args:
      data: the file's bytes.
      min_side: how many pixels of the shorter side are enough. A JPEG is then decoded, much faster, at the smallest
        scale of 1, 1/2, 1/4 and 1/8 that has so many. Other formats ignore it, and so does a JPEG that has fewer.

    Returns:
      an 8-bit RGB image, wholly decoded.

    Raises:
      BadImage: truncated, damaged, too large to be safe, or no picture at all.
    """
    try:
        return to_rgb(_load(data, min_side))
    except BadImage:
        raise
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large()) from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image file" if data else "empty file") from None
    except Exception as error:  # PIL's readers raise nearly every built-in exception on damaged files
        reason = str(error).split("(")[0].strip() or type(error).__name__
        raise BadImage("image file is truncated" if "truncated" in reason.lower() else reason) from error


def max_pixels() -> int:
    """The most pixels that a picture may have: MAX_PIXELS, or what the environment variable says."""
    text = os.environ.get(LIMIT, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or not int(text):
        raise UserError(f"{LIMIT}={text} is no number of pixels: give one such as {MAX_PIXELS}")
    return int(text)


def _too_large() -> str:
    return f"more than {max_pixels()} pixels (the environment variable {LIMIT} sets the limit)"


def _opened(data: bytes) -> Image.Image:
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and not _reads_heif():
        raise BadImage("HEIC photo: pip install pillow-heif to read it")
    most = max_pixels()
    # PIL refuses what has more than twice its own number, and has one number for all of a process.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, most)
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > most:
        raise BadImage(_too_large())
    return image


@functools.cache
def _reads_heif() -> bool:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _without_texts(png: bytes) -> bytes:
    """The file without the chunks of text and the colour profile, which PIL reads up to a megabyte each."""
    parts, start = [PNG_MARK], len(PNG_MARK)
    while start + 12 <= len(png):
        stop = start + 12 + int.from_bytes(png[start : start + 4], "big")
        if png[start + 4 : start + 8] not in PNG_TEXTS:
            parts.append(png[start:stop])
        start = stop
    return b"".join(parts)


def _load(data: bytes, min_side: int | None) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched half-grey pictures on
    if (image := _plain_jpeg(data, min_side)) is not None:
        return image
    if data.startswith(PNG_MARK):
        try:
            return _decoded(data, min_side)
        except (ValueError, zlib.error) as error:
            if isinstance(error, BadImage) or "too large" not in str(error).lower():
                raise
            data = _without_texts(data)
    return _decoded(data, min_side)


def _plain_jpeg(data: bytes, min_side: int | None) -> Image.Image | None:
    """The pixels of a common JPEG; None leaves the file to PIL's reader, which also says what is wrong with it.

    PIL's decoder gets the bytes and settings that PIL's reader would give it, so that the pixels are the same. The
    header is read here, as PIL's reader of headers, written in Python, takes a third of the time of a small photo.
    """
    size = _size_of_plain_jpeg(data)
    if size is None or size[0] * size[1] > max_pixels() or _is_filled_up(data):
        return None
    wanted = _draft_size(size, min_side) or size
    larger = min(size[0] // wanted[0], size[1] // wanted[1])
    shrink = next(n for n in (8, 4, 2, 1) if larger >= n)  # the rule of PIL's `draft`
    shrunk = -(-size[0] // shrink), -(-size[1] // shrink)
    try:
        return Image.frombytes("RGB", shrunk, data, "jpeg", "RGB", "", shrink, 0)
    except ValueError:
        return None


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG of three 8-bit channels, upright by default and without further pictures; else None."""
    if not data.startswith(JPEG_START):
        return None
    size, at, last = None, 2, len(data) - 10
    while at < last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == PIXELS:
            return size
        if marker in FRAMES and data[at + 4] == 8 and data[at + 9] == 3:
            size = data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
            if 0 in size:
                return None
        elif marker not in PASSED:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _is_filled_up(jpeg: bytes) -> bool:
    """Whether the file is an unfinished download, filled up with zeros."""
    return jpeg.endswith(bytes(16)) and not jpeg.rstrip(b"\0").endswith(b"\xff\xd9")


def _draft_size(size: tuple[int, int], min_side: int | None) -> tuple[int, int] | None:
    """The (width, height) that is asked of a JPEG's decoder, which makes no less; None asks for full size."""
    if min_side is None and size[0] * size[1] <= LARGE:
        return None
    scale = 0.5 if min_side is None else min(1.0, min_side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _decoded(data: bytes, min_side: int | None) -> Image.Image:
    image = _opened(data)
    if image.format in JPEGS and (wanted := _draft_size(image.size, min_side)) is not None:
        image.draft(None, wanted)
    if image.format == "JPEG" and _is_filled_up(data):
        raise BadImage("image file is truncated")
    if image.format == "PNG":
        _opened(data).verify()  # load() does not look at the checksums of the pixels
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        pass  # the pixels are whole; only the orientation tag is unreadable
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; transparency over white, 16-bit greys by their high byte."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return _float_grey(np.asarray(image))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode in ("La", "PA"):
        image = image.convert({"La": "LA", "PA": "RGBA"}[image.mode])
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _float_grey(grey: np.ndarray) -> Image.Image:
    """Float pictures carry no range: [0, 1] when nothing exceeds 1, else [0, 255]."""
    if not np.isfinite(grey).all():
        raise BadImage("float image with NaN or infinite pixels")
    scale = 255.0 if grey.max() <= 1 else 1.0
    return Image.fromarray(np.clip(grey * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")

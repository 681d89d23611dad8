"""Image file bytes to upright 8-bit RGB, or a plain reason why not."""

import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

# Larger pictures are refused with a reason. PIL's own warning would be a second message about the same picture.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(ValueError):
    """The bytes are not a picture that can be shown whole; `reason` says why in a few words."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode_image(data: bytes, *, min_side: int | None = None) -> np.ndarray:
    """`open_image` with the same arguments, its picture as a uint8 array (H, W, 3)."""
    return np.array(open_image(data, min_side=min_side), np.uint8)


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
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image file" if data else "empty file") from None
    except Exception as error:  # PIL's readers raise nearly every built-in exception on damaged files
        reason = str(error).split("(")[0].strip() or type(error).__name__
        raise BadImage("image file is truncated" if "truncated" in reason.lower() else reason) from error


def _load(data: bytes, min_side: int | None) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched half-grey pictures on
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"more than {MAX_PIXELS} pixels")
    if min_side is not None and image.format in ("JPEG", "MPO"):
        scale = min(1.0, min_side / min(image.size))
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if image.format == "JPEG" and data.endswith(bytes(16)) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BadImage("image file is truncated")  # an unfinished download, filled up with zeros
    if image.format == "PNG":
        Image.open(io.BytesIO(data)).verify()  # load() does not look at the checksums of the pixels
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

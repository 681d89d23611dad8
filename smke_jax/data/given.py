"""Whatever callers hold a picture in -> what the models take, or a plain reason why not."""

import contextlib
import os
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from smke_jax.data.decode import BadImage, decode_image, to_rgb

MOST_BYTES = 1 << 30  # of one picture's file


def is_one_image(x: Any) -> bool:
    """Whether `x` is a single picture, not several."""
    if isinstance(x, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)) or hasattr(x, "read"):
        return True
    return hasattr(x, "shape") and len(x.shape) in (2, 3)


def pixels_of(x: Any, *, min_side: int | None = None) -> np.ndarray:
    """A path, the bytes of a file, a file object, a PIL image, an array or a tensor -> uint8 (H, W, 3), upright RGB.

    Arrays and tensors have their 1, 3 or 4 channels last or first, or none, as uint8 or as floats in [0, 1].

    min_side: how many pixels of the shorter side are enough; a file may then be decoded smaller (`open_image`)

    Raises:
      BadImage: it cannot be read, or is none of these.
    """
    if isinstance(x, Image.Image):
        return _of_pil(x)
    if isinstance(x, (bytes, bytearray, memoryview)):
        return decode_image(bytes(x), min_side=min_side)
    if isinstance(x, (str, os.PathLike)):
        return decode_image(_read_path(x), min_side=min_side)
    if hasattr(x, "read"):
        return decode_image(_read_file(x), min_side=min_side)
    if hasattr(x, "shape"):
        return _of_array(x)
    raise BadImage(f"a {type(x).__name__} is no picture: give a path, bytes, a PIL image or an array")


def _of_pil(image: Image.Image) -> np.ndarray:
    try:
        image.load()
        with contextlib.suppress(Exception):  # the pixels are whole; only the note of the orientation is unreadable
            image = ImageOps.exif_transpose(image)
        return np.array(to_rgb(image), np.uint8)
    except BadImage:
        raise
    except Exception as error:  # a file that PIL opened lazily may be damaged
        raise BadImage(str(error).split("(")[0].strip() or type(error).__name__) from error


def _read_path(path: str | os.PathLike) -> bytes:
    try:
        if os.path.isdir(path):
            raise BadImage("Is a directory")
        with open(path, "rb") as file:
            return _read_file(file)
    except FileNotFoundError:
        raise BadImage("there is no such file") from None
    except OSError as error:
        raise BadImage(error.strerror or type(error).__name__) from None
    except ValueError as error:  # of a zero byte in the name
        raise error if isinstance(error, BadImage) else BadImage("no file can have this name") from None


def _read_file(file: BinaryIO) -> bytes:
    try:
        data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadImage(f"its file cannot be read: {error}") from None
    if isinstance(data, str):
        raise BadImage("its file is open as text: open it with mode 'rb'")
    if len(data) > MOST_BYTES:
        raise BadImage("file is larger than 1 GiB")
    return data


def _of_array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):  # a tensor of PyTorch, on any device
        x = x.detach().cpu().numpy()
    x = np.asarray(x)
    what = f"array is {x.dtype} {x.shape}"
    if x.ndim == 2:
        x = x[:, :, None]
    if x.ndim != 3 or 0 in x.shape:
        raise BadImage(f"{what}: give (H, W, 3)")
    if x.shape[2] not in (1, 3, 4):
        if x.shape[0] not in (1, 3, 4):
            raise BadImage(f"{what}: give 1, 3 or 4 channels, last or first")
        x = x.transpose(1, 2, 0)
    if np.issubdtype(x.dtype, np.floating):
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise BadImage(f"{what} outside of [0, 1]: give pixels that are not normalised")
        x = np.rint(x.astype(np.float32) * 255).astype(np.uint8)
    elif x.dtype != np.uint8:
        raise BadImage(f"{what}: give uint8, or floats in [0, 1]")
    if x.shape[2] == 3:
        return np.ascontiguousarray(x)
    return np.array(to_rgb(Image.fromarray(x[:, :, 0] if x.shape[2] == 1 else np.ascontiguousarray(x))), np.uint8)

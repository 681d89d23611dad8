"""One image of a dataset: its file is read, decoded whole, and shrunk where that is asked for.

Worker processes import this module, so it must stay quick to import.
"""

import hashlib
import io
import logging
from pathlib import Path

from PIL import Image

from smke_jax.data.decode import BadImage, open_image, size_of
from smke_jax.data.prepare.items import Item, existing
from smke_jax.data.prepare.journal import Outcome, found
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

JPEG_SIDE = 65_500  # pixels, the most that libjpeg writes
MOST_BYTES = 1 << 30  # of one image file

Checked = tuple[Item, Outcome, bytes | None]  # and the bytes to store, None for a bad image


def check(item: Item, max_side: int | None) -> Checked:
    """The item with what became of it, and the bytes to store.

    Args:
      item: with its image as a file or as bytes.
      max_side: most pixels of the shorter side, see `build`; None keeps the file's bytes.

    Raises:
      UserError: a setting is wrong, which is not the picture's fault.
    """
    try:
        data, is_new = _load(item, max_side)
        return item, Outcome(found(item), hashlib.sha256(data).hexdigest(), is_new), data
    except BadImage as error:
        reason = error.reason
    except UserError:
        raise
    except Exception as error:  # whatever one picture does to its decoder, the others are sound
        log.debug("%s", item.where, exc_info=True)
        reason = f"cannot be read: {type(error).__name__}"
    return item, Outcome(found(item), reason=reason), None


def _load(item: Item, max_side: int | None) -> tuple[bytes, bool]:
    """(File bytes to store, whether they were encoded here).

    The picture is decoded whole, so that a broken one is found now and not in training.
    """
    data = _read(item.image) if isinstance(item.image, Path) else item.image
    if max_side is None:
        open_image(data, min_side=1)  # the smallest scale of a JPEG reads all of its bytes, too
        return data, False
    image = open_image(data, min_side=max_side)
    if size_of(data)[0] <= max_side:
        return data, False
    scale = min(1.0, max_side / min(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if max(image.size) > JPEG_SIDE:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), True


def _read(path: Path) -> bytes:
    try:
        path = existing(path)
        if not path.is_file():
            raise BadImage("image file is missing" if not path.exists() else "is a folder or a device, no file")
        if path.stat().st_size > MOST_BYTES:
            raise BadImage("image file is larger than 1 GiB")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"image file cannot be read: {error.strerror}") from None
    except ValueError as error:  # of a zero byte, or of half a surrogate pair
        if isinstance(error, BadImage):
            raise
        raise BadImage("no file can have this name") from None

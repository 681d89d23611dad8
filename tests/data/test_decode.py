"""Every kind of picture comes out right, and every kind of damage with a reason."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from smke_jax.__main__ import main
from smke_jax.convert.export import pytorch
from smke_jax.data import decode
from smke_jax.data.decode import BadImage, decode_image
from smke_jax.data.given import pixels_of
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 48, width: int = 64) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_out_exactly(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encode(photo(), kind, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.array(photo()))


def test_result_is_a_writable_array_of_its_own():
    pixels = decode_image(encode(photo()))
    pixels[:] = 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_plain_modes_match_pillow(mode, kind):
    image = photo().convert(mode)
    data = encode(image, kind)
    np.testing.assert_array_equal(decode_image(data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_over_white(mode):
    image = Image.new(mode, (3, 1), 0)
    black_with = [(*[0] * (len(mode) - 1), alpha) for alpha in (0, 128, 255)]
    image.putdata(black_with)
    np.testing.assert_array_equal(decode_image(encode(image))[0, :, 0], [255, 127, 0])


def test_palette_with_transparency_is_composited_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    pixels = decode_image(encode(image, transparency=0))
    np.testing.assert_array_equal(pixels[0], [[255, 255, 255], [200, 100, 50]])


def test_transparent_colour_of_an_rgb_png_is_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    np.testing.assert_array_equal(decode_image(encode(image, transparency=(1, 2, 3)))[0], [[255, 255, 255], [4, 5, 6]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    image = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], np.uint16))
    np.testing.assert_array_equal(decode_image(encode(image, kind))[0, :, 0], [0, 0, 1, 128, 255])


def test_float_tiff():
    unit = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(decode_image(encode(unit, "TIFF"))[0, :, 2], [0, 128, 255])
    wide = Image.fromarray(np.array([[-3, 100, 300]], np.float32))
    np.testing.assert_array_equal(decode_image(encode(wide, "TIFF"))[0, :, 2], [0, 100, 255])
    with pytest.raises(BadImage, match="NaN"):
        decode_image(encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def test_lab_tiff():
    white = Image.new("LAB", (2, 2), (255, 128, 128))
    assert decode_image(encode(white, "TIFF")).min() >= 250


def test_cmyk_jpeg_with_inverted_inks():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    data = encode(cmyk, "JPEG", quality=95)
    assert b"Adobe" in data  # the marker that says the inks are stored inverted, as Photoshop stores them
    np.testing.assert_allclose(decode_image(data)[8, 8], [255, 0, 0], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32] = 255  # white top left corner
    undo = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = undo.get(orientation, lambda a: a)(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif, quality=95)
    np.testing.assert_allclose(decode_image(data).astype(int), upright, atol=8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_does_not_lose_the_picture():
    data = encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    found = decode_image(data)
    assert found.shape == (48, 64, 3)
    np.testing.assert_array_equal(pixels_of(Image.open(io.BytesIO(data))), found)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(pixels[0, 0], [255, 0, 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_never_give_a_picture(kind, kept):
    data = encode(photo(96, 128), kind)
    with pytest.raises(BadImage) as caught:
        decode_image(data[: int(len(data) * kept)])
    assert caught.value.reason and "\n" not in caught.value.reason


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_even_where_another_library_allowed_it(progressive, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(photo(96, 128), "JPEG", progressive=progressive)
    with pytest.raises(BadImage, match="truncated"):
        decode_image(data[: len(data) // 2])


def test_download_filled_up_with_zeros():
    data = encode(photo(96, 128), "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        decode_image(data[: len(data) // 2].ljust(len(data), b"\0"))
    assert decode_image(data.ljust(len(data) + 512, b"\0")).shape == (96, 128, 3)  # whole, then padded


@pytest.mark.parametrize(
    "data, reason",
    [(b"", "empty file"), (b"<html>404</html>", "not an image"), (bytes(1000), "not an image")],
)
def test_no_picture_at_all(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(data)


def test_flipped_bytes_in_a_png_are_found():
    data = bytearray(encode(photo()))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImage):
        decode_image(bytes(data))


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(BadImage, match="more than 1000 pixels"):
        decode_image(encode(photo(), "TIFF"))


def test_decompression_bomb_without_the_memory():
    png = bytearray(encode(Image.new("1", (8, 8))))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(BadImage, match="pixels"):
        decode_image(bytes(png))


def test_min_side_decodes_large_jpegs_smaller():
    data = encode(photo(400, 800), "JPEG")
    small = decode_image(data, min_side=90)
    assert small.shape == (100, 200, 3)
    assert decode_image(data, min_side=401).shape == (400, 800, 3)
    exact = np.array(photo(400, 800).resize((200, 100), Image.Resampling.BOX)).astype(int)
    assert np.abs(small[2:-2, 2:-2] - exact[2:-2, 2:-2]).mean() < 6
    with pytest.raises(BadImage, match="truncated"):
        decode_image(data[: len(data) // 2], min_side=90)


PLAIN = {"progressive": {"progressive": True}, "full colour": {"subsampling": 0}, "comment": {"comment": b"a"}, "": {}}
ODD = {"exif": {"exif": b"Exif\0\0" + bytes(20)}, "profile": {"icc_profile": bytes(99)}, "grey": {}, "inks": {}}


def by_pil_alone(data: bytes, monkeypatch, **options) -> np.ndarray | str:
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_plain_jpeg", lambda data, min_side: None)
        return found_in(data, **options)


def found_in(data: bytes, **options) -> np.ndarray | str:
    """The pixels, or why there are none."""
    try:
        return decode_image(data, **options)
    except BadImage as error:
        return error.reason


@pytest.mark.parametrize("min_side", [None, 1, 20, 33, 66, 67])
@pytest.mark.parametrize("kind", [*PLAIN, *ODD])
def test_a_jpeg_has_the_pixels_of_pils_reader(kind, min_side, monkeypatch):
    image = photo(131, 257).convert({"grey": "L", "inks": "CMYK"}.get(kind, "RGB"))
    data = encode(image, "JPEG", quality=90, **(PLAIN | ODD)[kind])
    assert (decode._plain_jpeg(data, min_side) is not None) == (kind in PLAIN)
    expected = by_pil_alone(data, monkeypatch, min_side=min_side)
    np.testing.assert_array_equal(decode_image(data, min_side=min_side), expected)


def test_a_damaged_header_of_a_jpeg_means_what_it_means_to_pils_reader(monkeypatch):
    data, rng, plain, bad = encode(photo(40, 56), "JPEG"), np.random.default_rng(0), 0, 0
    for place in range(len(data) // 2):
        damaged = bytearray(data)
        damaged[place] = rng.integers(256)
        expected, found = by_pil_alone(bytes(damaged), monkeypatch), found_in(bytes(damaged))
        np.testing.assert_array_equal(found, expected)
        plain += decode._plain_jpeg(bytes(damaged), None) is not None
        bad += isinstance(found, str)
    assert plain > 50 and bad > 50  # both happen


def test_the_limit_of_pixels_is_said_and_can_be_raised(monkeypatch):
    data = encode(photo(40, 50), "TIFF")
    monkeypatch.setenv("SMKE_MAX_PIXELS", "1999")
    with pytest.raises(BadImage, match=r"more than 1999 pixels \(the environment variable SMKE_MAX_PIXELS sets"):
        decode_image(data)
    monkeypatch.setenv("SMKE_MAX_PIXELS", "2000")
    assert decode_image(data).shape == (40, 50, 3)
    monkeypatch.setenv("SMKE_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="SMKE_MAX_PIXELS=many is no number of pixels"):
        decode_image(data)


def test_200_megapixels_are_read():
    data = encode(Image.new("1", (20_000, 10_000)))  # beyond twice PIL's own limit
    assert decode.open_image(data).size == (20_000, 10_000)


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(monkeypatch):
    monkeypatch.setattr(decode, "LARGE", 100 * 50 - 1)
    small = decode_image(encode(photo(50, 100), "JPEG", quality=95))
    exact = np.array(photo(50, 100).resize((50, 25), Image.Resampling.BOX)).astype(int)
    assert small.shape == (25, 50, 3) and np.abs(small - exact)[1:-1, 1:-1].mean() < 6
    monkeypatch.setattr(decode, "LARGE", 100 * 50)
    assert decode_image(encode(photo(50, 100), "JPEG")).shape == (50, 100, 3)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_png_with_megabytes_of_compressed_text_or_profile(kind):
    body = zlib.compress(bytes(3 << 20))
    head = {"zTXt": b"Comment\0\0", "iTXt": b"Comment\0\1\0\0\0", "iCCP": b"profile\0\0"}[kind]
    chunk = kind.encode() + head + body
    png = encode(photo())
    png = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    np.testing.assert_array_equal(decode_image(png), np.array(photo()))
    damaged = bytearray(png)
    damaged[-40] ^= 0xFF
    with pytest.raises(BadImage):
        decode_image(bytes(damaged))


def test_heic_is_read_by_pillow_heif_or_named_with_it(monkeypatch):
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decode._reads_heif.cache_clear()
    with pytest.raises(BadImage, match="HEIC photo: pip install pillow-heif"):
        decode_image(heic)
    asked = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: asked.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    decode._reads_heif.cache_clear()
    with pytest.raises(BadImage, match="not an image file"):  # the made-up package registers nothing
        decode_image(heic)
    decode._reads_heif.cache_clear()
    assert asked == [1]


def test_a_heic_photo_is_one_picture_everywhere(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    decode._reads_heif.cache_clear()
    rng = np.random.default_rng(0)
    shown = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture that is meant is 48 wide and 64 high
    (tmp_path / "dev").mkdir()
    path = tmp_path / "dev" / "photo.heic"
    heif.from_pillow(shown).save(path, quality=95, exif=exif.tobytes())
    found = decode_image(path.read_bytes())
    assert found.shape == (64, 48, 3)
    meant = np.asarray(shown.transpose(Image.Transpose.ROTATE_270), np.int64)
    assert np.abs(found - meant).mean() < 4  # it is a lossy format
    # The library, and the file that exports carry.
    np.testing.assert_array_equal(pixels_of(path), found)
    np.testing.assert_array_equal(pixels_of(Image.open(path)), found)
    modeling = pytorch.import_modeling()
    np.testing.assert_array_equal(np.asarray(modeling.upright_rgb(Image.open(path))), found)
    # Prepared, the photo keeps its bytes.
    (tmp_path / "dev.jsonl").write_text('{"image_path": "dev/photo.heic", "text": "a turned photo"}\n')
    assert main(["prepare", "jsonl", f"--source={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    assert bytes(open_prepared(tmp_path / "out", "dev")[0].image) == path.read_bytes()

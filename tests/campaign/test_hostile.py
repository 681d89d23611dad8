"""Files that somebody made to do harm: refused in one line, or read without doing it."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from made_up import contents, jpeg, prepare, skipped, write

import smke_jax
from smke_jax.convert import unreadable
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import PARAMS
from smke_jax.convert.source import read_source
from smke_jax.data.decode import BadImage, decode_image
from smke_jax.data.prepare import cc
from smke_jax.errors import UserError

MEBIBYTE = 1 << 20


def tar_of(members: dict[str, bytes], mode: str = "w", **fields) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_names_of_a_tar_that_lead_elsewhere_stay_names(tmp_path):
    members = {}
    for i, place in enumerate(("../../", "/", "a/../../../", "./")):
        members |= {f"{place}evil{i}.jpg": jpeg(i), f"{place}evil{i}.txt": b"a picture"}
    write(tmp_path / "tars", {"0.tar": tar_of(members)})
    before = {path for path in tmp_path.rglob("*")}
    prepare("cc", tmp_path / "tars", tmp_path / "out")
    new = {path for path in tmp_path.rglob("*")} - before
    assert new and all(path.is_relative_to(tmp_path / "out") for path in new)
    assert not [path for path in new if "evil" in path.name]
    assert len(contents(tmp_path / "out", "train")) == 4


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_not_followed(kind, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    link = tar_of({"link.jpg": b""}, type=kind, linkname=str(tmp_path / "secret.jpg"))
    rest = tar_of({"link.txt": b"a secret", "0.jpg": jpeg(0), "0.txt": b"a picture"})
    write(tmp_path / "tars", {"0.tar": link[:512] + rest})
    prepare("cc", tmp_path / "tars", tmp_path / "out")
    assert [name for name, _ in contents(tmp_path / "out", "train")] == ["0.jpg"]


def test_a_tar_that_grows_on_reading_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cc, "MOST_IMAGE", 4 * MEBIBYTE)
    bomb = gzip.compress(tar_of({"big.jpg": bytes(96 * MEBIBYTE), "big.txt": b"a", "0.jpg": jpeg(), "0.txt": b"b"}))
    assert len(bomb) < MEBIBYTE
    write(tmp_path / "tars", {"0.tar.gz": bomb})
    del bomb
    tracemalloc.start()
    try:
        prepare("cc", tmp_path / "tars", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * MEBIBYTE
    assert [name for name, _ in contents(tmp_path / "out", "train")] == ["0.jpg"]
    assert ["image is larger than 1 GiB"] == [row["reason"] for row in skipped(tmp_path / "out")]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*x) for x in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (1, 2**31 - 1)])
def test_a_picture_that_says_it_is_enormous(width, height):
    tracemalloc.start()
    try:
        with pytest.raises(BadImage):
            decode_image(png(width, height, (b"IDAT", zlib.compress(bytes(1000)))))
        assert tracemalloc.get_traced_memory()[1] < 24 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_a_text_in_a_picture_that_grows_on_reading():
    pixels = zlib.compress(b"\0" + bytes(3))
    text = b"Comment\0\0" + zlib.compress(bytes(64 * MEBIBYTE))
    assert decode_image(png(1, 1, (b"zTXt", text), (b"IDAT", pixels))).shape == (1, 1, 3)


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "a header longer than the file": safetensors({"a": F32}, bytes(8), length=2**62),
    "a header of more than memory": safetensors({"a": F32}, bytes(8), length=2**40),
    "offsets behind the end": safetensors({"a": F32 | {"data_offsets": [0, 2**40]}}, bytes(8)),
    "offsets that go back": safetensors({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "two tensors of the same bytes": safetensors({"a": F32, "b": F32}, bytes(8)),
    "a shape of more than memory": safetensors({"a": F32 | {"shape": [2**31, 2**31, 2**31]}}, bytes(8)),
    "a shape below zero": safetensors({"a": F32 | {"shape": [-2]}}, bytes(8)),
    "a type that is none": safetensors({"a": F32 | {"dtype": "PICKLE"}}, bytes(8)),
    "a header that is no JSON": safetensors(b"\xff" * 40),
    "a header of nested lists": safetensors(b"[" * 100_000),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_of_safetensors_that_lies(lie, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    (tmp_path / PARAMS).write_bytes(LIES[lie])
    for read in (lambda: read_source(tmp_path / "model.safetensors"), lambda: smke_jax.load(tmp_path)):
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


class Intruder:
    def __reduce__(self):
        return (raise_alarm, ())


def raise_alarm():
    raise AssertionError("code of the file was run")


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def member_of(shape: tuple[int, ...]) -> bytes:
    """An npz whose one array says it has that shape, and has four numbers."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": shape})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", array.getvalue() + bytes(16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npz(a=np.array([Intruder()], dtype=object)),
        member_of((10**12,)),
        member_of((2**40, 2**40)),
        b"PK\3\4" + bytes(40),
    ],
    ids=["code", "a million million numbers", "more than can be counted", "half of a zip"],
)
def test_an_npz_that_lies(content, tmp_path):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_source(tmp_path / "weights.npz")
    assert "\n" not in str(error.value) and "weights.npz" in str(error.value)


@pytest.mark.parametrize("name", ["weights.npz", "weights.pt", "weights-1.0-py3-none-any.whl"])
def test_a_zip_archive_that_grows_on_reading_is_not_unpacked(name, tmp_path, monkeypatch):
    monkeypatch.setattr(unreadable, "SMALL", MEBIBYTE)
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights/model.safetensors", bytes(16 * MEBIBYTE))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="would unpack to 16,777,216 bytes"), opened(tmp_path / name):
            pass
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()

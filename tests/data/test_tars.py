"""Every whole sample comes out of a tar, however it was made or damaged, and what is lost is said."""

import gzip
import io
import json
import random
import tarfile

import pytest
from made_up import contents, jpeg, prepare, skipped, write
from test_layouts import tar_bytes

BLOCK = 512


def sample(key: str, seed: int = 0) -> dict[str, bytes | str]:
    return {f"{key}.jpg": jpeg(seed), f"{key}.txt": f"Photo {key} ."}


def samples(*keys: str) -> bytes:
    return tar_bytes({name: data for seed, key in enumerate(keys) for name, data in sample(key, seed).items()})


def prepared(tmp_path, files: dict) -> tuple[list[str], dict]:
    """(names kept, manifest) of these files; every caption has to be that of its photo."""
    manifest = prepare("cc", write(tmp_path / "source", files), tmp_path / "out")
    found = contents(tmp_path / "out", "train")
    assert all(captions == (f"Photo {name.rpartition('.')[0]} .",) for name, captions in found)
    assert manifest["n_read"] == manifest["n_kept"] + manifest["n_skipped"]
    return [name for name, _ in found], manifest


def test_folders_that_repeat_file_names(tmp_path):
    names, manifest = prepared(tmp_path, {"0.tar": samples("a/0", "b/0", "c.d/0")})
    assert names == ["a/0.jpg", "b/0.jpg", "c.d/0.jpg"]
    assert manifest["n_kept"] == 3


@pytest.mark.parametrize(
    "train, dev", [("train/0.tar", "val/0.tar"), ("cc3m-train-0000.tar", "cc3m-validation-0000.tar"),
                   ("cc/training/shards/0.tar", "cc/Valid/shards/0.tar")],
)  # fmt: skip
def test_tars_of_splits_by_their_usual_names(train, dev, tmp_path, capsys):
    names, manifest = prepared(tmp_path, {train: samples("0"), dev: samples("1"), "more/2.tar": samples("2")})
    assert names == ["0.jpg"] and [name for name, _ in contents(tmp_path / "out", "dev")] == ["1.jpg"]
    assert [entry["where"] for entry in skipped(tmp_path / "out")] == ["more/2.tar"]
    assert "more/2.tar" in capsys.readouterr().out


def test_pictures_before_captions(tmp_path):
    files = {**sample("0", 0), **sample("1", 1), **sample("2", 2)}
    ordered = {name: files[name] for name in sorted(files, key=lambda name: (name[-3:], name))}
    for kind, data in (("tar", tar_bytes(ordered)), ("tgz", gzip.compress(tar_bytes(ordered)))):
        names, manifest = prepared(tmp_path / kind, {f"0.{kind}": data})
        assert names == ["0.jpg", "1.jpg", "2.jpg"] and manifest["n_skipped"] == 0


def test_two_tars_joined(tmp_path):
    names, manifest = prepared(tmp_path, {"0.tar": samples("0", "1") + samples("0", "2")})
    assert names == ["0.jpg", "1.jpg", "0.jpg", "2.jpg"]
    assert manifest["skip_reasons"] == {}


def test_a_damaged_header_loses_one_file(tmp_path):
    data = bytearray(samples("0", "1", "2"))
    at = data.index(b"1.jpg")
    data[at : at + 40] = b"\xff" * 40
    names, manifest = prepared(tmp_path, {"0.tar": bytes(data), "0_stats.json": '{"successes": 3}'})
    assert names == ["0.jpg", "2.jpg"]
    assert manifest["skip_reasons"] == {"part of the tar file is damaged": 1, "sample has no image": 1}
    assert manifest["n_not_reached"] == 1 and manifest["n_places_not_reached"] == 0


@pytest.mark.parametrize("cut", ["in a header", "after a sample", "in a photo"])
def test_a_cut_tar(cut, tmp_path, capsys):
    data = samples("0", "1", "2")
    at = data.index(b"2.jpg") + {"in a header": 100, "after a sample": 0, "in a photo": BLOCK + 20}[cut]
    names, manifest = prepared(tmp_path, {"0.tar": data[:at], "0_stats.json": '{"successes": 3}'})
    assert names == ["0.jpg", "1.jpg"]
    ends = "tar file has no end mark: it may have been cut" if cut == "after a sample" else "tar file ends early"
    assert any(reason.startswith(ends) for reason in manifest["skip_reasons"])
    lost = 0 if cut == "in a photo" else 1  # there the sample is known and skipped
    assert manifest["n_not_reached"] == lost
    kept, read = 2, 3 - lost
    line = f"read {read} = kept {kept} + skipped {read - kept}; not reached: {lost}"
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_without_stats_nobody_knows_how_many_are_lost(tmp_path, capsys):
    data = samples("0", "1")
    _, manifest = prepared(tmp_path, {"0.tar": data[: data.index(b"1.jpg") + 100]})
    assert manifest["n_places_not_reached"] == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("and an unknown number in 1 damaged places")


def test_fewer_samples_than_stated(tmp_path):
    _, manifest = prepared(tmp_path, {"0.tar": samples("0"), "0_stats.json": '{"successes": 5}'})
    assert manifest["n_not_reached"] == 4


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_what_macos_adds(form, tmp_path):
    key = "folder/" * 20 + "größe" * 20
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in {"./._x.jpg": b"resource fork", **sample(key), ".DS_Store": b"x"}.items():
            info = tarfile.TarInfo(name)
            data = data if isinstance(data, bytes) else data.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    names, manifest = prepared(tmp_path, {"0.tar": buffer.getvalue()})
    assert names == [f"{key}.jpg"] and manifest["n_skipped"] == 0


def test_dots_in_names(tmp_path):
    files = {**sample("a.v1", 1), **sample("a.v2", 2), **sample("b", 3), "b.seg.png": jpeg(4, kind="PNG")}
    names, _ = prepared(tmp_path, {"0.tar": tar_bytes(files)})
    assert sorted(names) == ["a.v1.jpg", "a.v2.jpg", "b.jpg"]


def test_a_file_twice_is_said(tmp_path):
    members = [*sample("0", 1).items(), ("0.jpg", jpeg(2))]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            data = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _, manifest = prepared(tmp_path, {"0.tar": buffer.getvalue()})
    assert manifest["skip_reasons"] == {"a later file of the archive has the same name": 1}


@pytest.mark.parametrize(
    "text, captions", [([1, "Two ."], ("Two .",)), (None, None), ({"a": 1}, None), ("One .", ("One .",))]
)
def test_captions_in_json_of_any_type(text, captions, tmp_path):
    files = {"0.jpg": jpeg(), "0.json": json.dumps({"caption": text}), "1.jpg": jpeg(1), "1.txt": "Photo 1 ."}
    prepare("cc", write(tmp_path / "source", {"0.tar": tar_bytes(files)}), tmp_path / "out")
    found = dict(contents(tmp_path / "out", "train"))
    assert found.pop("1.jpg") == ("Photo 1 .",) and found == ({"0.jpg": captions} if captions else {})


def test_any_damage_is_skipped_and_the_other_samples_are_whole(tmp_path):
    rng = random.Random(0)
    whole = samples(*map(str, range(6)))
    for trial in range(40):
        data = bytearray(whole + samples("x", "y"))
        for _ in range(rng.randrange(1, 4)):
            start = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[start : start + rng.randrange(1, 2000)] = rng.randbytes(rng.randrange(1, 2000))
            elif kind == 1:
                del data[start : start + rng.randrange(1, 3000)]
            else:
                data[start] ^= 1 << rng.randrange(8)
        source = write(tmp_path / str(trial), {"0.tar": bytes(data), "1.tar": samples("z")})
        manifest = prepare("cc", source, tmp_path / f"out{trial}")
        assert contents(tmp_path / f"out{trial}", "train")[-1] == ("z.jpg", ("Photo z .",))
        assert manifest["n_read"] == manifest["n_kept"] + manifest["n_skipped"]

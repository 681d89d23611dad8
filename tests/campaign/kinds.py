"""What is damaged, and what has to hold afterwards.

A kind makes whole files once, says which of them are damaged, and uses what came of it as a user would.  `use` returns
'used' or 'refused'; it raises `Finding` where something else happened, and lets every other exception pass: that is a
finding too.
"""

import contextlib
import dataclasses
import http.client
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from made_runs import made_ranks, make_run
from mutations import MUTATIONS, VALUES, cut, extreme, flip, node, zero
from PIL import Image
from planted import WIDTH
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from served import Reader, index_photos, serving
from tiny_export import save_model

import smke_jax
from smke_jax.__main__ import main
from smke_jax.config_files import load_config, override
from smke_jax.convert.params_file import DESCRIPTION, PARAMS, SUMS
from smke_jax.data.decode import BadImage, decode_image
from smke_jax.data.sources import open_prepared
from smke_jax.data.tokenizer import load_tokenizer, train_wordpiece
from smke_jax.errors import UserError
from smke_jax.search.query import find, searchable
from smke_jax.search.store import ABOUT, NAMES, RECORDS, ROWS
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.record import flatten

ROOT = Path(__file__).resolve().parents[2]
IN_PLACE = (flip, zero, extreme, cut)  # what keeps the blocks of an archive where they are
JSON = (*MUTATIONS, *[node] * len(MUTATIONS))  # half of the damage is to the shape
COUNT = 5  # of the photos in a data set
CAPTION = "a red dog runs over the blue snow, number {}"


class Finding(Exception):
    """What must not happen."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """make: (empty folder) writes sound files into it; or {name: content} of them.
    damaged: the names of those of which one is damaged each time.
    use: (folder with the files, empty folder, name of the damaged file, its sound content) -> 'used' or 'refused'.
    """

    make: Callable[[Path], object] | dict[str, bytes]
    damaged: tuple[str, ...]
    use: Callable[[Path, Path, str, bytes], str]
    mutations: tuple = MUTATIONS


def smke(*argv) -> str:
    """'used' where the program ended well, 'refused' where it said in one line why not."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main([str(a) for a in argv])
        except SystemExit as stopped:
            status = stopped.code
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    if status == 0 and not lines:
        return "used"
    if status != 2 or len(lines) != 1 or errors.getvalue().splitlines()[-1] != lines[0]:
        raise Finding(f"status {status}, printed {errors.getvalue()[-300:]!r}")
    return "refused"


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((48, 36), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photos() -> dict[str, bytes]:
    return {f"images/{i}.jpg": picture(i) for i in range(COUNT)}


def pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "a.jpg": picture(0), "turned.jpg": picture(1, exif=exif), "progressive.jpg": picture(2, progressive=True),
        "cmyk.jpg": picture(3, mode="CMYK"), "b.png": picture(4, "PNG"), "palette.png": picture(5, "PNG", "P"),
        "alpha.png": picture(6, "PNG", "RGBA"), "deep.png": picture(7, "PNG", "I;16"), "c.webp": picture(8, "WEBP"),
        "d.gif": picture(9, "GIF"), "e.bmp": picture(10, "BMP"), "f.tif": picture(11, "TIFF"),
        "packed.tif": picture(12, "TIFF", compression="tiff_lzw"), "g.jp2": picture(13, "JPEG2000"),
        "h.ppm": picture(14, "PPM"), "i.tga": picture(15, "TGA"), "j.avif": picture(16, "AVIF"),
    }  # fmt: skip


def use_picture(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    try:
        pixels = decode_image((folder / name).read_bytes())
    except BadImage as error:
        if "\n" in str(error):
            raise Finding(f"more than one line: {error}") from None
        return "refused"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise Finding(f"pixels of {pixels.shape}, {pixels.dtype}")
    return "used"


def preparing(dataset: str, expected: Callable[[Path, str, bytes], set[str]]) -> Callable:
    """`smke prepare`, of which the books add up, and which keeps all that `expected` says is whole."""

    def use(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
        out = scratch / "out"
        outcome = smke("prepare", dataset, f"--source={folder}", f"--out={out}")
        if outcome == "refused":
            if (out / "manifest.json").exists():
                raise Finding("refused, and yet there is a manifest")
            return outcome
        manifest = json.loads((out / "manifest.json").read_text())
        if manifest["n_read"] != manifest["n_kept"] + manifest["n_skipped"]:
            raise Finding(f"the books do not add up: {manifest}")
        rows = (out / "skipped.jsonl").read_text().splitlines() if (out / "skipped.jsonl").exists() else []
        skipped = [row for row in map(json.loads, rows) if "not_reached" not in row]
        if len(skipped) != manifest["n_skipped"]:
            raise Finding(f"{len(skipped)} rows of skipped items, {manifest['n_skipped']} in the manifest")
        kept = set()
        for split in (split for split, report in manifest["splits"].items() if report["n_images"]):
            for example in open_prepared(out, split):
                decode_image(example.image)
                if not example.captions:
                    raise Finding(f"{example.name} has no caption")
                kept.add(Path(example.name).stem)
        if lost := expected(folder, name, sound) - kept:
            raise Finding(f"lost {sorted(lost)} of which nothing was damaged; skipped: {rows}"[:600])
        return outcome

    return use


def nothing(folder: Path, name: str, sound: bytes) -> set[str]:
    """Nobody knows what is whole."""
    return set()


def all_but_the_damaged(folder: Path, name: str, sound: bytes) -> set[str]:
    """Where a photo is damaged, all others are whole; of a damaged file of captions nothing is known."""
    return {str(i) for i in range(COUNT) if f"images/{i}.jpg" != name} if name.endswith(".jpg") else set()


def whole_lines(folder: Path, name: str, sound: bytes) -> set[str]:
    """As above; and a photo is whole where its line is as it was, and no other line names it."""
    if name.endswith(".jpg"):
        return all_but_the_damaged(folder, name, sound)
    now, was = (folder / name).read_bytes().split(b"\n"), sound.split(b"\n")
    if now[0] != was[0]:  # a mark of bytes in front changes how all is read
        return set()
    return {str(i) for i, line in enumerate(was[:COUNT]) if line in now}


def jsonl_files() -> dict[str, bytes]:
    rows = [{"image_path": f"images/{i}.jpg", "text": CAPTION.format(i)} for i in range(COUNT)]
    return {**photos(), "train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def flickr8k_files() -> dict[str, bytes]:
    return {
        **{name.replace("images", "Flicker8k_Dataset"): data for name, data in photos().items()},
        "Flickr8k.token.txt": "".join(f"{i}.jpg#0\t{CAPTION.format(i)}\n" for i in range(COUNT)).encode(),
        "Flickr_8k.trainImages.txt": "".join(f"{i}.jpg\n" for i in range(3)).encode(),
        "Flickr_8k.devImages.txt": "".join(f"{i}.jpg\n" for i in range(3, COUNT)).encode(),
    }


def table_files() -> dict[str, bytes]:
    rows = "".join(f'{i}.jpg,"{CAPTION.format(i)}"\n' for i in range(COUNT))
    return {**{name.replace("images", "Images"): data for name, data in photos().items()},
            "captions.csv": f"image,caption\n{rows}".encode()}  # fmt: skip


def flickr30k_files() -> dict[str, bytes]:
    rows = "".join(f"{i}.jpg| 0| {CAPTION.format(i)}\n" for i in range(COUNT))
    return {**{name.replace("images", "flickr30k_images"): data for name, data in photos().items()},
            "results.csv": f"image_name| comment_number| comment\n{rows}".encode()}  # fmt: skip


def karpathy_files() -> dict[str, bytes]:
    images = [
        {"filename": f"{i}.jpg", "cocoid": i, "split": "train" if i < 3 else "val",
         "sentences": [{"raw": CAPTION.format(i)}]}
        for i in range(COUNT)
    ]  # fmt: skip
    return {**photos(), "dataset_coco.json": json.dumps({"images": images}).encode()}


def coco_files() -> dict[str, bytes]:
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(COUNT)],
        "annotations": [{"id": 9 * i, "image_id": i, "caption": CAPTION.format(i)} for i in range(COUNT)],
    }
    return {**photos(), "captions_train2017.json": json.dumps(content).encode()}


def folder_files() -> dict[str, bytes]:
    texts = {f"images/{i}.txt": CAPTION.format(i).encode() for i in range(COUNT)}
    return {**photos(), **texts}


def tar_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(COUNT):
            for name, data in ((f"{i}.jpg", picture(i)), (f"{i}.txt", CAPTION.format(i).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"00000.tar": buffer.getvalue()}


def whole_samples(folder: Path, name: str, sound: bytes) -> set[str]:
    """The samples whose blocks of 512 bytes are all as they were, where they were."""
    now, whole = (folder / name).read_bytes(), set()
    with tarfile.open(fileobj=io.BytesIO(sound)) as tar:
        for i in range(COUNT):
            spans = []
            for member in (tar.getmember(f"{i}.jpg"), tar.getmember(f"{i}.txt")):
                spans.append((member.offset, member.offset_data + -(-member.size // 512) * 512))
            if all(now[a:b] == sound[a:b] for a, b in spans):
                whole.add(str(i))
    return whole


def make_tokenizer(folder: Path) -> None:
    train_wordpiece([CAPTION.format(i) for i in range(20)], 60).save(folder)


def use_tokenizer(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    try:
        tokenizer = load_tokenizer(folder)
        ids, mask = tokenizer.encode([CAPTION.format(3), "", "\U0001f600 ünï"], 8)
    except UserError as error:
        return _refused(error)
    if ids.shape != mask.shape or ids.shape[0] != 3 or not mask[:, 0].all():
        raise Finding(f"ids of {ids.shape}, mask {mask}")
    return "used"


def make_bert(folder: Path) -> None:
    """The smallest BERT that `smke convert` takes, as transformers writes one."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


def make_pickles(folder: Path) -> None:
    """The same weights as torch.save writes them, today and before version 1.6."""
    import torch
    from safetensors.torch import load_file

    make_bert(folder)
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "new.pt")
    torch.save({"state_dict": state}, folder / "old.pt", _use_new_zipfile_serialization=False)


def use_weights(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    checkpoint = folder / name if name.endswith(".pt") else folder
    out = scratch / "out"
    outcome = smke("convert", f"--checkpoint={checkpoint}", f"--out={out}")
    if outcome == "refused" and out.exists() and any(out.iterdir()):
        raise Finding(f"refused, and yet there are {[path.name for path in out.iterdir()]}")
    return outcome


def use_model(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    try:
        smke_jax.load(folder)
    except UserError as error:
        return _refused(error)
    return "used"


def make_description(folder: Path) -> None:
    save_model(folder / "model")
    with safe_open(folder / "model" / PARAMS, framework="numpy") as file:
        (folder / "description.json").write_text(file.metadata()[DESCRIPTION], encoding="utf-8")


def use_description(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    """What is damaged is the description in the file of parameters, and not the sums in it."""
    path = folder / "model" / PARAMS
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    said = (folder / name).read_bytes().decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        said = json.dumps({**json.loads(said), SUMS: json.loads(sound)[SUMS]})
    save_file(load_file(path), path, metadata | {DESCRIPTION: said})
    return use_model(folder / "model", scratch, name, sound)


def make_finished_run(folder: Path) -> None:
    make_run(folder / "run", ranks=made_ranks(0.5, images=20))


def use_run(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    run = folder / "run"
    outcomes = {smke("report", run), smke("compare", run, f"--out={scratch}")}
    return "used" if "used" in outcomes else "refused"


def make_index(folder: Path) -> None:
    index_photos(folder / "photos", folder / "made", {f"{i}.png": i for i in range(COUNT)})


def use_index(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    try:
        index = searchable(folder / "made")
        answer = find(index, np.ones(WIDTH, np.float32), index.live.copy(), top=3, min_score=None, is_text=True)
    except UserError as error:
        return _refused(error)
    if len(answer.hits) > 3:
        raise Finding(f"{len(answer.hits)} hits of 3")
    return "used"


def config_fields(folder: Path) -> None:
    """A line for each field of some configs: the file that is damaged is the command line."""
    lines = []
    for name in ("s_smke", "ctl_bank", "itm", "lit", "teacher_scenes", "image_vq"):
        flat = flatten(_small_config(name).copy_and_resolve_references())
        lines += [f"{name} --{key}={value}" for key, value in flat.items()]
    (folder / "flags").write_text("\n".join(lines), encoding="utf-8")


def _small_config(name: str):
    return load_config(f"{ROOT / 'configs' / name}.py:smoke")


def use_config(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    """The damaged part is the value of one field."""
    rng = random.Random((folder / name).read_bytes())
    config, _, flag = rng.choice(sound.decode().split("\n")).partition(" ")
    key, _, value = flag.partition("=")
    damaged = rng.choice((
        value * 2, "-" + value, "1e308", "nan", "-1", "0", "None", "()", "(1,", "('a',)", "True", "'" + value + "'",
        rng.choice(VALUES[:-1]).decode(errors="surrogateescape"), f"{value},{value}", "99999999999999999999",
    ))  # fmt: skip
    if (folder / name).read_bytes() == sound:
        damaged = value
    try:
        changed = resolve(override(_small_config(config), [f"{key}={damaged}"]))
        build_experiment(changed, None, {"vocab_size": 300, "num_images": 96})
    except UserError as error:
        return _refused(error)
    return "used"


def make_requests(folder: Path) -> None:
    """What a browser asks of the local page."""
    make_index(folder)
    (folder / "requests").write_text(
        "/search?q=photo+3&since=2020-01-01&until=2024-12-31&folder=a&from=12&all=1\n/search?like=0-12345678\n"
        "/thumbnail/0-12345678\n/photo/1-00000000\n/about\n/\n/search?q=%F0%9F%98%80&from=-1"
    )


def use_requests(folder: Path, scratch: Path, name: str, sound: bytes) -> str:
    """Every damaged line is asked; every answer is one of HTTP, and no server error."""
    asked = 0
    with serving(folder / "made", _Forgiving(Reader())) as server:
        for line in (folder / name).read_bytes().split(b"\n")[:8]:
            target = "".join(chr(c) for c in line if 32 < c < 127)[:9000]
            if not target.startswith("/"):
                continue
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            connection.request("GET", target, headers={"Host": f"127.0.0.1:{server.server_address[1]}"})
            status = connection.getresponse().status
            connection.close()
            asked += 1
            if status >= 500:
                raise Finding(f"status {status} for {target[:200]!r}")
    return "used" if asked else "refused"


class _Forgiving:
    """Any text means some photo."""

    def __init__(self, reader):
        self.reader = reader

    def encode_texts(self, texts):
        return self.reader.encode_texts([f"photo {len(text) % COUNT}" for text in texts])


def _refused(error: UserError) -> str:
    if "\n" in str(error) or not str(error):
        raise Finding(f"not one line: {str(error)[:300]!r}")
    return "refused"


SOUND = photos()
KINDS = {
    "pictures": Kind(pictures(), tuple(pictures()), use_picture),
    "jsonl": Kind(jsonl_files(), ("train.jsonl", "train.jsonl", *SOUND), preparing("jsonl", whole_lines), JSON),
    "flickr8k": Kind(
        flickr8k_files(), ("Flickr8k.token.txt", "Flickr_8k.trainImages.txt"), preparing("flickr8k", nothing)
    ),
    "tables": Kind(table_files(), ("captions.csv",), preparing("flickr8k", nothing)),
    "flickr30k": Kind(flickr30k_files(), ("results.csv",), preparing("flickr30k", nothing)),
    "karpathy": Kind(karpathy_files(), ("dataset_coco.json", *SOUND), preparing("coco", all_but_the_damaged), JSON),
    "coco": Kind(coco_files(), ("captions_train2017.json", *SOUND), preparing("coco", all_but_the_damaged), JSON),
    "folder": Kind(folder_files(), tuple(folder_files()), preparing("folder", all_but_the_damaged)),
    "tars": Kind(tar_files(), ("00000.tar",), preparing("cc", whole_samples), IN_PLACE),
    "moved_tars": Kind(tar_files(), ("00000.tar",), preparing("cc", nothing)),
    "tokenizers": Kind(make_tokenizer, ("tokenizer.json",), use_tokenizer, JSON),
    "weights": Kind(make_bert, ("model.safetensors", "config.json"), use_weights, JSON),
    "pickles": Kind(make_pickles, ("new.pt", "old.pt"), use_weights),
    "models": Kind(save_model, ("params.safetensors", "tokenizer/tokenizer.json"), use_model, JSON),
    "descriptions": Kind(make_description, ("description.json",), use_description, (node,)),
    "runs": Kind(
        make_finished_run,
        tuple(
            f"run/{name}" for name in ("run.json", "metrics.jsonl", "evals/40/retrieval.json", "evals/40/retrieval.npz")
        ),
        use_run,
        JSON,
    ),
    "indexes": Kind(make_index, tuple(f"made/{name}" for name in (ABOUT, RECORDS, ROWS, NAMES)), use_index, JSON),
    "configs": Kind(config_fields, ("flags",), use_config),
    "requests": Kind(make_requests, ("requests",), use_requests),
}

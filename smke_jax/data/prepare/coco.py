"""COCO captions: the Karpathy split (dataset_coco.json), or the published captions_train2017.json and its fellows.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014.
"""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Files, Item, Options, Skips, in_order_of_ids, whole_number
from smke_jax.data.prepare.karpathy import karpathy_items
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

KARPATHY = "dataset_coco.json"
# Of one year: those of 2014 and of 2017 hold the same photos in other splits.
PUBLISHED = {
    year: {"train": f"captions_train{year}.json", "dev": f"captions_val{year}.json"} for year in ("2017", "2014")
}


def coco(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """train (train + restval), dev (val) and test of the Karpathy split; without it, train and dev as published.

    The photos may be those of 2014 (COCO_val2014_000000391895.jpg) or of 2017 (000000391895.jpg): they are the same.
    """
    files = Files(source)

    def picture(name: str) -> Path:
        return files.find(name, name.rpartition("_")[2]) or files.picture(name)

    captions = files.find(KARPATHY)
    if captions is not None:
        return karpathy_items(captions, picture, skips)
    for names in PUBLISHED.values():
        found = {split: path for split, name in names.items() if (path := files.find(name)) is not None}
        if found:
            return {split: _published(path, picture, skips) for split, path in found.items()}
    raise files.missing(KARPATHY, *(name for names in PUBLISHED.values() for name in names.values()))


def _published(path: Path, picture, skips: Skips) -> list[Item]:
    try:
        content = parse_json(path.read_bytes())
        images, annotations = content["images"], content["annotations"]
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a whole caption file of COCO: fetch it again") from None
    items: dict[int, Item] = {}
    for number, image in enumerate(images):
        where = f"{path.name}: images[{number}]"
        try:
            name, image_id = image["file_name"], whole_number(image["id"])
            item = Item(name, [], picture(name), where, image_id)
        except (KeyError, TypeError, AttributeError):
            item = image_id = None
        if item is None or image_id is None:
            skips.add(where, "entry lacks its id or file_name")
            continue
        items.setdefault(image_id, item)
    for number, annotation in enumerate(annotations):
        try:
            items[annotation["image_id"]].captions.append(annotation["caption"])
        except (KeyError, TypeError):
            skips.add(f"{path.name}: annotations[{number}]", "caption lacks its text or its image")
    return in_order_of_ids(list(items.values()))

"""Reads the Karpathy and Fei-Fei caption files (dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json).

A. Karpathy, L. Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015.
"""

from collections.abc import Callable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Skips, in_order_of_ids, whole_number
from smke_jax.data.prepare.splits import SPLITS
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json


def karpathy_items(path: Path, picture: Callable[[str], Path], skips: Skips) -> dict[str, list[Item]]:
    """Items per split, by rising image id; `picture` finds the file of a name.

    The id is COCO's own ("cocoid"), else the number that the file gives ("imgid"). Captions are the raw sentences, not
    the file's own tokens. `restval`, the part of COCO's validation images that the split gives to training, is train.
    """
    try:
        images = parse_json(path.read_bytes())["images"]
        if not isinstance(images, list):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a whole Karpathy caption file: fetch it again") from None
    splits: dict[str, list[Item]] = {}
    for number, image in enumerate(images):
        where = f"{path.name}: images[{number}]"
        try:
            split = SPLITS[image["split"]]
            captions = [sentence["raw"] for sentence in image["sentences"]]
            image_id = whole_number(image.get("cocoid", image.get("imgid")))
            item = Item(image["filename"], captions, picture(image["filename"]), where, image_id)
        except (KeyError, TypeError, AttributeError):
            skips.add(where, "entry lacks a known split, filename or sentences[].raw")
            continue
        splits.setdefault(split, []).append(item)
    return {split: in_order_of_ids(items) for split, items in splits.items()}

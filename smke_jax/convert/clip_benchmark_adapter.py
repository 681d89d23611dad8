"""CLIP_benchmark's metrics on the model that lies beside this file.

    python clip_benchmark_adapter.py retrieval captions.jsonl
    python clip_benchmark_adapter.py classification FOLDER --template "a photo of a {c}"

Lines of captions.jsonl are as `smke prepare jsonl` takes them: {"image_path": path, "text": one or a list}, paths from
the folder of that file, lines of one photo together.  FOLDER has one folder of photos for each class, whose name is the
class.  The figures are printed as JSON, between 0 and 1.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from PIL import Image

# ---- what CLIP_benchmark asks of a model


def load(directory=Path(__file__).parent, device="cpu"):
    """-> (model, transform, tokenizer) in the sense of clip_benchmark.models.load_clip."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    return Adapter(model), lambda image: model.preprocess([image])[0], lambda texts: tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )  # fmt: skip


class Adapter:
    """A model whose texts are what the tokenizer returns: ids and mask together."""

    def __init__(self, model):
        self.encode_image = model.get_image_features
        self.encode_text = lambda tokens: model.get_text_features(**tokens)


# ---- the data


class Photos(torch.utils.data.Dataset):
    """Pairs (path of a photo, what belongs to it): its captions, or the number of its class."""

    def __init__(self, pairs, transform, classes=()):
        self.pairs, self.transform, self.classes = pairs, transform, list(classes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        path, target = self.pairs[i]
        with Image.open(path) as image:
            return self.transform(image), target


def captioned(file, transform):
    """The photos and captions of a file of JSON lines."""
    captions = {}
    for line in filter(str.strip, Path(file).read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        texts = row.get("captions", row.get("text"))
        captions.setdefault(row["image_path"], []).extend([texts] if isinstance(texts, str) else texts)
    return Photos([(Path(file).parent / path, texts) for path, texts in captions.items()], transform)


def in_classes(folder, transform):
    """The photos in a folder of one folder for each class."""
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    pairs = [(path, i) for i, name in enumerate(classes) for path in sorted((Path(folder) / name).iterdir())]
    return Photos(pairs, transform, classes)


def with_lists(batch):
    """Captions stay lists, as their numbers differ."""
    images, captions = zip(*batch, strict=True)
    return torch.stack(images), list(captions)


# ---- the metrics


def retrieval(directory, file, ks=(1, 5, 10), batch_size=64):
    """{'image_retrieval_recall@K', 'text_retrieval_recall@K': fraction} of the photos and captions in `file`."""
    from clip_benchmark.metrics import zeroshot_retrieval

    model, transform, tokenizer = load(directory)
    loader = torch.utils.data.DataLoader(captioned(file, transform), batch_size, collate_fn=with_lists)
    return zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=list(ks))


def classification(directory, folder, templates, batch_size=64):
    """{'acc1', 'acc5', 'mean_per_class_recall'} of the photos in `folder`; {c} in a template is the class."""
    from clip_benchmark.metrics import zeroshot_classification as theirs

    model, transform, tokenizer = load(directory)
    photos = in_classes(folder, transform)
    loader = torch.utils.data.DataLoader(photos, batch_size)
    classifier = theirs.zero_shot_classifier(model, tokenizer, photos.classes, list(templates), "cpu", amp=False)
    logits, target = theirs.run_classification(model, classifier, loader, "cpu", amp=False)
    # Counted here: `accuracy` of CLIP_benchmark 1.6.2 fails with NumPy 2.4 and later.
    right = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
    first = right[:, 0].double()
    recalls = [first[target == label].mean() for label in target.unique()]
    return {
        "acc1": first.mean().item(),
        "acc5": right.any(1).double().mean().item() if logits.shape[1] >= 5 else math.nan,
        "mean_per_class_recall": torch.stack(recalls).mean().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", choices=("retrieval", "classification"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--template", action="append", help="of classification, may be given again")
    asked, here = parser.parse_args(), Path(__file__).parent
    if asked.metric == "retrieval":
        found = retrieval(here, asked.data)
    else:
        found = classification(here, asked.data, asked.template or ["a photo of a {c}"])
    print(json.dumps(found, indent=2))

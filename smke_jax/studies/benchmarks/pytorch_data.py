"""The input pipeline that ours is compared with: photo files, PIL, and PyTorch's DataLoader."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from smke_jax.data.tokenizer import Tokenizer


class Photos(torch.utils.data.Dataset):
    """(uint8 view (S, S, 3), one of the captions) of a photo: decoded, cropped at random, resized, mirrored or not."""

    def __init__(self, paths: Sequence[Path], captions: Sequence[Sequence[str]], size: int, crop_scale, crop_ratio):
        self.paths, self.captions, self.size = paths, captions, size
        self.scale, self.ratio = crop_scale, crop_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        image = Image.open(self.paths[index]).convert("RGB")
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=self._box(*image.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image), random.choice(self.captions[index])

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = random.uniform(*self.scale) * width * height
            aspect = math.exp(random.uniform(*(math.log(x) for x in self.ratio)))
            w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if w <= width and h <= height:
                left, top = random.uniform(0, width - w), random.uniform(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height


class Collate:
    """Examples of `Photos` -> {'image' uint8 (B, S, S, 3), 'text', 'text_mask' (B, L)}."""

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, examples) -> dict[str, torch.Tensor]:
        images, captions = zip(*examples)
        ids, mask = self.tokenizer.encode(captions, self.max_length)
        images = torch.from_numpy(np.stack(images))
        return {"image": images, "text": torch.from_numpy(ids), "text_mask": torch.from_numpy(mask)}


def loader(photos: Photos, collate: Collate, batch_size: int, workers: int) -> torch.utils.data.DataLoader:
    """Batches without end of photos drawn at random, made by `workers` processes, 0 for the caller's own."""
    endless = torch.utils.data.RandomSampler(photos, replacement=True, num_samples=2**40)
    return torch.utils.data.DataLoader(photos, batch_size, sampler=endless, num_workers=workers, collate_fn=collate)

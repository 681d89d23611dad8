"""S-SMKE's image-text student in plain PyTorch.  This file and the ones beside it are all that is needed.

With PyTorch, safetensors, NumPy, Pillow and tokenizers:

    model = SmkeModel.from_directory(directory)
    pixels = model.preprocess([PIL.Image.open("photo.jpg")])
    encoding = tokenizers.Tokenizer.from_file(f"{directory}/tokenizer.json").encode("a dog runs")
    ids, mask = torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])
    similarity = model(pixels)["image_embeds"] @ model(input_ids=ids, attention_mask=mask)["text_embeds"].T

With transformers also `AutoModel.from_pretrained(directory, trust_remote_code=True)`, `AutoTokenizer` and
`AutoImageProcessor`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from torch import nn

try:
    from transformers import BaseImageProcessor, BatchFeature, PretrainedConfig, PreTrainedModel
    from transformers.utils import ModelOutput
except ImportError:  # the few things that are used of them
    BaseImageProcessor, BatchFeature, ModelOutput = object, dict, None

    class PretrainedConfig:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    class PreTrainedModel(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def post_init(self):
            pass


TEXT, IMAGE = 0, 1  # rows of the token-type table
FIELDS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")  # of what a call gives
# Of the pixels in [0, 1]: ImageNet's, where config.json does not say others.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


def _on_white(image):
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def upright_rgb(image):
    """A PIL image as the model was trained and evaluated on: as it is meant to be seen, in 8-bit RGB.

    The orientation that a camera notes is applied, transparency is laid over white, greys of 16 bits keep their high
    byte, floats are taken as [0, 1] where none exceeds 1, else as [0, 255].
    """
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        pass  # only the note is unreadable
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image)
        scale = 255.0 if grey.max() <= 1 else 1.0
        return Image.fromarray(np.clip(grey * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode in ("La", "PA"):
        image = image.convert({"La": "LA", "PA": "RGBA"}[image.mode])
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def squashed(images, size, mean=MEAN, std=STD):
    """PIL images -> (B, 3, size, size): each squashed to a square as a whole, bicubic, and normalised."""
    pixels = np.stack([np.asarray(upright_rgb(image).resize((size, size), resample=3)) for image in images])
    pixels = (pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def as_pictures(images):
    """PIL images, arrays or tensors, one or several -> a list of PIL images.

    Arrays have their 1, 3 or 4 channels last or first, or none, as uint8 or as floats in [0, 1].
    """
    if not isinstance(images, (list, tuple)):
        images = images if getattr(images, "ndim", 0) == 4 else [images]
    return [image if isinstance(image, Image.Image) else _of_array(image) for image in images]


def _of_array(x):
    x = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    if x.ndim == 3 and x.shape[2] not in (1, 3, 4):
        x = x.transpose(1, 2, 0)
    if np.issubdtype(x.dtype, np.floating):
        if not (x.min() >= 0 and x.max() <= 1):  # nor is NaN within
            raise ValueError("an array of floats outside of [0, 1]: give pixels that are not normalised")
        x = np.rint(x.astype(np.float32) * 255).astype(np.uint8)
    elif x.dtype != np.uint8:
        raise ValueError(f"an array of {x.dtype}: give uint8, or floats in [0, 1]")
    return Image.fromarray(x[:, :, 0] if x.ndim == 3 and x.shape[2] == 1 else x)


def cut(ids, mask, length):
    """Token ids and mask (B, L), 1 = token -> the same of at most `length` tokens, as the tokenizer cuts a text.

    The last token of a text, which ends it, stays the last one.
    """
    if ids.shape[1] <= length:
        return ids, mask
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    end = torch.where(last < length, ids[:, length - 1], ids.gather(1, last[:, None])[:, 0])
    return torch.cat([ids[:, : length - 1], end[:, None]], dim=1), mask[:, :length]


class SmkeImageProcessor(BaseImageProcessor):
    """`squashed` for transformers, which has no processor with these rules.  It reads preprocessor_config.json."""

    model_input_names = ["pixel_values"]

    def __init__(self, size=None, image_mean=MEAN, image_std=STD, **others):
        super().__init__(**others)
        self.size, self.image_mean, self.image_std = size, image_mean, image_std

    def preprocess(self, images, return_tensors=None, **ignored):
        """What `as_pictures` takes -> {'pixel_values': (B, 3, S, S)}."""
        pixels = squashed(as_pictures(images), self.size["height"], self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": pixels.numpy()}, tensor_type=return_tensors)

    def __call__(self, images, **options):
        return self.preprocess(images, **options)


if ModelOutput is None:

    class SmkeOutput(dict):
        """What a call gives, by name, attribute or position; what is None is left out."""

        def __init__(self, **fields):
            super().__init__((name, x) for name, x in fields.items() if x is not None)

        def __getattr__(self, name):
            if name in FIELDS:
                return self.get(name)
            raise AttributeError(name)

        def __getitem__(self, key):
            return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

else:

    @dataclass
    class SmkeOutput(ModelOutput):
        """Cosines times the temperature's scale, and the embeddings (B, D), L2-normalised."""

        logits_per_image: torch.Tensor | None = None
        logits_per_text: torch.Tensor | None = None
        text_embeds: torch.Tensor | None = None
        image_embeds: torch.Tensor | None = None


class SmkeConfig(PretrainedConfig):
    """What config.json says.

    image, text, shared: sizes of the two towers and of the block they share; image["type"] is data2vec2 | vit
    width: of the shared block; a tower of another width has a linear layer after it
    mean, std: of the pixels in [0, 1]
    vocab_size, target_dim: rows of the word table; width of the teacher's feature that the head predicts
    token_types: whether tokens are told their modality before the shared block
    level: what retrieval compares: fc1 | out | head
    logit_scale: the logarithm of what cosines of that level are multiplied with
    max_position_embeddings: tokens of a text; a longer one is cut
    """

    model_type = "smke"

    def __init__(self, image=None, text=None, shared=None, width=None, mean=MEAN, std=STD, vocab_size=0, target_dim=0,
                 token_types=True, norm_eps=1e-6, level="out", logit_scale=0.0,
                 max_position_embeddings=512, **others):  # fmt: skip
        self.image, self.text, self.shared = image or {}, text or {}, shared or {}
        self.vocab_size, self.target_dim, self.token_types = vocab_size, target_dim, token_types
        self.width, self.mean, self.std = width or self.image.get("width"), tuple(mean), tuple(std)
        self.norm_eps, self.level, self.logit_scale = norm_eps, level, logit_scale
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**others)


class Attention(nn.Module):
    """Multi-head self-attention.  (B, L, D) -> (B, L, D).

    mask: 1 = may be seen; (B, L) of keys, or (1, L, L) of queries and keys
    """

    def __init__(self, width, num_heads, key_bias=True):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask=None):
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, d)
            for project in (self.query, self.key, self.value)
        )
        if mask is not None:
            mask = (mask[:, None] if mask.ndim == 2 else mask)[:, None].bool()
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """-> (first layer before the activation (B, L, mlp_dim), output (B, L, D))."""

    def __init__(self, width, mlp_dim, activation):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x):
        hidden = self.fc1(x)
        return hidden, self.fc2(self.activation(hidden))


class Block(nn.Module):
    """One Transformer layer -> (output (B, L, D), first MLP layer before its activation).

    pre:  h = x + s1·Attn(LN1 x);  out = h + s2·MLP(LN2 h)
    post: h = LN1(x + Attn(x));    out = LN2(h + MLP(h))
    """

    def __init__(self, width, num_heads, mlp_dim, norm_order, norm_eps, activation, layer_scale=None, key_bias=True):
        super().__init__()
        self.pre = norm_order == "pre"
        self.norm1, self.norm2 = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, num_heads, key_bias)
        self.mlp = Mlp(width, mlp_dim, activation)
        self.scale1, self.scale2 = (
            None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2)
        )

    def forward(self, x, mask=None):
        y = self.attention(self.norm1(x) if self.pre else x, mask)
        h = x + (y if self.scale1 is None else self.scale1 * y)
        h = h if self.pre else self.norm1(h)
        fc1, y = self.mlp(self.norm2(h) if self.pre else h)
        out = h + (y if self.scale2 is None else self.scale2 * y)
        return out if self.pre else self.norm2(out), fc1


def blocks(fields):
    """The layers of a tower."""
    names = ("width", "num_heads", "mlp_dim", "norm_order", "norm_eps", "activation")
    sizes, layer_scale = [fields[name] for name in names], fields.get("layer_scale")
    return nn.ModuleList(Block(*sizes, layer_scale) for _ in range(fields["depth"]))


def sincos_positions(grid, width):
    """Fixed 2-D positions (grid², width), row-major: x in the first half of the channels, y in the second."""
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = np.arange(grid)[:, None] * frequency
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.concatenate([np.tile(axis, (grid, 1)), np.repeat(axis, grid, axis=0)], axis=1)
    return torch.from_numpy(table.astype(np.float32))


class Data2Vec2(nn.Module):
    """Normalised pixels (B, 3, S, S) -> (B, 1 + N, D), [CLS] first."""

    def __init__(self, fields):
        super().__init__()
        width, patch_size = fields["width"], fields["patch_size"]
        self.pre = fields["norm_order"] == "pre"
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width, fields["norm_eps"])
        self.blocks = blocks(fields)
        # No buffer: transformers builds models without memory and fills in only what the file of weights holds.
        self.positions = sincos_positions(fields["image_size"] // patch_size, width)

    def forward(self, pixels):
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = x + self.positions.to(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x if self.pre else self.norm(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x) if self.pre else x


class Vit(nn.Module):
    """The same, with learned positions: DINO, DINOv2 and AugReg, and CLIP's image tower."""

    def __init__(self, fields):
        super().__init__()
        width, patch_size, eps = fields["width"], fields["patch_size"], fields["norm_eps"]
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size, bias=fields["patch_bias"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1 + (fields["image_size"] // patch_size) ** 2, width))
        self.embedding_norm = nn.LayerNorm(width, eps) if fields["norm_embeddings"] else None
        self.blocks = blocks({**fields, "norm_order": "pre"})
        self.norm = nn.LayerNorm(width, eps)

    def streams(self, pixels):
        """The output of every block."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.position_embedding
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        outputs = []
        for block in self.blocks:
            x, _ = block(x)
            outputs.append(x)
        return outputs

    def forward(self, pixels):
        return self.norm(self.streams(pixels)[-1])


IMAGE_TOWERS = {"data2vec2": Data2Vec2, "vit": Vit}


class TextTower(nn.Module):
    """BERT.  Token ids and mask (B, L), 1 = token -> (B, L, D), [CLS] first."""

    def __init__(self, fields, vocab_size):
        super().__init__()
        width = fields["width"]
        words = fields.get("word_width") or width
        self.word_embedding = nn.Embedding(vocab_size, words)
        self.word_projection = nn.Identity() if words == width else nn.Linear(words, width, bias=False)
        self.position_embedding = nn.Embedding(fields["max_positions"], width)
        self.type_embedding = nn.Embedding(fields["type_vocab_size"], width)
        self.embedding_norm = nn.LayerNorm(width, fields["norm_eps"])
        self.blocks = blocks(fields)
        self.norm = nn.LayerNorm(width, fields["norm_eps"]) if fields["norm_order"] == "pre" else None

    def forward(self, ids, mask):
        x = self.word_projection(self.word_embedding(ids)) + self.position_embedding.weight[: ids.shape[1]]
        x = self.embedding_norm(x + self.type_embedding.weight[0])
        for block in self.blocks:
            x, _ = block(x, mask)
        return x if self.norm is None else self.norm(x)


class EmbeddingModel(PreTrainedModel):
    """What models of images and texts have in common, under the names that clients of CLIP use.

    A model has `encode_image` and `encode_text`, whose results hold what retrieval compares under config.level.
    """

    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True

    @classmethod
    def from_directory(cls, directory):
        """The model that lies beside this file, for inference, in the precision of its weights."""
        from safetensors.torch import load_file

        config = cls.config_class(**json.loads((Path(directory) / "config.json").read_text(encoding="utf-8")))
        weights = load_file(Path(directory) / "model.safetensors")
        model = cls(config).to(next(iter(weights.values())).dtype)
        model.load_state_dict(weights)
        return model.eval()

    @property
    def logit_scale(self):
        """The logarithm of what the cosines are multiplied with."""
        return torch.tensor(float(self.config.logit_scale))

    def get_image_features(self, pixel_values, **ignored):
        """What `preprocess` gives -> embeddings (B, D), L2-normalised."""
        return F.normalize(self.encode_image(pixel_values)[self.config.level], dim=-1)

    def get_text_features(self, input_ids, attention_mask=None, **ignored):
        """Token ids and mask (B, L), 1 = token -> embeddings (B, D), L2-normalised.

        A text of more tokens than the model reads is cut: not every client asks the tokenizer to do that.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = cut(input_ids, mask, self.config.max_position_embeddings)
        return F.normalize(self.encode_text(ids, mask)[self.config.level], dim=-1)

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None, return_dict=None, **ignored):
        """-> SmkeOutput: image_embeds (B, D) and text_embeds (B', D) of what is given, L2-normalised.

        Of both, also logits_per_image (B, B') and logits_per_text (B', B).
        """
        image = None if pixel_values is None else self.get_image_features(pixel_values)
        text = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        logits = None if image is None or text is None else self.logit_scale.exp().to(image) * image @ text.T
        outputs = SmkeOutput(
            logits_per_image=logits, logits_per_text=None if logits is None else logits.T, text_embeds=text,
            image_embeds=image,
        )  # fmt: skip
        return tuple(outputs.values()) if return_dict is False else outputs


class SmkeModel(EmbeddingModel):
    """Two towers, one shared Transformer block, one head.

    `encode_image` and `encode_text` return, all from position 0, un-normalised and in fp32:
      'fc1'  (B, mlp_dim)     first MLP layer of the shared block before its activation
      'out'  (B, D)           output of the shared block
      'head' (B, target_dim)  prediction of the teacher's feature of the image
    Calling the model returns what retrieval compares, one of them (config.level) and L2-normalised, and the cosines.
    """

    config_class = SmkeConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.width
        self.image = IMAGE_TOWERS[config.image.get("type", "data2vec2")](config.image)
        self.text = TextTower(config.text, config.vocab_size)
        wide = {tower: fields["width"] for tower, fields in (("image", config.image), ("text", config.text))}
        self.projections = nn.ModuleDict({k: nn.Linear(x, width) for k, x in wide.items() if x != width})
        self.shared = Block(width=width, norm_order="pre", key_bias=False, **config.shared)
        if config.token_types:
            self.type_embedding = nn.Embedding(2, width)
            self.type_scale = nn.Parameter(torch.ones(width))
        self.head_norm = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, config.target_dim)
        self.post_init()

    def preprocess(self, images):
        """PIL images -> (B, 3, S, S): each `upright_rgb`, squashed to a square as a whole, bicubic, and normalised."""
        return squashed(images, self.config.image["image_size"], self.config.mean, self.config.std)

    def encode_image(self, pixel_values):
        """Normalised pixels (B, 3, S, S) -> representations, see the class."""
        return self._align(self.image(pixel_values.to(self.head.weight.dtype)), None, IMAGE)

    def encode_text(self, input_ids, attention_mask):
        """Token ids and mask (B, L), 1 = token -> representations, see the class."""
        return self._align(self.text(input_ids, attention_mask), attention_mask, TEXT)

    def _align(self, tokens, mask, modality):
        tower = ("text", "image")[modality]
        tokens = self.projections[tower](tokens) if tower in self.projections else tokens
        if self.config.token_types:
            tokens = tokens + self.type_scale * self.type_embedding.weight[modality]
        out, fc1 = (x[:, 0] for x in self.shared(tokens, mask))
        head = self.head(self.head_norm(out))
        return {"fc1": fc1.float(), "out": out.float(), "head": head.float()}

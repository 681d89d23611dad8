"""Frozen image towers, a text tower and projections into one space, in plain PyTorch.

With PyTorch, safetensors, NumPy, Pillow and tokenizers, where `modeling_smke.py` lies beside this file:

    model = AlignedModel.from_directory(directory)
    pixels = model.preprocess([PIL.Image.open("photo.jpg")])
    encoding = tokenizers.Tokenizer.from_file(f"{directory}/tokenizer.json").encode("a dog runs")
    ids, mask = torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])
    similarity = model(pixels)["image_embeds"] @ model(input_ids=ids, attention_mask=mask)["text_embeds"].T

With transformers also `AutoModel.from_pretrained(directory, trust_remote_code=True)` and `AutoProcessor`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

try:  # transformers makes a package of the two files
    from .modeling_smke import (
        BaseImageProcessor,
        BatchFeature,
        Block,
        EmbeddingModel,
        PretrainedConfig,
        TextTower,
        as_pictures,
        blocks,
        squashed,
    )
    from .modeling_smke import Vit as VitTower
except ImportError:
    from modeling_smke import (
        BaseImageProcessor,
        BatchFeature,
        Block,
        EmbeddingModel,
        PretrainedConfig,
        TextTower,
        as_pictures,
        blocks,
        squashed,
    )
    from modeling_smke import Vit as VitTower

# EfficientNet-Lite0: (blocks, kernel size, stride, expansion, channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


class Conv(nn.Conv2d):
    """Without bias, with TensorFlow's "same" padding: an odd pixel is added right and below."""

    def __init__(self, inputs, outputs, kernel_size=1, stride=1, groups=1):
        super().__init__(inputs, outputs, kernel_size, stride, groups=groups, bias=False)

    def forward(self, x):
        pads = []
        for size, kernel_size, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class BatchNorm(nn.Module):
    """With the statistics of its file, as inference needs it."""

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class InvertedResidual(nn.Module):
    def __init__(self, kernel_size, stride, expansion, inputs, outputs, eps):
        super().__init__()
        hidden = expansion * inputs
        self.expands, self.outputs = expansion > 1, outputs
        if self.expands:
            self._expand_conv, self._bn0 = Conv(inputs, hidden), BatchNorm(hidden, eps)
        self._depthwise_conv, self._bn1 = Conv(hidden, hidden, kernel_size, stride, hidden), BatchNorm(hidden, eps)
        self._project_conv, self._bn2 = Conv(hidden, outputs), BatchNorm(outputs, eps)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


def rounded(channels):
    """The nearest multiple of 8, but never less than nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class EfficientNetLite(nn.Module):
    """Normalised pixels (B, 3, S, S) -> the mean over cells of each chosen layer, side by side; (B, D)."""

    def __init__(self, fields):
        super().__init__()
        eps, blocks, channels = fields.get("norm_eps", 1e-3), [], 32
        for i, (repeats, kernel_size, stride, expansion, outputs) in enumerate(STAGES):
            repeats *= 1 if i in (0, len(STAGES) - 1) else fields["depth_multiplier"]
            outputs = rounded(outputs * fields["width_multiplier"])
            for place in range(math.ceil(repeats)):
                stride = stride if place == 0 else 1
                blocks.append(InvertedResidual(kernel_size, stride, expansion, channels, outputs, eps))
                channels = outputs
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2), BatchNorm(32, eps)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Conv(channels, fields["width"]), BatchNorm(fields["width"], eps)
        if fields["num_classes"]:
            self._fc = nn.Linear(fields["width"], fields["num_classes"])
        channels = [block.outputs for block in blocks] + [fields["width"]]  # of each layer
        self.layers = fields["layers"] or [len(channels)]
        self.channels = sum(channels[i - 1] for i in self.layers)

    def forward(self, pixels):
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        found = []
        for block in self._blocks:
            x = block(x)
            found.append(x)
        found.append(F.relu6(self._bn1(self._conv_head(x))))
        return torch.cat([unit(found[i - 1].mean((2, 3)).float()) for i in self.layers], dim=1)


class Vit(VitTower):
    """Normalised pixels (B, 3, S, S) -> [CLS] and the mean over patches of the chosen layers, side by side."""

    def __init__(self, fields):
        super().__init__(fields)
        self.pools, self.layers = fields["pools"], fields["layers"]
        self.channels = fields["width"] * len(self.pools) * max(len(self.layers), 1)

    def forward(self, pixels):
        streams = self.streams(pixels)
        chosen = [streams[i - 1] for i in self.layers] or [self.norm(streams[-1])]
        pools = {"cls": lambda x: x[:, 0], "mean": lambda x: x[:, 1:].mean(1)}
        return torch.cat([unit(pools[pool](x.float())) for x in chosen for pool in self.pools], dim=1)


class Bert(TextTower):
    """Token ids and mask (B, L), 1 = token -> (B, D): the mean over the tokens of the last layer, or [CLS]."""

    def __init__(self, fields):
        super().__init__(fields, fields["vocab_size"])
        self.pool, self.channels = fields["pool"], fields["width"]

    def forward(self, ids, mask):
        return pooled(super().forward(ids, mask), mask, self.pool)


class ClipText(nn.Module):
    """CLIP's text tower, whose attention is causal.  Token ids and mask (B, L), 1 = token -> (B, D).

    The output at the end of text, the last token of the mask, takes the place of the first token's.  The feature is
    this one ('cls'), or the mean over the tokens.
    """

    def __init__(self, fields):
        super().__init__()
        width = fields["width"]
        self.word_embedding = nn.Embedding(fields["vocab_size"], width)
        self.position_embedding = nn.Embedding(fields["max_positions"], width)
        self.blocks = blocks({**fields, "norm_order": "pre"})
        self.norm = nn.LayerNorm(width, fields["norm_eps"])
        self.pool, self.channels = fields["pool"], width

    def forward(self, ids, mask):
        length = ids.shape[1]
        x = self.word_embedding(ids) + self.position_embedding.weight[:length]
        earlier = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None]
        for block in self.blocks:
            x, _ = block(x, earlier)
        x = self.norm(x)
        end = (mask.sum(1) - 1).long()[:, None, None].expand(-1, 1, x.shape[2])
        return pooled(torch.cat([x.gather(1, end), x[:, 1:]], dim=1), mask, self.pool)


def pooled(tokens, mask, pool):
    """(B, L, D) -> (B, D) in fp32: the first token, or the mean over those of the mask."""
    tokens = tokens.float()
    if pool == "cls":
        return tokens[:, 0]
    seen = mask[:, :, None].to(tokens)
    return (tokens * seen).sum(1) / seen.sum(1)


class Projection(nn.Module):
    """Features (B, F) -> (B, width): a linear layer, and with `hidden` a residual MLP after it."""

    def __init__(self, inputs, width, hidden, bias):
        super().__init__()
        self.linear = nn.Linear(inputs, width, bias=bias)
        self.hidden = hidden
        if hidden:
            self.norm = nn.LayerNorm(width, 1e-6)
            self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = self.linear(x)
        return x + self.fc2(F.gelu(self.fc1(self.norm(x)), approximate="tanh")) if self.hidden else x


class Projections(nn.Module):
    """A projection of images, one of texts, and what both share."""

    def __init__(self, fields, inputs):
        super().__init__()
        width, shared = fields["width"], fields["shared"]
        bias = fields.get("bias", True)
        self.image, self.text = (Projection(inputs[side], width, fields["hidden"], bias) for side in ("image", "text"))
        self.shared = None
        if shared:
            sizes = {name: shared[name] for name in ("num_heads", "mlp_dim", "norm_eps", "activation", "layer_scale")}
            self.shared = Block(width=width, norm_order="pre", key_bias=False, **sizes)
        self.has_head = bool(fields["head"])
        if self.has_head:
            self.head_norm, self.head_linear = nn.LayerNorm(width, 1e-6), nn.Linear(width, fields["head"])

    def forward(self, side, features):
        made = {"out": getattr(self, side)(features)}
        if self.shared is not None:
            made["out"], made["fc1"] = (x[:, 0] for x in self.shared(made["out"][:, None]))
        if self.has_head:
            made["head"] = self.head_linear(self.head_norm(made["out"]))
        return {name: x.float() for name, x in made.items()}


TOWERS = {"efficientnet_lite": EfficientNetLite, "vit": Vit, "bert": Bert, "clip_text": ClipText}


def packed(images, views):
    """PIL images -> (B, N): of each view, the image squashed to a square as a whole, bicubic, normalised and flattened.

    views: {'size', 'mean', 'std'} of each image tower; they lie one after another in a row.
    """
    return torch.cat([squashed(images, v["size"], v["mean"], v["std"]).flatten(1) for v in views], dim=1)


class AlignedImageProcessor(BaseImageProcessor):
    """`packed` for transformers.  It reads preprocessor_config.json."""

    model_input_names = ["pixel_values"]

    def __init__(self, views=(), **others):
        super().__init__(**others)
        self.views = list(views)

    def preprocess(self, images, return_tensors=None, **ignored):
        """What `as_pictures` of modeling_smke.py takes -> {'pixel_values': (B, N)}."""
        pixels = packed(as_pictures(images), self.views)
        return BatchFeature({"pixel_values": pixels.numpy()}, tensor_type=return_tensors)

    def __call__(self, images, **options):
        return self.preprocess(images, **options)


class AlignedConfig(PretrainedConfig):
    """What config.json says.

    networks: {name: its type and sizes}: image towers, text towers and one of projections
    level: what retrieval compares: out | fc1 | head
    logit_scale: the logarithm of what cosines of that level are multiplied with
    max_position_embeddings: tokens of a text; a longer one is cut
    """

    model_type = "smke_aligned"

    def __init__(self, networks=None, level="out", logit_scale=0.0, max_position_embeddings=512, **others):
        self.networks, self.level, self.logit_scale = networks or {}, level, logit_scale
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**others)


class AlignedModel(EmbeddingModel):
    """Towers and projections, as config.json describes them in "networks".

    `encode_image` and `encode_text` return what the projections make: 'out' (B, width), and 'fc1' and 'head' where the
    model has them.  Calling the model returns what retrieval compares, one of them ("level"), L2-normalised, and the
    cosines.
    """

    config_class = AlignedConfig

    def __init__(self, config):
        super().__init__(config)
        networks = config.networks
        (self.last,) = (name for name, own in networks.items() if own["type"] == "projections")
        self.networks = nn.ModuleDict({name: TOWERS[x["type"]](x) for name, x in networks.items() if name != self.last})
        makers = {f"{own['makes']}/feature": name for name, own in networks.items() if name != self.last}
        self.readers = {side: [makers[feature] for feature in networks[self.last][side]] for side in ("image", "text")}
        inputs = {side: sum(self.networks[name].channels for name in names) for side, names in self.readers.items()}
        self.networks[self.last] = Projections(networks[self.last], inputs)
        fields = (networks[name] for name in self.readers["image"])
        self.views = [
            {"size": own["image_size"], "mean": own["mean"], "std": own["std"], "close_up": own.get("close_up", 1.0)}
            for own in fields
        ]
        self.post_init()

    def preprocess(self, images):
        """PIL images -> what `encode_image` takes, see `packed`."""
        return packed(images, self.views)

    def encode_image(self, pixel_values):
        """What `preprocess` gives -> representations, see the class.

        Of a model with one image tower, pixels (B, 3, S, S), too.
        """
        dtype = next(self.parameters()).dtype
        rows = pixel_values.flatten(1).to(dtype).split([3 * view["size"] ** 2 for view in self.views], dim=1)
        features = [
            seen_closer(self.networks[name], row.unflatten(1, (3, view["size"], view["size"])), view["close_up"])
            for name, row, view in zip(self.readers["image"], rows, self.views, strict=True)
        ]
        return self.networks[self.last]("image", torch.cat(features, dim=1).to(dtype))

    def encode_text(self, input_ids, attention_mask):
        """Token ids and mask (B, L), 1 = token -> representations, see the class."""
        dtype = next(self.parameters()).dtype
        features = [self.networks[name](input_ids, attention_mask) for name in self.readers["text"]]
        return self.networks[self.last]("text", torch.cat(features, dim=1).to(dtype))


def seen_closer(tower, pixels, share):
    """What `tower` makes of pixels (B, 3, S, S); with a share below 1, the mean of that and of what it makes of
    their mirrored middle."""
    if share == 1:
        return tower(pixels)
    size = pixels.shape[3]
    side = max(round(size * share), 1)
    first = (size - side) // 2
    middle = pixels[:, :, first : first + side, first : first + side].flip(3)
    middle = F.interpolate(middle.float(), size=(size, size), mode="bilinear", align_corners=False).to(pixels.dtype)
    return (tower(pixels) + tower(middle)) / 2


def unit(x):
    """x (B, D) divided by the root mean square of each row, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-12)

"""EfficientNet-Lite written in PyTorch from the names and shapes of its published file."""

import torch.nn.functional as F
from torch import nn

# (repeats, kernel, stride, expansion, channels) of each stage, of Lite0, Lite1 and Lite2.
LITE0 = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
         (1, 3, 1, 6, 320))  # fmt: skip
LITE1 = ((1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 40), (4, 3, 2, 6, 80), (4, 5, 1, 6, 112), (5, 5, 2, 6, 192),
         (1, 3, 1, 6, 320))  # fmt: skip
LITE2 = ((1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
         (1, 3, 1, 6, 352))  # fmt: skip


class Conv(nn.Conv2d):
    """Without bias; TensorFlow's "same" padding, the odd pixel right and below."""

    def __init__(self, channels, out, kernel=1, stride=1, groups=1):
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if len(set(pads)) == 1:
            return F.conv2d(x, self.weight, None, stride, pads[0], 1, self.groups)
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    def __init__(self, kernel, stride, expansion, channels, out):
        super().__init__()
        hidden = expansion * channels
        if expansion > 1:
            self._expand_conv, self._bn0 = Conv(channels, hidden), nn.BatchNorm2d(hidden, eps=1e-3)
        self._depthwise_conv = Conv(hidden, hidden, kernel, stride, hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._project_conv, self._bn2 = Conv(hidden, out), nn.BatchNorm2d(out, eps=1e-3)
        self.added = stride == 1 and channels == out

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_bn0") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.added else y


class EfficientNetLite(nn.Module):
    """images (B, 3, S, S) -> [output of every block …, last feature map, pooled feature, logits]."""

    def __init__(self, stages=LITE0, stem=32, width=1280, classes=1000):
        super().__init__()
        self._conv_stem, self._bn0 = Conv(3, stem, 3, 2), nn.BatchNorm2d(stem, eps=1e-3)
        blocks, channels = [], stem
        for repeats, kernel, stride, expansion, out in stages:
            for i in range(repeats):
                blocks.append(Block(kernel, 1 if i else stride, expansion, channels, out))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Conv(channels, width), nn.BatchNorm2d(width, eps=1e-3)
        if classes:
            self._fc = nn.Linear(width, classes)

    def forward(self, x):
        outputs = []
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        pooled = x.mean((2, 3))
        return [*outputs, x, pooled, *([self._fc(pooled)] if hasattr(self, "_fc") else [])]

"""ResNet with bottleneck blocks (He et al. 2016): the frozen, supervised teacher of Transformer SHRe (spec 5, 26.6)."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.models.batch_norm import BatchNorm

EXPANSION = 4  # a bottleneck's last convolution has so many times the channels of the others


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut.  (B, H, W, C) -> (B, H / stride, W / stride, 4 · channels).

    The 3×3 convolution has the stride (ResNet "v1.5").
    """

    channels: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        def conv_norm(y, i, channels, size, stride=1):
            y = conv(channels, size, stride, self.dtype, name=f"conv{i}")(y)
            return BatchNorm(name=f"bn{i}")(y)

        out = EXPANSION * self.channels
        y = nn.relu(conv_norm(x, 1, self.channels, 1))
        y = nn.relu(conv_norm(y, 2, self.channels, 3, self.stride))
        y = conv_norm(y, 3, out, 1)
        if x.shape != y.shape:
            x = conv(out, 1, self.stride, self.dtype, name="downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet that classifies into `width` classes.  Its logits are its feature, and it sows them as 'logits' too.

    `stem_width` is the number of channels after the first convolution.  The defaults are those of ResNet-50.
    It equals transformers' ResNetForImageClassification.
    """

    width: int = 1000
    stem_width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    dtype: jnp.dtype = jnp.float32

    @property
    def num_classes(self) -> int:
        return self.width

    @nn.compact
    def __call__(self, images):
        """Normalised images (B, S, S, 3) -> logits (B, width), float32."""
        x = conv(self.stem_width, 7, 2, self.dtype, name="conv1")(images.astype(self.dtype))
        x = nn.relu(BatchNorm(name="bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                x = Bottleneck(self.stem_width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")(x)
        logits = nn.Dense(self.width, name="fc")(x.astype(jnp.float32).mean((1, 2)))
        self.sow("intermediates", "logits", logits)
        return logits


def conv(channels: int, size: int, stride: int, dtype, *, name: str) -> nn.Conv:
    """A convolution without bias.  Its padding keeps height and width where `stride` is 1."""
    pad = size // 2
    return nn.Conv(
        channels, (size, size), stride, padding=((pad, pad), (pad, pad)), use_bias=False, dtype=dtype, name=name
    )

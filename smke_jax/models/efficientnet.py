"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) with ReLU6 and without squeeze-and-excitation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.efficientnet_blocks import blocks_of
from smke_jax.errors import UserError
from smke_jax.models.batch_norm import FixedNorm
from smke_jax.models.depthwise import depthwise

STEM = 32  # channels after the first convolution, in the whole family


class ConvNorm(nn.Module):
    """A convolution and its batch normalisation.  (B, H, W, C) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, channels).

    The normalisation is a factor and an offset for each channel.  The factor goes into the kernel, so that neither the
    forward nor the backward pass touches the feature map for it.  The padding is TensorFlow's "same": an odd pixel is
    added right and below.  With `kernel_size` 1 the kernel is a matrix (C, channels), otherwise (k, k, C, channels);
    of a `depthwise` one it is (k, k, 1, channels).
    """

    channels: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    norm_eps: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, inputs = self.kernel_size, 1 if self.depthwise else x.shape[-1]
        shape = (inputs, self.channels) if k == 1 else (k, k, inputs, self.channels)
        # By the number of outputs that an input reaches (He et al. 2015), as the family is trained.
        outputs = k * k if self.depthwise else k * k * self.channels
        kernel = self.param("kernel", nn.initializers.normal((2 / outputs) ** 0.5), shape)
        factor, offset = FixedNorm(self.norm_eps, name="norm")(self.channels)
        # Rounded before, too: then a kernel that is stored in `dtype` gives the same numbers.
        kernel = (kernel.astype(self.dtype) * factor).astype(self.dtype)
        return (self._convolve(x.astype(self.dtype), kernel) + offset).astype(self.dtype)

    def _convolve(self, x, kernel):
        if self.depthwise:
            return depthwise(x, kernel, self.stride)
        if self.kernel_size == 1:
            return x @ kernel
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise one, 1×1 one to few (MobileNetV2, Sandler et al. 2018).

    (B, H, W, C) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, channels).  A ReLU6 follows the first two.  With `expansion` 1 the
    first is left out.  Where the shape stays, the input is added; in training it stands alone for a random share
    `drop_path` of the images.
    """

    kernel_size: int
    stride: int
    expansion: int
    channels: int
    drop_path: float = 0.0
    norm_eps: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, deterministic: bool = True):
        conv = functools.partial(ConvNorm, norm_eps=self.norm_eps, dtype=self.dtype)
        y, hidden = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = nn.relu6(conv(hidden, name="expand")(y))
        y = nn.relu6(conv(hidden, self.kernel_size, self.stride, depthwise=True, name="depthwise")(y))
        y = conv(self.channels, name="project")(y)
        if x.shape != y.shape:
            return y
        # One random number for all of an image.
        return x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=deterministic)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite.  Its feature is the mean of the cells of its last feature map, of `width` channels.

    Lite0 to Lite4 have the multipliers (width, depth) (1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8) and were
    trained at 224, 240, 260, 280 and 300 pixels; other sizes work too.
    `num_classes` above 0 adds that classifier on the feature.
    In training the branch of block i of n is left out for a random share `drop_path` · i / n of the images.
    No gradient reaches the running statistics of the norms, which are parameters: see `FixedNorm`.
    It sows 'tokens' (B, N, width), the cells, row by row, whose mean is the feature, and a classifier's 'logits'
    (B, num_classes).  ValueError for images of another size than `image_size`.
    """

    image_size: int = 224
    width: int = 1280
    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    num_classes: int = 0
    drop_path: float = 0.0
    norm_eps: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @property
    def depth(self) -> int:
        """Layers: the blocks, and the last convolution."""
        return len(blocks_of(self.width_multiplier, self.depth_multiplier)) + 1

    @property
    def grid(self) -> int:
        """Cells of the last feature map along a side of the image."""
        size = self.image_size
        for stride in (2, *(block.stride for block in blocks_of(self.width_multiplier, self.depth_multiplier))):
            size = -(-size // stride)
        return size

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        """Normalised images (B, S, S, 3) -> feature (B, width), float32."""
        tokens = self.cells(images, deterministic=deterministic)
        self.sow("intermediates", "tokens", tokens)
        feature = tokens.mean(axis=1)
        if self.num_classes:
            self.sow("intermediates", "logits", nn.Dense(self.num_classes, name="fc")(feature))
        return feature

    def cells(self, images, *, deterministic: bool = True):
        """The cells of the last feature map, (B, N, width), float32.  It is called once, inside the compact method."""
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape[1:]}, this network takes ({size}, {size}, 3)")
        settings = {"norm_eps": self.norm_eps, "dtype": self.dtype}
        x = nn.relu6(ConvNorm(STEM, 3, 2, **settings, name="stem")(images))
        blocks = blocks_of(self.width_multiplier, self.depth_multiplier)
        for i, block in enumerate(blocks):
            sizes = block.kernel_size, block.stride, block.expansion, block.channels
            run = InvertedResidual(*sizes, self.drop_path * i / len(blocks), **settings, name=f"block_{i}")
            x = run(x, deterministic=deterministic)
            self.sow("intermediates", f"layer_{i + 1}", _cells(x))
        x = nn.relu6(ConvNorm(self.width, **settings, name="last")(x)).astype(jnp.float32)
        cells = _cells(x)
        self.sow("intermediates", f"layer_{self.depth}", cells)
        return cells


def _cells(x):
    """(B, H, W, C) -> (B, H · W, C), row by row."""
    return x.reshape(len(x), -1, x.shape[-1])


class EfficientNetLiteTower(EfficientNetLite):
    """The same as a student's image tower, without classifier: its tokens are the cells, and [CLS] is their mean."""

    @nn.compact
    def __call__(self, images, *, added=None, deterministic: bool = True):
        """Normalised images (B, S, S, 3) -> (B, 1 + N, width), float32.  UserError where `added` is given."""
        if added is not None:
            raise UserError("a convolutional tower has no tokens before its first block: set token_types_at='after'")
        tokens = self.cells(images, deterministic=deterministic)
        return jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)

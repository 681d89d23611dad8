"""Batch normalisation with fixed statistics, as the convolutional networks here have it."""

import flax.linen as nn
import jax

ZEROS, ONES = nn.initializers.zeros, nn.initializers.ones


class FixedNorm(nn.Module):
    """Batch normalisation at inference as the map x · factor + offset that it is.  C -> (factor (C,), offset (C,)).

    Its running statistics `mean` and `var` are parameters, and training keeps them as they are: their gradients are 0,
    and as vectors they have no weight decay.  `scale` and `bias` are trained.  So no row of a batch depends on another.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, channels: int):
        scale, bias, mean, var = (
            self.param(name, init, (channels,))
            for name, init in (("scale", ONES), ("bias", ZEROS), ("mean", ZEROS), ("var", ONES))
        )
        mean, var = jax.lax.stop_gradient((mean, var))
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return factor, bias - mean * factor


class BatchNorm(FixedNorm):
    """`FixedNorm` applied to x.  (…, C) -> (…, C), in the dtype of x."""

    @nn.compact
    def __call__(self, x):
        factor, offset = super().__call__(x.shape[-1])
        return (x * factor + offset).astype(x.dtype)

"""A multilayer perceptron."""

import flax.linen as nn

from smke_jax.models.layers import Dense, gelu, kernel_init


class Perceptron(nn.Module):
    """Linear layers of these widths, with an exact GELU between them.  (…, D) -> (…, widths[-1]), float32."""

    widths: tuple[int, ...]
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = gelu(x) if i else x
            x = Dense(width, kernel_init=kernel_init(self.init_std), name=f"fc{i + 1}")(x)
        return x

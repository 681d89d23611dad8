"""The head of masked image modelling: it says what a hidden patch holds (spec B.1, B.9)."""

from smke_jax.errors import UserError, nearest
from smke_jax.models.layers import kernel_init
from smke_jax.networks.base import Network
from smke_jax.passes.predict_patches import TARGETS, predict_patches
from smke_jax.perceptron import init_layers

INIT_STD = 0.02


def patch_predictor(
    *,
    of: str = "masked_image/tokens",
    target: str = "hog",
    image: str = "image",
    average: str = "teacher",
    hidden: tuple[int, ...] = (),
    makes: str = "mim",
) -> Network:
    """'<makes>/prediction' and '<makes>/target' (B, N, K), and '<makes>/error' (B, N), the error of every patch.

    of:     representations (B, N, D) of all patches of an image of which some are hidden, those of an image tower or
            those of a fusion with words
    target: hog | pixel | pixel_norm | ema.  Histograms of oriented gradients by their squared error (MaskFeat), pixels
            by their absolute error (SimMIM), pixels normalised per patch by their squared error (MAE), and by their
            absolute error the patches of the whole image in the moving average of the image tower (MAMO), each
            normalised over its channels
    image:  what the image tower makes, in whose arrays the target stands; average: the name of the network that
            averages it, for `ema`
    hidden: channels of the layers before the last one; () is a linear head, as in MaskFeat and SimMIM
    """
    if target not in TARGETS:
        raise UserError(f"target is {target!r}{nearest(target, list(TARGETS))}: give one of {', '.join(TARGETS)}")
    kind = TARGETS[target]
    array = kind.array.format(image=image, average=average)

    def init(key, specs):
        for name in (of, array):
            if name not in specs:
                raise UserError(f"nothing makes {name}: name a network in config.networks that does")
        patches, wanted = specs[of].shape[1], specs[array].shape[1]
        if patches != wanted:
            raise UserError(f"{of} has {patches} patches and {array} {wanted}: set `of` to what is made of that image")
        return init_layers(key, (specs[of].shape[-1], *hidden, specs[array].shape[-1]), kernel_init(INIT_STD))

    def forward(name, specs):
        return (predict_patches(name, of=of, target=kind, array=array, makes=makes),)

    return Network(init, forward)

"""A codebook of images: the teacher's [CLS] is rebuilt from one of 1024 codes and a tenth of the image's patches.

    smke train --config=configs/image_vq.py --workdir=runs/image_vq --config.task.data=DATA

The paper's setting: BEiT v2's normalised [CLS] goes through two layers (tanh) to 16 channels of length 1, to the code
with the largest cosine, and up again; a decoder of one BEiT block sees it beside 19 of the 196 patches, the others
masked.  Loss: 1 - cosine of what it says and the [CLS], and the distance of the 16 channels from their code.  Codes
follow what they stand for by a moving average (0.99) from k-means on the first global batch.  10 epochs of ImageNet at
512 on two GPUs, peak learning rate 1e-3.  The thesis also trains 8 channels:
`--config.networks.autoencoder.code_dim=8`.

The first step runs on random codes, at the learning rate 0 of the warm-up; k-means of 512 latents into 1024 codes then
takes each of them twice.  The decoder's mask token and table of
relative positions are learned; the thesis' code takes BEiT's token and adds BEiT's table to its own.  Codes that get no
images stay as they are; `--config.terms.image_vq.restart=True` gives them one that the others describe badly.

Published: no figures but the use of the codes on ImageNet's validation set: of 8 channels all from early on, of 16 at
the end of training; of 32 channels they collapsed.
Measured here: see configs/README.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import image_vq


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run(total_steps=25_020, epoch=2_502)
    c.task = form.images(crop_scale=(0.5, 1.0))
    c.networks.teacher = form.teacher()
    c.networks.autoencoder = form.autoencoder(num_codes=1024, code_dim=16, masked=0.9)
    c.terms.image_vq = image_vq(decay=0.99, commitment=1.0, restart=False)
    if form.name != "flickr8k":
        c.optimizer.learning_rate = 5e-4
    return c

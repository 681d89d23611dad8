"""Public image-text datasets to one random-access format: one file per dataset.

A reader is a function (source folder, Options, Skips) -> {split: items}; it checks the layout at once and
may yield the items lazily. To add a dataset, write such a function and name it here.
"""

from smke_jax.data.prepare.flickr8k import flickr8k

PREPARERS = {
    "flickr8k": flickr8k,
}

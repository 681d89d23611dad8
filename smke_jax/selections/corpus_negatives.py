"""Hard negatives from a whole corpus: the embeddings of other images that each query finds nearest (spec A.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.limits import AT_LEAST_0, AT_LEAST_1
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.nearest import nearest_foreign
from smke_jax.selections.base import Selection

NAME = "corpus_negatives"


def corpus_negatives(
    *,
    query: str = "image/out",
    of: str = "teacher_text/out",
    corpus: str = "corpus",
    k: int = 16,
    block: int = 0,
    makes: str = "hard",
) -> Selection:
    """'<makes>/negatives' (B, k, D): the `k` rows of the corpus nearest to every row's `query`, of other images.

    query:  the representation (B, D) that looks
    of:     what the asset `corpus` keeps of all captions, or of all images; the rows are of length 1
    block:  rows of the corpus that are compared at once on each device; 0 takes as many as fit in 32 MiB, with
            their products with all queries in another 32 MiB
    The search is exact.  All captions of the query's image are left out, and of images the query's own.
    Source: MoTIS, which looks in a Faiss index.
    """
    AT_LEAST_1.check("k", k)
    AT_LEAST_0.check("block", block)
    asset = f"assets/{corpus}"

    def run(state, arrays, scope):
        kept = state[asset]
        queries = normalise(arrays[query])
        found, _ = nearest_foreign(queries, arrays["id"], kept[of], kept["id"], k, block=block, scope=scope)
        return {f"{makes}/negatives": found}

    def shapes(arrays):
        return {f"{makes}/negatives": jax.ShapeDtypeStruct((k, arrays[query].shape[-1]), jnp.float32)}

    def check(task, numbers, assets) -> None:
        kept = assets[corpus]
        if not kept.whole:
            raise UserError(
                f"config.selections: {NAME} searches the asset {corpus!r}, which keeps rows for batches alone: "
                f"make it config.assets.{corpus} = corpus(of={of!r})"
            )
        if of not in kept.provides:
            raise UserError(
                f"config.selections: {NAME} looks for {of}, and the asset {corpus!r} keeps {', '.join(kept.provides)}: "
                f"set of={kept.provides[0]!r}"
            )
        of_images = numbers[corpus] == "id"  # else of captions
        if of_images and "num_images" not in task.facts:
            raise UserError(
                f"config.selections: {NAME} tells rows apart by their images, and this task has none: "
                "take a task of images, or of pairs"
            )
        split = task.split(task.train)
        owners = np.arange(task.facts["num_images"]) if of_images else split.facts["caption_image"]
        kind = "images" if of_images else "captions"
        most = int(np.bincount(owners).max())
        where = f"config.selections: {NAME} takes k={k} negatives from {len(owners)} {kind} of {split.name}"
        if most == len(owners):
            raise UserError(f"{where}, which all belong to one image: there is no negative among them")
        if len(owners) - most < k:
            raise UserError(f"{where}, of which {most} belong to one image: set k={len(owners) - most} or less")

    return Selection(NAME, (query, "id"), (f"{makes}/negatives",), run, (asset,), shapes, check)

"""Embeddings of a whole split: padded, fixed-size batches on all devices, trimmed to the exact count."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import jax
import numpy as np

from smke_jax.data.pipeline import pixels
from smke_jax.data.progress import Progress
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.data.transforms import squash
from smke_jax.parallel.mesh import put_batch, replicated


def make_encoder(run: Callable, mesh) -> Callable:
    """`Pass.run` -> jitted (params, batch) -> representations, whole on every device."""
    return jax.jit(lambda params, batch: run(params, batch, None, False), out_shardings=replicated(mesh))


def embed_images(
    encode: Callable, params, source, *, name: str, image_size: int, batch_size: int, mesh, threads: int = 2
) -> np.ndarray:
    """Representation `name`, such as 'image/out', of every image in order -> (N, D) fp32."""
    dataset = grain.MapDataset.range(len(source)).map(lambda i: squash(pixels(source[i]), image_size))
    images = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batch_size)))
    batches = ({"image": np.stack(rows)} for rows in chunks(images, batch_size))
    return embed_batches(encode, params, batches, name, len(source), batch_size, mesh)


def embed_texts(
    encode: Callable,
    params,
    captions: Sequence[str],
    tokenizer: Tokenizer,
    *,
    name: str,
    max_length: int,
    batch_size: int,
    mesh,
) -> np.ndarray:
    """Representation `name`, such as 'text/out', of every caption in order -> (M, D) fp32."""

    def batches():
        for rows in chunks(iter(captions), batch_size):
            ids, mask = tokenizer.encode(rows, max_length)
            yield {"text": ids, "text_mask": mask}

    return embed_batches(encode, params, batches(), name, len(captions), batch_size, mesh)


def chunks(items: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items, the last of what is left."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def embed_batches(
    encode: Callable, params, batches: Iterable[dict], name: str, count: int, batch_size: int, mesh
) -> np.ndarray:
    """Representation `name` of all rows of `batches`, `count` in total, none of more than `batch_size`.

    Shows its progress where it takes long.

    Pads the last batch by repeating its last row: one compiled shape, and no row that could make a NaN.
    """
    first, share = jax.process_index(), jax.process_count()
    rows, progress = [], Progress(f"embedding {name}", count, every=10.0)
    for i, batch in enumerate(batches):
        length = len(next(iter(batch.values())))
        padded = {k: np.concatenate([x, np.repeat(x[-1:], batch_size - length, axis=0)]) for k, x in batch.items()}
        local = batch_size // share
        mine = {k: x[first * local : (first + 1) * local] for k, x in padded.items()}
        rows.append(np.asarray(encode(params, put_batch(mine, mesh))[name])[:length])
        if first == 0:
            progress.update(i * batch_size + length)
    embeddings = np.concatenate(rows)
    assert len(embeddings) == count, f"embedded {len(embeddings)} of {count} examples"
    return embeddings

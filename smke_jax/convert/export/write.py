"""A trained network -> a directory that others can use, with a model card; checked before it is there."""

from collections.abc import Callable
from pathlib import Path

from smke_jax.convert.export import FORMATS, format_of
from smke_jax.convert.export.base import Network
from smke_jax.convert.export.card import likeness_lines, model_card
from smke_jax.convert.export.check import BARS, Likeness, Samples, compare, embed, length_of, make_batch
from smke_jax.convert.params_file import new_directory
from smke_jax.errors import UserError


def write(
    directory: Path, network: Network, samples: Samples, *, format: str, dtype: str = "float32",
    retrieval: Callable[[Path], str] | None = None,
) -> dict[str, Likeness]:  # fmt: skip
    """Writes `network` in one of FORMATS with weights of `dtype`, a key of BARS, whole or not at all.

    retrieval: (what was written) -> Markdown of what it retrieves, for its card
    Returns how like its embeddings of `samples`, from the files written, are to the network's own.
    Raises UserError where they are less like than BARS demands, where the network does not fit the format, and where
    there is no room.
    """
    form, description = format_of(format), network.description
    able = [name for name in FORMATS if not (types := format_of(name).types) or description["type"] in types]
    if format not in able:
        raise UserError(
            f"this run trained a model of type {description['type']}, and --format={format} is for models of type "
            f"{' or '.join(form.types)}: use {' or '.join(able)}"
        )
    if dtype not in form.dtypes:
        raise UserError(f"--dtype={dtype} is for --format=flax: give {', '.join(form.dtypes)} with --format={format}")
    batch = make_batch(samples, network.tokenizer, length_of(description))
    with new_directory(directory) as partial:
        form.write(partial, network, dtype)
        likeness = compare(embed(description, network.params, batch), form.embed(partial, batch))
        # Written so that NaN is refused too.
        if not all(x.cosine >= BARS[dtype] for x in likeness.values()):
            lines = "\n".join(likeness_lines(likeness, samples, dtype))
            raise UserError(f"{directory} was not written: it would not embed as the network it is made from\n{lines}")
        card = model_card(network, format, dtype, likeness, samples)
        if retrieval is not None:
            card += f"\n## Retrieval as exported\n\n{retrieval(partial)}\n"
        (partial / "README.md").write_text(card, encoding="utf-8")
    return likeness

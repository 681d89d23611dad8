"""The model card: what the run's own record says, and nothing else."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

import smke_jax
from smke_jax.convert.export import FORMATS, format_of
from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.check import BARS, Likeness, Samples
from smke_jax.models.towers import TEXT_TOWERS

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
RECALLS = ("r1", "r5", "r10")


def model_card(network: Network, format: str, dtype: str, likeness: Mapping[str, Likeness], samples: Samples) -> str:
    """README.md of an export, in Markdown."""
    form, description, record = format_of(format), network.description, network.record
    kind, pairs = description["type"], "level" in description
    count = sum(x.size for x in jax.tree.leaves(network.params))
    header = ["---", *form.metadata.get(kind, ()), "tags:", *(f"- {tag}" for tag in _tags(kind, pairs)), "---"]
    about = (
        f"{_network(description)} {count:,} parameters, stored in {dtype}; step {record.step} of "
        f"{record.config['total_steps']}. Written by smke_jax {smke_jax.__version__}: {FORMATS[format]}."
    )
    sections = {
        "Use": form.usage.get(kind, form.usage.get("", "")).strip(),
        "Figures": _figures(record.figures),
        "Parity": "\n".join(likeness_lines(likeness, samples, dtype)),
        "Training": _training(record),
        "Data": _data(record),
        "Limits": _limits(pairs),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return "\n".join(header) + f"\n\n# {_title(description)}\n\n{about}\n\n{body}\n"


def _title(description: dict) -> str:
    if "level" in description:
        return "Image-text retrieval model"
    titles = {"quantizer": "Codebook of images", "classifier": "Image classifier"}
    kind = "Text" if description["type"] in TEXT_TOWERS else "Image"
    return titles.get(description["type"], f"{kind} encoder ({description['type']})")


def _network(description: dict) -> str:
    if description["type"] == "quantizer":
        return (
            f"{description['num_codes']} codes of {description['code_dim']} channels for the features of a teacher, "
            f"{description['width']} wide, and the two layers that take a feature to its code."
        )
    if description["type"] == "aligned":
        types = (f"`{name}` ({own['type']})" for name, own in description["networks"].items())
        return f"Networks that make one embedding together: {', '.join(types)}."
    if description["type"] in TEXT_TOWERS:
        return f"A text encoder: {description['depth']} layers of {description['width']} channels."
    image, text = description.get("image", description), description.get("text")
    sizes = f"images of {image['image_size']} px"
    if "patch_size" in image:
        sizes += f" in patches of {image['patch_size']}, {image['depth']} layers, {image['width']} wide"
    if "class_names" in description:
        return (
            f"A classifier of {len(description['class_names'])} classes on the mean of an encoder's patches: {sizes}."
        )
    if text is None:
        return f"An image encoder: {sizes}."
    captions = f"captions of up to {description['max_length']} tokens, {text['depth']} layers"
    if "fusion" in description:
        fusion = description["fusion"]
        return (
            f"Two towers with a fusion encoder: {sizes}; {captions}; {fusion['depth']} layers of the kind "
            f"`{fusion['type']}`, which say whether an image and a caption match."
        )
    shared = description["shared"]
    depth = shared.get("depth", 1)
    layers = "an MLP" if shared.get("type") == "mlp" else f"{depth} Transformer layer{'s' if depth > 1 else ''}"
    return f"A student network: {sizes}; {captions}; {layers} that both share."


def likeness_lines(likeness: Mapping[str, Likeness], samples: Samples, dtype: str) -> list[str]:
    """A table for people, which Markdown reads too."""
    return [
        f"Against the JAX model in fp32, on {samples.origin}, L2-normalised; allowed is a cosine of {BARS[dtype]} "
        f"with {dtype} weights.",
        "",
        *_table(
            ("representation", "smallest cosine", "largest difference"),
            ((name, f"{x.cosine:.7f}", f"{x.delta:.1e}") for name, x in likeness.items()),
        ),
    ]


def _tags(kind: str, pairs: bool) -> tuple[str, ...]:
    if kind in TEXT_TOWERS:
        return "smke", "feature-extraction"
    return ("smke", "image-text-retrieval", "feature-extraction") if pairs else ("smke", "image-feature-extraction")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [tuple(header), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines]


def _figures(figures: Mapping[str, dict]) -> str:
    """One part for each evaluation of the step that is exported."""
    if not figures:
        return "None were recorded for this step."
    parts = [
        f"`{name}`: {_retrieval(found) if set(DIRECTIONS) <= set(found) else _scalars(found)}"
        for name, found in figures.items()
    ]
    return "\n\n".join(parts)


def _scalars(found: dict) -> str:
    """The numbers in what an evaluation found, and the protocol that it names."""
    rows = [(f"`{key}`", f"{value:.4g}") for key, value in _numbers(found)]
    return "\n".join([f"{found.get('protocol', 'no protocol was recorded')}; measured in JAX.", "",
                      *_table(("figure", "value"), rows)])  # fmt: skip


def _numbers(found: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, value


def _retrieval(retrieval: dict) -> str:
    def cell(direction, key):
        value, interval = f"{retrieval[direction][key]:.2f}", retrieval.get("ci95")
        return value if not interval else "{} [{:.2f}, {:.2f}]".format(value, *interval[direction][key])

    rows = (
        (label, *(cell(direction, key) for key in RECALLS), f"{retrieval[direction]['median_rank']:.1f}")
        for direction, label in DIRECTIONS.items()
    )
    return "\n".join([
        f"{retrieval['protocol']}; {retrieval['n_images']} images, {retrieval['n_captions']} captions. "
        "Recall in percent, in brackets the 95 % interval over other images; measured in JAX.",
        "",
        *_table(("", "R@1", "R@5", "R@10", "median rank"), rows),
    ])  # fmt: skip


def _training(record: Record) -> str:
    run, config = record.run, record.config
    optimizer = config["optimizer"]
    scaled = f" at a batch of {optimizer['reference_batch']}" if optimizer["reference_batch"] else ""
    hours = "not recorded" if record.hours is None else (
        f"{record.hours:.2f}, from the logged examples per second; without start-up, evaluation and saving"
    )  # fmt: skip
    facts = {
        "command": f"`{' '.join(run['command'])}`",
        "started": run["started"],
        "steps and batch": f"{record.step} steps of {config['batch_size']}",
        "objectives": "; ".join(_part(name, part) for name, part in config["terms"].items()),
        "optimiser": f"{optimizer['name']}, learning rate {optimizer['learning_rate']}{scaled}, "
                     f"weight decay {optimizer['weight_decay']}",
        "networks": "; ".join(_network_part(name, part) for name, part in config["networks"].items()),
        "hours": hours,
        "hardware": f"{len(run['devices'])} × {run['devices'][0]}; {run['host']}",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }  # fmt: skip
    return "\n".join(_table(("", ""), facts.items()))


def _part(name: str, part: Mapping[str, Any]) -> str:
    """'`name`, field value, …' of what is set."""
    fields = (f"{key} {value}" for key, value in part.items() if value is not None and (key, value) != ("type", name))
    return ", ".join([f"`{name}`", *fields])


def _network_part(name: str, part: Mapping[str, Any]) -> str:
    """'`name`, a TYPE that starts from …'."""
    starts = {key: value for key, value in part.items() if key == "start" or key.endswith("_start")}
    files = {key: value for key, value in starts.items() if value != "random"}
    said = ", ".join(f"{key} {value}" for key, value in files.items()) or "start random"
    return f"`{name}`, {part['type']}, {said}"


def _data(record: Record) -> str:
    task, identity = record.config["task"], record.run["identity"]
    data = task.get("data") or task.get("source", task["type"])
    where = data if isinstance(data, str) else ", ".join(data)
    unit = f", by {task['unit']}" if "unit" in task else ""
    digests = _table(("what", "SHA-256, as the run recorded it"), ((k, f"`{v}`") for k, v in identity.items()))
    return "\n".join([f"Split `{task.get('split', 'train')}` of `{where}`{unit}.", "", *digests])


def _limits(pairs: bool) -> str:
    known = [
        "The figures above are for that data and protocol alone; nothing else was measured.",
        "It was not tested for bias between groups of people, nor for use in decisions about people.",
        "No licence is stated here: it depends on the data and pretrained weights that it was made from.",
    ]
    if pairs:
        known.insert(1, "It knows the language and the subjects of its training captions; other texts get embeddings "
                        "too, without meaning.")  # fmt: skip
    return "\n".join(f"- {line}" for line in known)

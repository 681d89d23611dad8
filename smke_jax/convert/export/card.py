"""The model card: what the run's own record says, and nothing else."""

from collections.abc import Iterable, Mapping

import jax

import smke_jax
from smke_jax.convert.export.base import Format, Network, Record
from smke_jax.convert.export.check import BARS, Likeness, Samples

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
RECALLS = ("r1", "r5", "r10")


def model_card(network: Network, form: Format, dtype: str, likeness: Mapping[str, Likeness], samples: Samples) -> str:
    """README.md of an export, in Markdown."""
    description, record = network.description, network.record
    student = description["type"] == "student"
    title = "Image-text retrieval model" if student else f"Image encoder ({description['type']})"
    count = sum(x.size for x in jax.tree.leaves(network.params))
    header = ["---", *form.metadata, "tags:", *(f"- {tag}" for tag in _tags(student)), "---"]
    about = (
        f"{_network(description)} {count:,} parameters, stored in {dtype}; step {record.step} of "
        f"{record.config['total_steps']}. Written by smke_jax {smke_jax.__version__}: {form.summary}."
    )
    sections = {
        "Use": form.usage.strip(),
        "Figures": _figures(record.retrieval) if student else "No figures: it was trained from images alone.",
        "Parity": "\n".join(likeness_lines(likeness, samples, dtype)),
        "Training": _training(record),
        "Data": _data(record),
        "Limits": _limits(student),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return "\n".join(header) + f"\n\n# {title}\n\n{about}\n\n{body}\n"


def _network(description: dict) -> str:
    image, text = description.get("image", description), description.get("text")
    sizes = f"images of {image['image_size']} px in patches of {image['patch_size']}, {image['depth']} layers"
    if text is None:
        return f"A Transformer, {image['width']} wide: {sizes}."
    return (
        f"The student network of S-SMKE, {image['width']} wide: {sizes}; captions of up to {description['max_length']} "
        f"tokens, {text['depth']} layers; one layer that both share."
    )


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


def _tags(student: bool) -> tuple[str, ...]:
    return ("smke", "image-text-retrieval", "feature-extraction") if student else ("smke", "image-feature-extraction")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [tuple(header), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines]


def _figures(retrieval: dict | None) -> str:
    if retrieval is None:
        return "None were recorded for this step."

    def cell(direction, key):
        value, interval = f"{retrieval[direction][key]:.2f}", retrieval.get("ci95")
        return value if not interval else "{} [{:.2f}, {:.2f}]".format(value, *interval[direction][key])

    rows = (
        (label, *(cell(direction, key) for key in RECALLS), f"{retrieval[direction]['median_rank']:.1f}")
        for direction, label in DIRECTIONS.items()
    )
    return "\n".join([
        f"Protocol: {retrieval['protocol']}; {retrieval['n_images']} images, {retrieval['n_captions']} captions. "
        "Recall in percent, in brackets the 95 % interval over other images; measured in JAX.",
        "",
        *_table(("", "R@1", "R@5", "R@10", "median rank"), rows),
    ])  # fmt: skip


def _training(record: Record) -> str:
    run, config = record.run, record.config
    terms = (", ".join([f"`{name}`", *(f"{k} {v}" for k, v in args.items())]) for name, args in config["terms"].items())
    optimizer, whole = config["optimizer"], config["student"].get("init", "random")
    inits = [f"{tower}: {config['student'][tower]['init']}" for tower in ("image", "text")]
    scaled = f" at a batch of {optimizer['reference_batch']}" if optimizer["reference_batch"] else ""
    uses_teacher, is_student = "teacher" in config["passes"], "student" in config["passes"]
    hours = "not recorded" if record.hours is None else (
        f"{record.hours:.2f}, from the logged examples per second; without start-up, evaluation and saving"
    )  # fmt: skip
    facts = {
        "command": f"`{' '.join(run['command'])}`",
        "started": run["started"],
        "steps and batch": f"{record.step} steps of {config['batch_size']}",
        "objectives": "; ".join(terms),
        "optimiser": f"{optimizer['name']}, learning rate {optimizer['learning_rate']}{scaled}, "
                     f"weight decay {optimizer['weight_decay']}",
        **({"teacher": f"{config['teacher']['type']}, {config['teacher']['checkpoint']}"} if uses_teacher else {}),
        **({"starts from": whole if whole != "random" else ", ".join(inits)} if is_student else {}),
        "hours": hours,
        "hardware": f"{len(run['devices'])} × {run['devices'][0]}; {run['host']}",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }  # fmt: skip
    return "\n".join(_table(("", ""), facts.items()))


def _data(record: Record) -> str:
    data, identity = record.config["data"], record.run["identity"]
    where = data["dir"] or data["source"]
    digests = _table(("what", "SHA-256, as the run recorded it"), ((k, f"`{v}`") for k, v in identity.items()))
    return "\n".join([f"Split `{data['split']}` of `{where}`, by {data['unit']}.", "", *digests])


def _limits(student: bool) -> str:
    known = [
        "The figures above are for that data and protocol alone; nothing else was measured.",
        "It was not tested for bias between groups of people, nor for use in decisions about people.",
        "No licence is stated here: it depends on the data and pretrained weights that it was made from.",
    ]
    if student:
        known.insert(1, "It knows the language and the subjects of its training captions; other texts get embeddings "
                        "too, without meaning.")  # fmt: skip
    return "\n".join(f"- {line}" for line in known)

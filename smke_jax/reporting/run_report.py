"""The report of one run, from the files in its directory: as one HTML page and as Markdown."""

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.parallel.devices import DEVICES
from smke_jax.reporting import html
from smke_jax.reporting.classes import (
    Confusion,
    confusion_rows,
    confusion_section,
    confusion_title,
    predictions_sections,
    read_confusions,
)
from smke_jax.reporting.evaluations import HIDDEN, REBUILT, WORDS, Evaluation, read_evaluations, read_examples
from smke_jax.reporting.evaluator_tables import Table, evaluation_table, evaluator_section
from smke_jax.reporting.markdown import markdown_table
from smke_jax.reporting.masked_words import masked_words_section
from smke_jax.reporting.metrics_log import MetricsLog, read_metrics, series, training_seconds
from smke_jax.reporting.reconstructions import reconstructions_section
from smke_jax.reporting.report import (
    DIRECTIONS,
    curves_section,
    facts_section,
    image_to_text_section,
    text_to_image_section,
    whole_page,
)
from smke_jax.reporting.run_file import read_run
from smke_jax.reporting.sentences import sample_tables
from smke_jax.reporting.word_patches import words_section

HTML, MARKDOWN = "report.html", "report.md"
COUNTED = ("images", "captions", "rows", "tokens")  # of the data that is trained on
LOGGED = ("loss", "grad_norm", "update_norm", "learning_rate", "examples_per_second", "data_wait", "peak_memory_gib")


@dataclass
class RunFiles:
    """What is in the directory of a run; `problems` are lines about what cannot be read."""

    path: Path
    record: Mapping[str, Any]
    rows: MetricsLog
    evaluations: Sequence[Evaluation]  # newest first
    examples: Mapping[str, Mapping]
    confusions: Mapping[str, tuple[int, Confusion]]
    problems: list[str] = field(default_factory=list)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.record["config"]

    @property
    def step(self) -> int:
        return int(max([*series(self.rows, "loss")[0], *(x.step for x in self.evaluations)], default=0))

    @property
    def total_steps(self) -> int:
        return self.config["config.total_steps"]

    @property
    def devices(self) -> int:
        return self.config["config.num_devices"] or len(self.record["devices"])

    @functools.cached_property
    def hours(self) -> float:
        """Of the training steps alone."""
        return float(training_seconds(self.rows, self.config["config.batch_size"]).sum()) / 3600

    @property
    def rate(self) -> str:
        """Median of the examples per second; '' where none are logged."""
        rates = sorted(series(self.rows, "examples_per_second")[1])
        return f"{rates[len(rates) // 2]:,.0f}" if rates else ""

    def evaluators(self) -> dict[str, list[Evaluation]]:
        """{evaluator: what it found, newest first}."""
        found: dict[str, list[Evaluation]] = {}
        for evaluation in self.evaluations:
            found.setdefault(evaluation.name, []).append(evaluation)
        return dict(sorted(found.items()))


def read_files(workdir: Path) -> RunFiles:
    """What `workdir` says of its run.  Raises UserError where it is no run."""
    record, problems = read_run(workdir), []
    try:
        rows = read_metrics(workdir / "metrics.jsonl")
    except UserError as error:
        rows = MetricsLog()
        problems.append(str(error))
    evaluations = list(read_evaluations(workdir / "evals", problems))
    examples, confused = read_examples(workdir / "evals", problems), read_confusions(evaluations, problems)
    return RunFiles(workdir, record, rows, evaluations, examples, confused, problems)


def write_run_report(workdir: Path, departures: Mapping[str, tuple[Any, Any]]) -> list[Path]:
    """Writes report.html and report.md into the directory of a run, each whole or not at all; returns both.

    departures: {'config.a.b': (value, default)}, how the config differs from `base()` and the defaults of its parts
    """
    run = read_files(workdir)
    tables = [what_was_trained(run), data_table(run), config_table(departures), cost_table(run), logged_table(run)]
    newest = [found[0] for found in run.evaluators().values()]
    tables += [Table(*found, said=True) for found in sample_tables(newest, run.problems)]
    tables = [table for table in tables if table.rows]
    return [
        atomic.write_text(workdir / HTML, as_html(run, tables)),
        atomic.write_text(workdir / MARKDOWN, as_markdown(run, tables)),
    ]


def as_html(run: RunFiles, tables: Sequence[Table]) -> str:
    """The page."""
    evaluated = [evaluator_section(name, found) for name, found in run.evaluators().items()]
    evaluated += [confusion_section(name, step, found) for name, (step, found) in run.confusions.items()]
    shown = []
    for name, examples in run.examples.items():
        at = f" ({name}, step {examples['step']})"
        shown.append(text_to_image_section(examples["text_to_image"], at))
        shown.append(image_to_text_section(examples["image_to_text"], at))
        shown += [*predictions_sections(examples, at), words_section(examples[WORDS], at)]
        shown.append(reconstructions_section(examples[REBUILT], at))
        shown.append(masked_words_section(examples[HIDDEN], at))
    of_tables = [html.section(x.title, html.table(x.heads, x.rows, said=x.said), note=x.note) for x in tables]
    sections = {
        "evaluations": "\n".join(evaluated),
        "curves of the training": curves_section(run.rows),
        "examples of what is found": "\n".join(filter(None, shown)),
        "tables": "\n".join(of_tables),
        "facts": facts_section(facts(run), command(run)),
    }
    return whole_page(f"Run {run.path.resolve().name}", summary(run), headline(run), sections)


def as_markdown(run: RunFiles, tables: Sequence[Table]) -> str:
    """The same without pictures."""
    lines = [f"# Run {run.path.resolve().name}", "", *summary(run), ""]
    lines += [f"- {label}: {value}" for label, value in headline(run)]
    every = [evaluation_table(name, found) for name, found in run.evaluators().items()] + list(tables)
    for table in every:
        lines += ["", f"## {table.title}", "", markdown_table(table.heads, table.rows)]
        lines += ["", table.note] if table.note else []
    for name, (step, found) in run.confusions.items():
        lines += ["", f"## {confusion_title(name, step)}", "", markdown_table(*confusion_rows(found))]
    for name, examples in ((k, x) for k, x in run.examples.items() if x["text_to_image"]):
        lines += ["", f"## Captions and the images found for them ({name}, step {examples['step']})", ""]
        for caption, found in examples["text_to_image"]:
            lines.append(f"- {''.join('✓' if right else '✗' for _, right in found)} {' '.join(caption.split())}")
    lines += ["", "## Facts", "", *(f"- {key}: {value}" for key, value in facts(run).items())]
    lines += ["", "```", command(run), "```"]
    # A caption may carry lone surrogates, which UTF-8 cannot hold.
    return ("\n".join(lines) + "\n").encode("utf-8", "replace").decode("utf-8")


def summary(run: RunFiles) -> list[str]:
    """Plain sentences: how far it is, of what it learns."""
    done = run.step >= run.total_steps
    first = f"Step {run.step:,} of {run.total_steps:,}{', finished' if done else ', not finished'}."
    terms = [key.split(".")[2] for key in run.config if key.startswith("config.terms.") and key.count(".") >= 3]
    second = f"Losses: {', '.join(dict.fromkeys(terms))}." if terms else ""
    trained = [x for x in run.record.get("data", ()) if x["split"] == run.config.get("config.task.split", "train")]
    third = "; ".join(f"{_counted(x)} of {x['data']}" for x in trained)
    return [*filter(None, (first, second, third and f"Trained on {third}.")), *run.problems]


def _counted(data: Mapping[str, Any]) -> str:
    """'6,000 images with 30,000 captions', '1,200 images in 5 classes', or '1,381 rows with 242,863 tokens'."""
    if "classes" in data:
        return f"{data['images']:,} images in {data['classes']:,} classes"
    return " with ".join(f"{data[what]:,} {what}" for what in COUNTED if what in data)


def headline(run: RunFiles) -> list[tuple[str, str]]:
    """(label, value) of the newest figures, the speed and the cost."""
    tiles = []
    for name, (newest, *_) in run.evaluators().items():
        if newest.has_recalls:
            tiles += [(f"R@1 {DIRECTIONS[d]}", f"{newest.record[d]['r1']:.1f} %") for d in DIRECTIONS]
        else:
            tiles += [(f"{name} {key}", f"{value:.4g}") for key, value in list(newest.numbers().items())[:2]]
    if run.rate:
        tiles.append(("examples per second, median", run.rate))
        tiles.append((f"device-hours on {run.devices} × {run.record['devices'][0]}", f"{run.hours * run.devices:.2f}"))
    if (dollars := cost(run)) is not None:
        tiles.append(("so far, at list price", f"${dollars:,.2f}"))
    return tiles


def cost(run: RunFiles) -> float | None:
    """US dollars of the training so far at the prices of `smke plan`; None for devices without one, and for CPUs."""
    device = next((x for x in DEVICES.values() if x.kind == run.record["devices"][0] and x.kind != "cpu"), None)
    return None if device is None else run.hours * run.devices * device.price


def what_was_trained(run: RunFiles) -> Table:
    """Networks and losses, with what they start from and their weights."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in run.config.items():
        if key.startswith(("config.networks.", "config.terms.")):
            _, section, name, rest = key.split(".", 3)
            parts.setdefault(f"{section} {name}", {})[rest] = value
    rows = []
    for name, fields in parts.items():
        section, own = name.split(" ", 1)
        starts = [f"{key.replace('_', ' ')} {x}" for key, x in fields.items() if key.endswith("start") and x]
        weight = f"weight {fields.get('weight', 1.0):g}" if section == "terms" else ""
        final = fields.get("final_weight")
        weight += f" to {final:g}" if final is not None else ""
        kind = fields.get("type", own)
        of = "; ".join(filter(None, [*starts, weight]))
        rows.append(("network" if section == "networks" else "loss", own, kind, of))
    return Table("What was trained", ("", "name", "part", "of"), rows, said=True)


def data_table(run: RunFiles) -> Table:
    """The data sets with their counts; skipped are rows that `smke prepare` could not use."""
    counts = run.record.get("data", ())
    names = list(dict.fromkeys(key for x in counts for key in x if key not in ("split", "data")))
    rows = [[f"{x['data']}, {x['split']}", *(_count(x.get(name)) for name in names)] for x in counts]
    damaged = series(run.rows, "damaged_rows")[1]
    note = f"{int(damaged[-1]):,} rows could not be read while training and were replaced." if damaged else ""
    return Table("Data", ("data, split", *names), rows, note)


def config_table(departures: Mapping[str, tuple[Any, Any]]) -> Table:
    """Where the config differs from the defaults."""
    rows = [(key.removeprefix("config."), *map(value_text, values)) for key, values in departures.items()]
    return Table(
        "Config", ("field", "value", "default"), rows, said=True, note="The fields that differ from the defaults."
    )


def cost_table(run: RunFiles) -> Table:
    """What the run has taken so far."""
    steps, batch = run.step, run.config["config.batch_size"]
    waits = series(run.rows, "data_wait")[1]
    memory, dollars = series(run.rows, "peak_memory_gib")[1], cost(run)
    rows = [("steps", f"{steps:,} of {run.total_steps:,}"), ("examples", f"{steps * batch:,}")]
    if run.rate:
        rows.append(("hours of training steps", f"{run.hours:.2f}"))
        rows.append(("device-hours", f"{run.hours * run.devices:.2f}"))
        rows.append(("examples per second, median", run.rate))
    if waits:
        rows.append(("time spent waiting for data, mean", f"{100 * sum(waits) / len(waits):.1f} %"))
    if memory:
        rows.append(("peak memory", f"{max(memory):.2f} GiB"))
    if dollars is not None:
        rows.append(("US dollars at list price", f"{dollars:,.2f}"))
    note = "Without start-up, evaluation and saving."
    return Table("Cost so far", ("", "of this run"), rows, note)


def logged_table(run: RunFiles) -> Table:
    """The first and the last of what was logged, for readers without the pictures."""
    spread = sorted({key for row in run.rows for key in row if key.startswith("embedding_std/")})
    keys = list(dict.fromkeys([*LOGGED, *(k for row in run.rows for k in row if _is_term(k)), *spread]))
    found = [(key, series(run.rows, key)[1]) for key in keys]
    rows = [(key, f"{values[0]:.4g}", f"{values[-1]:.4g}") for key, values in found if values]
    return Table("Logged", ("", "first", "last"), rows)


def _is_term(key: str) -> bool:
    return not key.startswith("eval/") and (key.endswith("/loss") or "logit_scale" in key)


def facts(run: RunFiles) -> dict[str, str]:
    """Where and with what it was computed."""
    record = run.record
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    said = {
        "started": record.get("started"),
        "devices": f"{run.devices} × {record['devices'][0]}",
        "host": record.get("host"),
        "commit": record.get("commit"),
        "versions": versions,
        **{f"digest of {what}": digest for what, digest in record.get("identity", {}).items()},
    }
    return {key: value for key, value in said.items() if value}


def command(run: RunFiles) -> str:
    """The command that started it, as a shell reads it."""
    return shlex.join(run.record.get("command", ()))


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def value_text(value: Any) -> str:
    """A value of a config, for a table."""
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None or value == "" else str(value)

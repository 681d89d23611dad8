"""What the evaluators of a run found at each step: as a table, as a section of a page, and as rows of curves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smke_jax.reporting import html, plots
from smke_jax.reporting.evaluations import RECALLS, Evaluation
from smke_jax.reporting.report import DIRECTIONS, Recall, drawings, recall_section

MOST_STEPS = 8  # of an evaluator in its table
MOST_LINES = 6  # in a picture


class Table(NamedTuple):
    """A table of a report; its cells are text.  `said` where they are no numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    said: bool = False


def evaluation_table(name: str, found: Sequence[Evaluation]) -> Table:
    """What one evaluator found at each step, newest first, with 95 % intervals where it says them."""
    chosen = _spread_out(found)
    title, protocol = f"Evaluator {name}", chosen[0].record.get("protocol", "")
    if chosen[0].has_recalls:
        heads = [f"{DIRECTIONS[d]} R@{key[1:]}" for d, key in RECALLS]
        rows = [[str(x.step), *(_with_interval(x.record, d, key) for d, key in RECALLS)] for x in chosen]
        return Table(title, ("step", *heads), rows, f"Percent, with 95 % bootstrap intervals. {protocol}".strip())
    keys = list(chosen[0].numbers())
    rows = [[str(x.step), *(_number(x, key) for key in keys)] for x in chosen]
    return Table(title, ("step", *keys), rows, protocol if isinstance(protocol, str) else "")


def _number(evaluation: Evaluation, key: str) -> str:
    if key not in evaluation.numbers():
        return "–"
    intervals, value = evaluation.record.get("ci95"), f"{evaluation.numbers()[key]:.4g}"
    if not isinstance(intervals, Mapping) or not isinstance(intervals.get(key), list):
        return value
    return f"{value} ({' to '.join(f'{x:.1f}' for x in intervals[key])})"


def _with_interval(record: Mapping[str, Any], direction: str, key: str) -> str:
    value = f"{record[direction][key]:.1f}"
    if not record.get("ci95"):
        return value
    low, high = record["ci95"][direction][key]
    return f"{value} ({low:.1f} to {high:.1f})"


def evaluator_section(name: str, found: Sequence[Evaluation]) -> str:
    """The same as HTML, with a curve of every figure."""
    rows = [curve_row(evaluation) for evaluation in found]
    if found[0].has_recalls:
        recalls = [Recall(f"step {x.step:,}", x.record) for x in _spread_out(found)]
        recalls[1:] = [x._replace(metrics=_other_protocol(x.metrics, recalls[0].metrics)) for x in recalls[1:]]
        drawn = [
            (plots.recall_figure(rows, d), f"Recall of {title} against the step, with 95 % intervals")
            for d, title in DIRECTIONS.items()
        ]
        section = recall_section(f"Evaluator {name}", recalls, drawings(drawn, f"evaluator-{_word(name)}-"))
        return section + reranked_section(name, found[0])
    table = evaluation_table(name, found)
    drawn = [
        (plots.evaluation_figure(rows, labels, group), f"{group} against the step")
        for group, labels in _groups(name, found[0]).items()
    ]
    figures = drawings(drawn, f"evaluator-{_word(name)}-")
    return html.section(table.title, html.table(table.heads, table.rows), figures, note=table.note)


def reranked_section(name: str, evaluation: Evaluation) -> str:
    """Of an evaluator that orders the best k of each query anew: the first stage and every k; '' of any other."""
    record = evaluation.record
    if "reranked" not in record:
        return ""
    stages = {"first stage": record["first_stage"]}
    stages |= {f"the best {k} ordered anew": found for k, found in record["reranked"].items()}
    recalls = [
        Recall(what, {d: found[d] for d in DIRECTIONS} | {"ci95": found["ci95"]}) for what, found in stages.items()
    ]
    return recall_section(f"Evaluator {name}: both stages", recalls)


def _other_protocol(record: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """`record` without its protocol where that is the one of `first`, which is said once."""
    same = all(record[key] == first[key] for key in ("protocol", "n_images", "n_captions"))
    return {key: value for key, value in record.items() if key != "protocol" or not same}


def curve_row(evaluation: Evaluation) -> dict[str, float]:
    """{'step', 'eval/NAME/figure', and where it has intervals '…/low' and '…/high'}, for `plots`."""
    start, record = f"eval/{evaluation.name}", evaluation.record
    row = {"step": evaluation.step, **{f"{start}/{k}": x for k, x in evaluation.numbers().items()}}
    if evaluation.has_recalls and record.get("ci95"):
        for direction, key in RECALLS:
            row |= zip(
                (f"{start}/{direction}/{key}/low", f"{start}/{direction}/{key}/high"), record["ci95"][direction][key]
            )
    return row


def _groups(name: str, evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """{what the numbers are of: {key of a row: label}}, a picture each."""
    groups: dict[str, dict[str, str]] = {}
    for key in evaluation.numbers():
        group, _, label = key.rpartition("/")
        groups.setdefault(group or key, {})[f"eval/{name}/{key}"] = label
    return {group: dict(list(labels.items())[:MOST_LINES]) for group, labels in groups.items()}


def _spread_out(found: Sequence[Evaluation]) -> list[Evaluation]:
    """At most MOST_STEPS of `found`, the first and the last among them."""
    if len(found) <= MOST_STEPS:
        return list(found)
    places = {round(i * (len(found) - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)}
    return [found[i] for i in sorted(places)]


def _word(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)

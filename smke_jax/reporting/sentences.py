"""What a report shows of labelled sentences: a few that were told right, and a few that were not."""

from collections.abc import Iterable, Sequence

from smke_jax.reporting.evaluations import Evaluation

HEADS = ("", "sentence", "label", "predicted")


def sample_tables(
    newest: Iterable[Evaluation], problems: list[str]
) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """[(title, heads, rows)] of those of the evaluations `newest` that kept sentences, one for each.

    Samples that cannot be read become a line of `problems`.
    """
    tables = []
    for evaluation in newest:
        samples = evaluation.record.get("samples")
        if samples is None:
            continue
        try:
            rows = [
                [kind, " — ".join(row["sentences"]), str(row["label"]), str(row["predicted"])]
                for kind in ("right", "wrong")
                for row in samples[kind]
            ]
        except (KeyError, TypeError):
            problems.append(f"the sentences of {evaluation.name} at step {evaluation.step} are damaged: left out")
            continue
        tables.append((f"Sentences ({evaluation.name}, step {evaluation.step:,})", HEADS, rows))
    return tables

"""A BERT fine-tuned on a task of GLUE: [CLS], pooler, dropout, one matrix; classes, or the score of STS-B.

    smke train --config=configs/finetune_text.py --workdir=runs/cola --config.task.data=data/glue/CoLA
    smke train --config=configs/finetune_text.py:rte --workdir=runs/rte --config.task.data=data/glue/RTE

The variants are GLUE's tasks: cola, which is also meant without one, rte, stsb, wnli, mrpc, qqp, sst2, qnli and mnli.
The folder holds the task's files as GLUE has them, train.tsv and dev.tsv; of CoLA also its raw layout, whose two dev
files are GLUE's dev set together; of MRPC also Microsoft's own files, with `--config.evaluators.dev.split=test`.
`--config.networks.text.scratch=True` leaves the weights aside.  `--config.networks.text.start=runs/lit/export` begins
with the text tower of an aligned model; its vocabulary is `--config.task.tokenizer=runs/lit/export/tokenizer`.

Thesis (spec 4): AdamW with a decay of 0.1 on all parameters, a line down to 1e-7, 256 tokens, BERT's own pooler.  Of
the thesis' models, on the dev sets: F-DistilBERT 81.2 MNLI, 88.0 QNLI, 67.6 RTE, 85.0 MRPC, 86.5 QQP, 81.0 STS-B, 55.1
CoLA, 91.4 SST-2, 56.4 WNLI; BERT 86.7, 91.8, 69.3, 88.6, 89.6, 89.0, 56.3, 92.7, 53.5.  The thesis averaged its metrics
over batches, and measured MRPC on its test set; here they are of all rows of the dev set, after every epoch.

The flickr8k form is MiniLM on two cores: short texts, two epochs and a rate that suits its size.
"""

from typing import NamedTuple

from smke_jax.forms import split_variant
from smke_jax.parts import classify, labelled_text, labels, score, text_classifier


class Setting(NamedTuple):
    """A row of the thesis' table: steps, batch, learning rate, metrics; and the length that holds most of its texts.

    epochs: that the steps are, of the rows that the thesis had
    """

    folder: str
    steps: int
    epochs: int
    batch: int
    rate: float
    metrics: tuple[str, ...]
    length: int


VARIANTS = ("cola", "rte", "stsb", "wnli", "mrpc", "qqp", "sst2", "qnli", "mnli")
SETTINGS = {
    "cola": Setting("CoLA", 10_689, 20, 16, 1e-5, ("matthews", "accuracy"), 24),
    "rte": Setting("RTE", 3_113, 20, 16, 2e-5, ("accuracy",), 128),
    "stsb": Setting("STS-B", 7_187, 20, 16, 4e-5, ("spearman", "pearson"), 64),
    "wnli": Setting("WNLI", 1_588, 20, 8, 1e-5, ("accuracy",), 72),
    "mrpc": Setting("MRPC", 5_095, 20, 16, 2e-5, ("f1", "accuracy"), 96),
    "qqp": Setting("QQP", 31_563, 10, 128, 2e-5, ("f1", "accuracy"), 64),
    "sst2": Setting("SST-2", 21_047, 10, 32, 2e-5, ("accuracy",), 48),
    "qnli": Setting("QNLI", 32_733, 10, 32, 2e-5, ("accuracy",), 96),
    "mnli": Setting("MNLI", 61_360, 10, 64, 2e-5, ("accuracy",), 80),
}
DEV = {"mnli": {"matched": "dev_matched", "mismatched": "dev_mismatched"}}


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    kind = kind or "cola"
    own, tower, words = SETTINGS[kind], form.text_tower(), form.captioned()
    c = form.run()
    c.optimizer.update(name="adamw", reference_batch=0, schedule="linear", final_rate=1e-7, clip_norm=0.0)
    c.optimizer.update(weight_decay=0.1, decay_all=True, learning_rate=own.rate)
    drawn = words.source != "prepared"
    files = {"files": "scenes"} if drawn else {"data": f"data/glue/{own.folder}"}
    c.task = labelled_text(glue=kind, tokenizer=words.tokenizer, vocab_size=words.vocab_size, **files)
    if form.name == "":
        c.batch_size, c.total_steps = own.batch, own.steps
    else:
        c.task.max_length = 32 if drawn else own.length
    if form.name == "flickr8k":
        c.batch_size, c.total_steps, c.epochs, c.optimizer.learning_rate = 32, 0, 2.0, 1e-4
    every = 0
    if not drawn:
        every = own.steps * own.batch // own.epochs // c.batch_size  # an epoch of the thesis' rows
        c.checkpoint.every = every
    c.networks.text = text_classifier(start=tower.start, model=tower.model, dtype=tower.dtype)
    c.terms.label = score() if kind == "stsb" else classify()
    held_out = {"dev": form.held_out} if drawn else DEV.get(kind, {"dev": "dev"})
    for name, split in held_out.items():
        c.evaluators[name] = labels(split=split, metrics=own.metrics, every=every, best=name != "mismatched")
    return c

"""A text encoder distilled by itself: the first half of its teacher's layers says what all of them say.

    smke prepare text FILE … --out=data/openwebtext --tokenizer=weights/bert-base-uncased/tokenizer --dev FILE …
    smke train --config=configs/kd_text.py --workdir=runs/kd_text

    smke prepare text wikitext2_valid.txt --out=data/wikitext --tokenizer=weights/minilm/tokenizer --length=128
        --holdout=200
    smke train --config=configs/kd_text.py:wikitext --workdir=runs/kd_text_wikitext
    smke export --workdir=runs/kd_text_wikitext --out=weights/minilm-3

The paper's setting: F-DistilBERT, the embeddings and the first 6 of the 12 layers of BERT.  Of every token, [CLS] and
[SEP] too, the student predicts the mean over all layers of the teacher's outputs, each normalised per channel over the
256 positions; its own prediction is the same mean over its 6 layers.  Loss: mean squared error over the tokens that are
not padding.  60,000 steps of 256 rows of OpenWebText, about 1.2 epochs, peak learning rate 5e-4.

Where text and code of the thesis differ:
- The text averages the layers 1 to 12, the code the embeddings too.  The text is followed;
  `configs/kd_text.py:code` follows the code.
- An early text normalises every token over its channels as well, as for images; the last text and the code do not, and
  are followed.  `configs/kd_text.py:seed` follows the early one, with its 196 tokens.
- The text divides the loss by the length of the row, the code by its tokens.  The code is followed.
- The appendix has 1 million steps and a warm-up of 1 %; 60,000 and 10 % of the code fit the hours that it states.
- Padding counts among the positions that a channel is normalised over, as in the code;
  `--config.networks.teacher.padding=False --config.networks.student.padding=False` leaves it out.
- Nothing says whether BERT's dropout of 0.1 was on; here it is `--config.networks.student.dropout=0.1`.

`wikitext` (or `flickr8k`, as the small form of all recipes is called) is MiniLM of 6 layers to 3 on 128 tokens.  The
two smallest forms read the captions of drawn scenes one after another.

Measured here: see smke_jax/evaluators/README.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import layer_agreement, layer_means, layered_text, part, text

VARIANTS = ("code", "seed")
TINY = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "max_positions": 64}
SCENES = {"source": "scenes", "vocab_size": 300, "max_length": 64}
# {form: (the text, fields of teacher and student, layers of teacher and student)}
SIZES = {
    "": (
        {"data": ("data/openwebtext",)},
        {"start": "weights/bert-base-uncased", "model": part("bert"), "dtype": "bfloat16"},
        (12, 6),
    ),
    "flickr8k": ({"data": ("data/wikitext",), "max_length": 128}, {"start": "weights/minilm"}, (6, 3)),
    "scenes": (SCENES, {"start": "random", "model": part("bert", **TINY)}, (2, 1)),
    "smoke": (SCENES, {"start": "random", "model": part("bert", **TINY)}, (2, 1)),
}


def get_config(variant: str = ""):
    kind, form = split_variant(",".join("flickr8k" if x == "wikitext" else x for x in variant.split(",")), VARIANTS)
    rows, fields, depths = SIZES[form.name]
    c = form.run(batch_size=256, total_steps=60_000, epoch=6_000)
    c.optimizer.update(name="adamw", learning_rate=5e-4, weight_decay=0.01, clip_norm=0.0)
    c.task = text(**rows)
    if kind == "seed" and not form.name:
        c.task.max_length = 196
    for name, depth in zip(("teacher", "student"), depths, strict=True):
        layers = tuple(range(depth + 1)) if kind == "code" else ()
        options = {"makes": name, "depth": depth, "layers": layers, "layer_norm": kind == "seed"}
        c.networks[name] = layered_text(trained=name == "student", **options, **fields)
    c.terms.layers = layer_means(mask="text_mask")
    held_out = "dev" if c.task.source == "prepared" else "gallery"
    c.evaluators.layers = layer_agreement(mask="text_mask", split=held_out, every=0 if form.name else 6_000)
    if form.name == "flickr8k":
        c.batch_size, c.total_steps, c.checkpoint.every, c.evaluators.layers.every = 32, 90, 45, 45
        c.optimizer.reference_batch, c.eval_batch_size = 0, 64
    return c

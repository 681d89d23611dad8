"""Two-stage compression of an image-text model (MoTIS): its towers apart, then tuned for retrieval one after the other.

    smke train --config=configs/motis.py --workdir=runs/motis --config.task.data=data/coco
    smke train --config=configs/motis.py:flickr8k --workdir=runs/motis_flickr8k/full
    smke export --workdir=runs/motis/text --out=runs/motis/export

The paper's setting (Ren and Zhu 2022, "Leaner and Faster: Two-Stage Model Compression for Lightweight Text-Image
Retrieval"): the teacher is CLIP ViT-B/32, the students are a ViT-S/16 and the first 6 layers of CLIP's text tower.

    teacher_image, teacher_text   the teacher is tuned on the pairs, one tower at a time, the other one frozen
    image1, text1                 stage 1, without pairs: each student finds its untuned teacher's embedding of the same
                                  photo, or caption, among those of the batch
    image                         stage 2: the image student against the tuned text tower, which is frozen
    text                          stage 2: the text student against the image student, which is frozen

Losses of stage 2, all of weight 1: contrast in both directions, each a mean over the batch and not halved; KL of the
batch's score matrix from the tuned teacher's, both directions, averaged; the loss of stage 1 from the tuned teacher;
and contrast with 16 hard negatives of each query, which are the nearest captions (of an image), or images (of a
caption), of the whole training set.  The searched side is frozen: it is embedded once for each stage, and so are the
teacher's embeddings.  The paper has no figure for the temperatures, the number of negatives, the formula of their loss,
the teacher's learning rate, the order of its towers, which layers the text student begins with, and augmentation.

- Warm-up is a share of a stage's steps, and so shrinks with `total_steps`: in stage 1 10,000 of 34,090.  Elsewhere it
  is the default share, as the paper's 10,000 "for both stages" would be longer than stage 2 on Flickr30K.
- The field `keep` of the stage text1's `words` says which layers: `first`, `even` or `last`.
- `--config.image.terms.hard.fold=batch --config.image.terms.itc.weight=0` puts the image student's negatives among the
  batch's own; the same with `text.` is of the text student.  A flag without a stage is of the last one alone.
- `--config.image.selections.hard.k=32` takes more of them; `--config.image.terms.hard.temperature=0.05` starts at
  another scale, as it does in every stage: of the scales of an earlier one `itc` alone is taken over.
- Weights: `smke convert` of openai/clip-vit-base-patch32 and of AugReg's S_16 of ImageNet-21k.

All six stages have taken two steps of 8 pairs at these sizes on two CPU cores, from random weights in the layouts of
transformers' CLIPModel and ViTModel (`total_steps=2`, `batch_size=8` and `caps=(64,)` in every stage).

Variants, alone or with a form: `joint` tunes both towers of the teacher together, in one stage, and leaves the students
and their order as they are; `none` has no stage 1, `mse` has it by squared error, `infonce` by contrast with the
captions of the pairs; `no_kd`, `no_hn`, `no_kd_hn` leave losses out.  They end with the stage `image`, as the paper's
ablation does: the image student with the tuned text tower.  `text4` and `text2` are text students of 4 and 2 layers.

`flickr8k` compresses configs/lit.py's model; its variants share the teacher and stage 1 in runs/motis_flickr8k, so that
each of them takes one stage more:

    smke train --config=configs/motis.py:no_kd,flickr8k --workdir=runs/motis_flickr8k/no_kd

`s_smke`, alone or with a form, has an S-SMKE as the teacher, whose towers meet in a shared block: that of
configs/s_smke.py, of configs/scenes.py, or of configs/s_smke_pretrained.py:flickr8k.  The stages are the same:

    smke train --config=configs/motis.py:s_smke,scenes --workdir=runs/motis_s_smke

`teacher_image` trains its image tower, and `teacher_text` its text tower, with all else frozen, the shared block too.
The students stay towers with projections, which begin at random.  The stage `image` measures the image student with the
teacher's tuned text side, and its export embeds images alone.

Published, text to image R@1, 5 and 10: COCO 5k 42.6 / 69.6 / 79.4 (the teacher tuned 40.9 / 67.6 / 77.9, a text student
of 4 layers 42.0 / 69.2 / 79.0), Flickr30K 57.0 / 82.1 / 88.8.  Ablation on COCO, R@10: 75.3; none 70.7, mse 58.5,
infonce 69.6, joint 70.8, no_kd 74.2, no_hn 73.7, no_kd_hn 71.9.
"""

from pathlib import Path

from smke_jax.compression_forms import COMPRESSIONS
from smke_jax.config_files import load_config
from smke_jax.forms import split_variant
from smke_jax.parts import corpus, corpus_negatives, hard_itc, intra_modal, itc, score_kl, stored_features

ABLATIONS = ("joint", "none", "mse", "infonce", "no_kd", "no_hn", "no_kd_hn")
DEPTHS = {"text4": 4, "text2": 2}
TEACHERS = ("s_smke",)
VARIANTS = (*ABLATIONS, *DEPTHS, *TEACHERS)
NEGATIVES = 16  # hard negatives of each query
BEST = "text_to_image/r1"  # ranks checkpoints


def get_config(variant: str = ""):
    return list(get_stages(variant).values())[-1]


def get_stages(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    teacher, kind = (kind, "") if kind in TEACHERS else ("", kind)
    form = COMPRESSIONS[teacher][form.name]
    stages = _teachers_own(form)
    tuned = ("joint",) if kind == "joint" else ("image", "text")
    file = form.teacher
    for side in tuned:
        stages[name := form.place(f"teacher_{side}")] = _tuned(form, side, file)
        file = f"stage:{name}"
    image1 = ""
    if kind != "none":
        way = kind if kind in ("mse", "infonce") else ""
        stages[name := form.place("_".join(filter(None, ("image1", way))))] = _first_image(form, way)
        image1 = f"stage:{name}"
    stages["image"] = _second_image(form, file, image1, kind)
    if kind in ABLATIONS:
        return stages
    text1 = form.place("_".join(filter(None, ("text1", kind))))
    # It comes before the image student, so that what is trained last is what the config is called for.
    image = stages.pop("image")
    stages[text1] = _first_text(form, DEPTHS.get(kind))
    return {**stages, "image": image, "text": _second_text(form, file, f"stage:{text1}", DEPTHS.get(kind))}


def _teachers_own(form):
    """The stage that makes the teacher, where none comes with its weights."""
    if not form.teacher.startswith("stage:"):
        return {}
    config = load_config(f"{Path(__file__).with_name(form.teachers_run)}:{form.form.name}")
    for asset in config.assets.values():
        asset.folder = form.kept  # the same features
    return {form.teacher.removeprefix("stage:"): config}


def _tuned(form, side, start):
    """The teacher, with the tower of one `side` trained, or both ('joint')."""
    c = form.run("tune")
    c.task = form.pairs()
    networks, assets = form.tuned(start, side)
    c.networks.update(networks)
    c.assets.update(assets)
    c.terms.itc = itc(levels=("out",), same_image="masked", weight=2.0)
    c.evaluators.retrieval = form.retrieval(BEST)
    return c


def _first_image(form, way):
    """Stage 1 of the image student, from the untuned teacher."""
    c = form.run("first")
    paired = way == "infonce"
    c.task = form.pairs() if paired else form.images()
    c.networks.photo = form.photo()
    c.networks.student = form.projections(image=("photo/feature",), text=())
    c.networks.update(form.frozen(form.teacher, ("text" if paired else "image",)))
    if paired:
        c.assets.texts = stored_features(of=("teacher_text/out",), half=True)
        c.terms.itc = itc(levels=("out",), pair=("image", "teacher_text"), same_image="masked", weight=2.0)
        return c
    if c.task.teacher_view == "fixed":
        c.assets.photos = form.photos()
    c.terms.intra = intra_modal(loss=way or "contrastive")
    return c


def _first_text(form, depth):
    """Stage 1 of the text student."""
    c = form.run("first")
    c.task = form.captions()
    c.networks.words = form.words(form.teacher, depth)
    c.networks.student = form.projected_words()
    c.networks.update(form.frozen(form.teacher, ("text",)))
    c.terms.intra = intra_modal(prediction="text/out", target="teacher_text/out")
    return c


def _losses(c, form, kind, *, query, key, pair, target, learned):
    """Those of stage 2, for the `query` that is trained and the `key` that is frozen."""
    c.terms.itc = itc(levels=("out",), pair=pair, same_image="masked", weight=2.0)
    if "no_kd" not in kind:
        scores = {"prediction": tuple(f"{side}/out" for side in pair), "target": target}
        c.terms.kl = score_kl(**scores, temperature=form.temperature, target_temperature=form.temperature)
        c.terms.intra = intra_modal(prediction=query, target=learned, same_image="masked")
    if not kind.endswith("hn"):
        c.assets.corpus = corpus(of=key)
        c.selections.hard = corpus_negatives(query=query, of=key, k=NEGATIVES)
        c.terms.hard = hard_itc(query=query, key=key, same_image="masked")
    else:
        c.assets.corpus = stored_features(of=(key,), half=True)


def _second_image(form, tuned, first, kind):
    """The image student, with the tuned teacher's text tower."""
    c = form.run("second")
    c.task = form.pairs()
    c.networks.photo = form.photo(first)
    c.networks.student = form.projections(
        image=("photo/feature",), image_start=first or "random", **form.tuned_text(tuned), trained="image"
    )
    if "no_kd" not in kind:
        c.networks.update(form.frozen(tuned))
        c.assets.photos = form.photos()
    else:  # nothing reads what the teacher makes of images
        c.networks.update(form.frozen(tuned, ("text",)))
    _losses(
        c, form, kind, query="image/out", key="teacher_text/out", pair=("image", "teacher_text"),
        target=("teacher_image/out", "teacher_text/out"), learned="teacher_image/out",
    )  # fmt: skip
    c.evaluators.retrieval = form.retrieval(BEST, pair=form.searched)
    return c


def _second_text(form, tuned, first, depth):
    """The text student, with the image student frozen."""
    c = form.run("second")
    c.task = form.pairs()
    c.networks.update(form.frozen(tuned))
    c.networks.photo = form.photo("stage:image", trained=False, image="photo")
    c.networks.words = form.words(first, depth)
    c.networks.index = form.projections(
        image=("photo/feature",), text=(), image_start="stage:image", makes="index", trained="none"
    )
    c.networks.student = form.projections(
        image=("photo/feature",), image_start="stage:image", text_start=first, trained="text"
    )
    c.assets.photos = form.photos()
    c.assets.texts = stored_features(of=("teacher_text/out",), half=True)
    _losses(
        c, form, "", query="text/out", key="index_image/out", pair=("index_image", "text"),
        target=("teacher_image/out", "teacher_text/out"), learned="teacher_text/out",
    )  # fmt: skip
    c.evaluators.retrieval = form.retrieval(BEST)
    return c

"""S-SMKE on other pretrained parts: the first blocks of DINOv2, MiniLM or BERT, and a teacher with stored features.

    smke train --config=configs/s_smke_pretrained.py --workdir=runs/s_smke_pretrained --config.task.data=DATA
    smke train --config=configs/s_smke_pretrained.py:flickr8k --workdir=runs/s_smke_pretrained_flickr8k

The recipe is the thesis': first blocks of pretrained towers, a shared block, contrast of both on two levels, and
contrast with the teacher's [CLS].  The teacher embeds random views of every photo once, so that a step runs the student
alone.  Other captions of the same photo are positives.  The README says how to get the weights of the Flickr8k form:
`weights/dinov2` (ViT-S/14 at 182 pixels, of which the student takes six blocks at 98), `weights/minilm`, and for
`:lite0` `weights/lite0`.

`configs/s_smke_pretrained.py:lite0` has EfficientNet-Lite0 as the teacher, `:bank` adds the thesis' memory bank, and
`:no_teacher` is the same student without a teacher, in the same number of steps.  `:lite0_bank` has both.
In place of the contrast with the teacher `:lite0_mse` has the squared distance of normalised features,
`:lite0_relational` the similarities within the batch, and `:lite0_logits` the teacher's classes, as in SHRe.

MiniLM's text training saw the captions of COCO and of Flickr30k, to which Flickr8k belongs.  With
`--config.networks.student.text_start=random` the text tower has seen none.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import itc, kl, regress, relational_kl, stored_features, target_itc

# {variant: (teacher, how it is distilled)}
VARIANTS = {
    "lite0": ("lite0", "contrast"),
    "bank": ("dinov2", "bank"),
    "no_teacher": ("dinov2", ""),
    "lite0_bank": ("lite0", "bank"),
    "lite0_mse": ("lite0", "mse"),
    "lite0_relational": ("lite0", "relational"),
    "lite0_logits": ("lite0", "logits"),
}


def get_config(variant: str = ""):
    kind, form = split_variant(variant, tuple(VARIANTS))
    name, how = VARIANTS.get(kind, ("dinov2", "contrast"))
    c = form.fine_tuning()
    c.task = form.captioned()
    teacher, width, classes = form.teachers()[name]
    learned, width = ("target/logits", classes) if how == "logits" else ("target/cls", width)
    c.networks.student = form.pretrained(head=width)
    c.terms.itc = itc(levels=("fc1", "out"), same_image="positive")
    if how:
        c.networks.teacher = teacher
        c.assets.photos = stored_features(of=(learned,), augmentations=form.augmentations, half=True)
        terms = {
            "contrast": {"target_itc": target_itc(same_image="masked")},
            "bank": {"target_itc": target_itc(bank_size=form.bank(65_536), same_image="masked")},
            # The mean over the channels times half of their number: one minus the cosine.
            "mse": {"regress": regress(normalise=True, weight=width / 2)},
            "relational": {"relational_kl": relational_kl(diagonal=False)},
            "logits": {"kl": kl()},
        }
        c.terms.update(terms[how])
    c.evaluators.retrieval = form.retrieval()
    return c

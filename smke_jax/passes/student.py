"""The student's forward: image and text through their towers and the shared block."""

from smke_jax.models.student import Student
from smke_jax.passes.base import Pass, to_network

LEVELS = ("fc1", "out", "head")


def student_pass(model: Student) -> Pass:
    """'image/{fc1,out,head}' from batch['image'] and 'text/{fc1,out,head}' from batch['text'], ['text_mask']."""

    def init(key, batch):
        return model.init(key, to_network(batch["image"]), batch["text"], batch["text_mask"])["params"]

    def run(params, batch, key, train):
        options = {"deterministic": not train, "rngs": {"dropout": key} if train else None}
        reps = {}
        if "image" in batch:
            image = model.apply({"params": params}, to_network(batch["image"]), method="encode_image", **options)
            reps |= {f"image/{level}": x for level, x in image.items()}
        if "text" in batch:
            text = model.apply({"params": params}, batch["text"], batch["text_mask"], method="encode_text", **options)
            reps |= {f"text/{level}": x for level, x in text.items()}
        return reps

    provides = tuple(f"{m}/{level}" for m in ("image", "text") for level in LEVELS)
    return Pass("student", provides, True, init, run, watched=("image/out", "text/out"))

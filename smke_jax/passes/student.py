"""The student's forward: image and text through their towers and the shared block."""

from smke_jax.models.student import Student
from smke_jax.passes.base import Pass, apply_and_reveal, to_network

LEVELS = ("fc1", "out", "head")
TOKENS = ("tokens", "head_tokens")


def student_pass(model: Student) -> Pass:
    """'image/{fc1,out,head}' (B, D) from batch['image'] and 'text/{fc1,out,head}' from batch['text'], ['text_mask'].

    Also '{image,text}/{tokens,head_tokens}': 'out' and 'head' of every patch (B, N, D), and of the caption without
    [CLS] (B, L - 2, D), where 'text/mask' (B, L - 2) is 1 at its words: at neither [SEP] nor padding.
    """

    def init(key, batch):
        return model.init(key, to_network(batch["image"]), batch["text"], batch["text_mask"])["params"]

    def run(params, batch, key, train):
        options = {"deterministic": not train, "rngs": {"dropout": key} if train else None}
        reps = {}
        if "image" in batch:
            image, sown = apply_and_reveal(model, params, to_network(batch["image"]), method="encode_image", **options)
            reps |= {f"image/{name}": x for name, x in {**image, **sown}.items()}
        if "text" in batch:
            ids, mask = batch["text"], batch["text_mask"]
            text, sown = apply_and_reveal(model, params, ids, mask, method="encode_text", **options)
            # The last position is no word, and any other is one if a token follows it: [SEP] ends every caption.
            sown = {name: x[:, :-1] for name, x in sown.items()} | {"mask": mask[:, 2:]}
            reps |= {f"text/{name}": x for name, x in {**text, **sown}.items()}
        return reps

    provides = tuple(f"{m}/{name}" for m in ("image", "text") for name in (*LEVELS, *TOKENS))
    return Pass("student", (*provides, "text/mask"), True, init, run)

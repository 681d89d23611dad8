"""Class logits or a score of a sentence or a pair."""

from smke_jax.models.text import TextClassifier
from smke_jax.passes.base import Pass, mode


def classify_text(model: TextClassifier, network: str, *, makes: str = "class", pairs: bool = False) -> Pass:
    """'<makes>/logits' (B, C) of 'text' and 'text_mask' (B, L), and of `pairs` of 'text_types' (B, L) as well."""
    needs = ("text", "text_mask", *(("text_types",) if pairs else ()))

    def run(params, arrays, key, train):
        logits = model.apply(
            {"params": params[network]}, arrays["text"], arrays["text_mask"], types=arrays.get("text_types"),
            **mode(key, train),
        )  # fmt: skip
        return {f"{makes}/logits": logits}

    return Pass(network, (network,), needs, (f"{makes}/logits",), run)

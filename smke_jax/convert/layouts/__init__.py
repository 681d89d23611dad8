"""Every kind of file that weights come in and go out as.  A new one is a file here and a line in LAYOUTS."""

from smke_jax.convert.layouts import (
    beit,
    beit_hf,
    bert,
    clip,
    data2vec2,
    efficientnet_lite,
    resnet,
    student,
    vit,
    vit_hf,
)
from smke_jax.convert.rules import Layout
from smke_jax.convert.source import Source
from smke_jax.errors import UserError

LAYOUTS = {layout.name: layout for layout in (
    beit.UNILM, beit_hf.HF, bert.BERT, data2vec2.FAIRSEQ,
    vit.TIMM, vit.AUGREG, vit_hf.VIT, vit_hf.DINOV2, resnet.TIMM, resnet.TRANSFORMERS, clip.OPENAI, clip.TRANSFORMERS,
    student.SMKE_HF, student.THESIS, efficientnet_lite.EFFICIENTNET_LITE,
)}  # fmt: skip


def detect(source: Source) -> Layout:
    """The one layout whose marks are all among the names in `source`.

    Raises UserError where none or several have.
    """
    found = [x for x in LAYOUTS.values() if set(x.marks) <= set(x.clean(source.state))]
    if len(found) != 1:
        what = f"fits {' and '.join(x.name for x in found)}" if found else "is of no known layout"
        names = ", ".join(sorted(source.state)[:3])
        raise UserError(f"{source.path} {what} (it has {names}, …): give --from, one of {', '.join(sorted(LAYOUTS))}")
    return found[0]

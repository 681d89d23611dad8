"""What transformers 5 calls parts of a ViT in memory -> what they are called in the files that it writes and reads."""

import re
from collections.abc import Mapping

# Patterns -> replacements.
ATTENTION = {
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
}
VIT = {
    **ATTENTION,
    r"^layers\.": "encoder.layer.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def in_file(name: str, in_memory: Mapping[str, str]) -> str:
    """`name` after every replacement of `in_memory`, in order."""
    for pattern, replacement in in_memory.items():
        name = re.sub(pattern, replacement, name)
    return name

"""Features keep their neighbours: STRUCTURE, a regulariser for aligning frozen encoders with few pairs."""

from smke_jax.errors import UserError
from smke_jax.losses.structure import structure_loss
from smke_jax.objectives.base import Term, no_state


def structure(
    before: tuple[str, ...] = ("target/feature", "words/feature"),
    after: tuple[str, ...] = ("image/out", "text/out"),
    levels: int = 1,
    temperature: float = 0.07,
) -> Term:
    """Mean over the pairs of `before` and `after` of `structure_loss`: are the same rows of the batch near each other?

    Needs the representations `before` (B, C) and `after` (B, D), the first of one with the first of the other.  What
    stands in `before` gets no gradient; it is what an encoder gives before the layers that are trained.
    levels:      steps of a walk from neighbour to neighbour, for each of which the ends of the walk are compared
    temperature: of the softmax over neighbours; the authors take that of their contrastive loss
    Source: Gröger et al. 2025 (see `structure_loss`).  The code of its authors has the weight 10 and one level; the
    weight rises from 0 over the first 500 steps.
    """
    if len(before) != len(after) or len(set(after)) != len(after) or not after:
        raise UserError(
            f"before is {before} and after is {after}: name as many representations in both, none twice in `after`"
        )

    def value(params, slots, reps, scope):
        losses = {
            f"loss_{new.replace('/', '_')}": structure_loss(
                reps[old], reps[new], levels=levels, temperature=temperature, scope=scope
            )
            for old, new in zip(before, after, strict=True)
        }
        return sum(losses.values()) / len(losses), losses

    return Term(tuple(dict.fromkeys((*before, *after))), no_state, value)

"""A student of few layers says of every token what all layers of its teacher say (spec 1, 2)."""

from smke_jax.errors import UserError
from smke_jax.losses.distillation import mean_squared_error, mean_squared_error_of_tokens
from smke_jax.objectives.base import Term, no_state


def layer_means(prediction: str = "student/layers", target: str = "teacher/layers", mask: str = "") -> Term:
    """MSE of `prediction` and `target` (B, L, D), mean over tokens and channels.

    mask: the array (B, L) that is 1 at tokens, such as 'text_mask': padding is left out.  '' takes all positions
    """

    def init(key, shapes):
        ours, theirs = (shapes[name].shape[1:] for name in (prediction, target))
        if ours != theirs:
            raise UserError(
                f"config.terms.layer_means: {prediction} has {ours[0]} tokens of {ours[1]} channels and {target} "
                f"{theirs[0]} of {theirs[1]}: give both networks the same image_size, patch size and width"
            )
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        if mask:
            return mean_squared_error_of_tokens(reps[prediction], reps[target], reps[mask], scope=scope), {}
        return mean_squared_error(reps[prediction], reps[target]), {}

    return Term((prediction, target, *([mask] if mask else [])), init, value)

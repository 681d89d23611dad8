"""The optimiser as one optax chain: AdamW or Muon, decay exclusions, learning-rate rules, logit-scale clamp."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

MAX_LOG_SCALE = math.log(100.0)

# 1-D parameters never decay; besides them, by path (spec 0.3): biases of any shape, [CLS] and embedding tables.
NO_DECAY = ("cls_token", "embedding", "logit_scale", "bias")


def learning_rate(*, peak: float, total_steps: int, warmup_fraction: float) -> Callable[[jax.Array], jax.Array]:
    """Linear warm-up from 0 over int(warmup_fraction · total_steps), then half a cosine to 0 (spec 0.3).

    A pure function of the step and the stored total, so that a resumed run continues the same curve.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0, peak_value=peak, warmup_steps=int(warmup_fraction * total_steps), decay_steps=total_steps
    )


def paths(tree: Any) -> Any:
    """The same tree with 'a/b/c' paths as leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def first_match(path: str, rules: Sequence[tuple[str, float]], default: float) -> float:
    """Value of the first rule whose regex is found in the path."""
    return next((value for pattern, value in rules if re.search(pattern, path)), default)


def decays(path: str, leaf: jax.Array) -> bool:
    """Whether weight decay applies: matrices and convolutions, not vectors, [CLS] or embedding tables."""
    return leaf.ndim > 1 and not re.search("|".join(NO_DECAY), path)


def is_muon_matrix(path: str, leaf: jax.Array) -> bool:
    """Muon orthogonalises hidden matrices; tables, vectors, convolutions and the terms' own readouts go to AdamW."""
    return leaf.ndim == 2 and path.endswith("kernel") and not path.startswith("terms/")


def clamp_log_scales() -> optax.GradientTransformation:
    """Keeps every parameter named 'logit_scale' in [0, ln 100] *after* the update; must come last (spec 0.2)."""

    def clamp(path, update, param):
        if not path.endswith("logit_scale"):
            return update
        return jnp.clip(param + update, 0.0, MAX_LOG_SCALE) - param

    return optax.stateless(lambda updates, params: jax.tree.map(clamp, paths(params), updates, params))


def build_optimizer(config, *, batch_size: int, total_steps: int) -> tuple[optax.GradientTransformation, Callable]:
    """`config` (config.optimizer) -> (transformation, schedule).

    The peak rate is config.learning_rate · batch_size / 256.  `config.lr_rules` is a list of (regex, factor), first
    match wins; factor 0 freezes: no update, no decay, no optimiser state.
    """
    schedule = learning_rate(
        peak=config.learning_rate * batch_size / 256,
        total_steps=total_steps,
        warmup_fraction=config.warmup_fraction,
    )
    rules = [(pattern, float(factor)) for pattern, factor in config.lr_rules]
    direction = OPTIMIZERS[config.name](config)

    def labels(params):
        return jax.tree.map(lambda path: "frozen" if first_match(path, rules, 1.0) == 0 else "trained", paths(params))

    def decay_mask(params):
        return jax.tree.map(decays, paths(params), params)

    def scale_by_rules(updates, params):
        return jax.tree.map(lambda path, u: u * first_match(path, rules, 1.0), paths(updates), updates)

    trained = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        direction,
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.stateless(scale_by_rules),
        optax.scale_by_learning_rate(schedule),
    )
    tx = optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
    return optax.chain(tx, clamp_log_scales()), schedule


def _adam(config):
    # The second moment stays fp32: in bfloat16 an update of 1 - b2 = 2 % of it is close to the rounding error.
    return optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.eps, mu_dtype=config.mu_dtype)


def _muon(config):
    def labels(params):
        return jax.tree.map(lambda path, x: "muon" if is_muon_matrix(path, x) else "adam", paths(params), params)

    # Muon has a momentum of its own (0.95); config.betas and eps are those of Adam, which takes the rest.
    muon = optax.chain(
        stacked(optax.contrib.scale_by_muon(weight_dimension_numbers=_matrices_of_stacks)),
        # An orthogonal (m, n) matrix has RMS 1/sqrt(max(m, n)); 0.2 is the RMS of a typical AdamW update, so one
        # learning rate serves both (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
        optax.stateless(lambda u, _: jax.tree.map(lambda x: 0.2 * math.sqrt(max(x.shape)) * x, u)),
    )
    return optax.partition({"muon": muon, "adam": _adam(config)}, labels)


def _matrices_of_stacks(stacks):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2), stacks)


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on one (count, m, n) array per shape of matrix instead of on every matrix by itself.

    A Transformer has dozens of equal matrices; as a few batched products Muon compiles and runs several times faster.
    """

    def stack(tree):
        groups: dict[str, list] = {}
        for leaf in jax.tree.leaves(tree):
            groups.setdefault("x".join(map(str, leaf.shape)), []).append(leaf)
        return {shape: jnp.stack(leaves) for shape, leaves in groups.items()}

    def unstack(stacks, like):
        rows = {shape: iter(stack) for shape, stack in stacks.items()}
        return jax.tree.map(lambda leaf: next(rows["x".join(map(str, leaf.shape))]), like)

    def update(updates, state, params=None):
        directions, state = inner.update(stack(updates), state)
        return unstack(directions, updates), state

    return optax.GradientTransformation(lambda params: inner.init(stack(params)), update)


OPTIMIZERS = {"adamw": _adam, "muon": _muon}

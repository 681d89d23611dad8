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

# Vectors never decay.  Neither do these, by the last part of their paths (spec 0.3): biases of any shape, [CLS] and
# embedding tables.
NO_DECAY = re.compile(r"(^|/)(bias|cls_token|(\w+_)?embedding)$")

BLOCK = re.compile(r"(.*?)block_(\d+)/")
EMBEDDING = re.compile(r"patch_embed/|cls_token$|(\w+_)?embedding(s|_norm|_projection)?(/|$)|stem/")


def _cosine(peak: float, warmup: int, total: int, final: float) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps=warmup, decay_steps=total, end_value=final)


def _linear(peak: float, warmup: int, total: int, final: float) -> optax.Schedule:
    rise, fall = optax.linear_schedule(0.0, peak, warmup), optax.linear_schedule(peak, final, total - warmup)
    return optax.join_schedules([rise, fall], [warmup])


SCHEDULES = {"cosine": _cosine, "linear": _linear}


def learning_rate_schedule(
    *, peak: float, total_steps: int, warmup_fraction: float, shape: str = "cosine", final: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Linear warm-up from 0 over int(warmup_fraction · total_steps), then down to `final` at the last step.

    shape: of the way down, of SCHEDULES: half a cosine (spec 0.3), or a line (spec 4)
    A pure function of the step and the stored total, so that a resumed run continues the same curve.
    """
    warmup = int(warmup_fraction * total_steps)
    return SCHEDULES[shape](peak, warmup, total_steps, final)


def paths(tree: Any) -> Any:
    """The same tree with 'a/b/c' paths as leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def first_match(path: str, rules: Sequence[tuple[str, float]], default: float) -> float:
    """Value of the first rule whose regex is found in the path."""
    return next((value for pattern, value in rules if re.search(pattern, path)), default)


def depths_of(names: Sequence[str]) -> dict[str, int]:
    """{'classifier/encoder/': number of its layers} of the encoders among paths, by their 'block_<i>'."""
    depths: dict[str, int] = {}
    for prefix, number in (found.groups() for name in names if (found := BLOCK.match(name))):
        depths[prefix] = max(depths.get(prefix, 0), int(number) + 1)
    return depths


def layer_factor(path: str, depths: dict[str, int], decay: float, first_layer: Sequence[str] = ()) -> float:
    """decay^(L + 1 - l) of a parameter in layer l of an encoder of L layers (spec 3).

    l is 1 … L in the blocks, and 0 in what embeds the patches or tokens, as its name or a prefix of `first_layer` says.
    It is L + 1 in all that is no encoder, such as a head, and in what else stands in an encoder beside its blocks: a
    last norm or convolution.
    Source: BEiT (Bao et al. 2022), which decays the rates of fine-tuning so.
    """
    if found := BLOCK.match(path):
        return decay ** (depths[found[1]] - int(found[2]))
    own = next((prefix for prefix in depths if path.startswith(prefix)), None)
    if own is None or not (EMBEDDING.match(path.removeprefix(own)) or path.startswith(tuple(first_layer))):
        return 1.0
    return decay ** (depths[own] + 1)


def decays(path: str, leaf: jax.Array) -> bool:
    """Whether weight decay applies: matrices and convolutions, not vectors, [CLS] or embedding tables."""
    return leaf.ndim > 1 and not NO_DECAY.search(path)


def is_muon_matrix(path: str, leaf: jax.Array) -> bool:
    """Muon orthogonalises hidden matrices; tables, vectors, convolutions and the terms' own readouts go to AdamW."""
    return leaf.ndim == 2 and path.endswith("kernel") and not path.startswith("terms/")


def clamp_log_scales() -> optax.GradientTransformation:
    """Keeps every parameter called 'logit_scale', or below that name, in [0, ln 100] *after* the update (spec 0.2).

    It has to be the last part of a chain.
    """

    def clamp(path, update, param):
        if not re.search(r"(^|/)logit_scale(/|$)", path):
            return update
        return jnp.clip(param + update, 0.0, MAX_LOG_SCALE) - param

    return optax.stateless(lambda updates, params: jax.tree.map(clamp, paths(params), updates, params))


def peak_rate(learning_rate: float, *, batch_size: int, reference_batch: int, sqrt_above: int) -> float:
    """The peak learning rate of a global batch, given that of `reference_batch`.

    It grows in proportion to the batch (Goyal et al. 2017), from a batch of `sqrt_above` on with its square root, as
    suits Adam at large batches (Malladi et al. 2022).  0 for `reference_batch` takes the rate as it is, 0 for
    `sqrt_above` keeps the proportion.
    """
    if not reference_batch:
        return learning_rate
    if not sqrt_above or batch_size <= sqrt_above:
        return learning_rate * batch_size / reference_batch
    return learning_rate * sqrt_above / reference_batch * math.sqrt(batch_size / sqrt_above)


def build_optimizer(
    *,
    batch_size: int,
    total_steps: int,
    name: str = "adamw",
    learning_rate: float,
    reference_batch: int = 0,
    sqrt_above: int = 0,
    warmup_fraction: float = 0.1,
    schedule: str = "cosine",
    final_rate: float = 0.0,
    weight_decay: float = 0.01,
    decay_all: bool = False,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-6,
    mu_dtype: str = "float32",
    clip_norm: float = 0.0,
    lr_rules: Sequence[tuple[str, float]] = (),
    layer_decay: float = 1.0,
    first_layer: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, Callable]:
    """(transformation, schedule of the learning rate) of the fields of `config.optimizer`.

    name:       of OPTIMIZERS
    schedule:   of SCHEDULES; final_rate: the learning rate of the last step
    decay_all:  weight decay of every parameter, and not of those alone that `decays` says
    clip_norm:  of the gradients of all trained parameters together; 0 clips nothing
    lr_rules:   (regex on the parameter's path, factor), first match wins
    layer_decay: factor for every layer below the last, see `layer_factor`; it comes on top of lr_rules
    first_layer: see `layer_factor`; it is no field, the networks say it
    The other fields are those of `peak_rate` and `learning_rate_schedule`.
    """
    rate = peak_rate(learning_rate, batch_size=batch_size, reference_batch=reference_batch, sqrt_above=sqrt_above)
    rates = learning_rate_schedule(
        peak=rate, total_steps=total_steps, warmup_fraction=warmup_fraction, shape=schedule, final=final_rate
    )
    rules = [(pattern, float(factor)) for pattern, factor in lr_rules]

    def decay_mask(params):
        return jax.tree.map(lambda path, x: decay_all or decays(path, x), paths(params), params)

    def scale_by_rules(updates, params):
        named = paths(updates)
        depths = depths_of(jax.tree.leaves(named))

        def scaled(path, update):
            factor = first_match(path, rules, 1.0) * layer_factor(path, depths, layer_decay, first_layer)
            return update if factor == 1 else update * factor  # for most it is 1, and the step is smaller without them

        return jax.tree.map(scaled, named, updates)

    tx = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        OPTIMIZERS[name](betas, eps, mu_dtype),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.stateless(scale_by_rules),
        optax.scale_by_learning_rate(rates),
    )
    return optax.chain(tx, clamp_log_scales()), rates


def _adam(betas, eps, mu_dtype):
    # The second moment stays fp32: in bfloat16 an update of 1 - b2 = 2 % of it is close to the rounding error.
    return optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps, mu_dtype=mu_dtype)


def _muon(betas, eps, mu_dtype):
    def labels(params):
        return jax.tree.map(lambda path, x: "muon" if is_muon_matrix(path, x) else "adam", paths(params), params)

    # Muon has a momentum of its own (0.95); betas and eps are those of Adam, which takes the rest.
    muon = optax.chain(
        stacked(optax.contrib.scale_by_muon(weight_dimension_numbers=_matrices_of_stacks)),
        # An orthogonal (m, n) matrix has RMS 1/sqrt(max(m, n)); 0.2 is the RMS of a typical AdamW update, so one
        # learning rate serves both (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
        optax.stateless(lambda u, _: jax.tree.map(lambda x: 0.2 * math.sqrt(max(x.shape)) * x, u)),
    )
    return optax.partition({"muon": muon, "adam": _adam(betas, eps, mu_dtype)}, labels)


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

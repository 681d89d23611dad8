"""Rule tables: which PyTorch tensor is which Flax parameter, read in both directions, strictly."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.paths import flat as flat_of
from smke_jax.paths import nested

State = Mapping[str, np.ndarray]  # {PyTorch name: array}
ALIGNED = 64  # bytes: JAX takes an array that begins at a multiple of them as it is, without a copy


class Kind(NamedTuple):
    """How one PyTorch tensor becomes one or more Flax arrays, and back; both ways only move numbers about.

    to_flax: gives views, so that nothing of a mapped file is read
    """

    to_flax: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_torch: Callable[..., np.ndarray]


def _one(to_flax, to_torch) -> Kind:
    return Kind(lambda x: (to_flax(x),), to_torch)


def _thirds(x):
    if len(x) % 3:
        raise ValueError(f"{len(x)} rows do not split into q, k and v")
    return np.split(x, 3)


SAME = _one(lambda x: x, lambda x: x)
LINEAR = _one(lambda x: _rank(x, 2).T, lambda x: x.T)  # (out, in) <-> (in, out)
CONV = _one(lambda x: _rank(x, 4).transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
ROW = _one(lambda x: _rank(x, 1)[None, None], lambda x: x[0, 0])  # (D,) <-> (1, 1, D)
FIRST = _one(lambda x: _only(x)[0], lambda x: x[None])  # (1, …) <-> (…)
QKV_LINEAR = Kind(  # rows q | k | v
    lambda x: tuple(part.T for part in _thirds(_rank(x, 2))), lambda *x: np.concatenate([part.T for part in x])
)
QKV = Kind(lambda x: tuple(_thirds(_rank(x, 1))), lambda *x: np.concatenate(x))


def _rank(x, rank):
    if x.ndim != rank:
        raise ValueError(f"it has {x.ndim} dimensions, not {rank}")
    return x


def _only(x):
    if x.shape[:1] != (1,):
        raise ValueError(f"its first dimension is {x.shape[:1]}, not 1")
    return x


class Rule(NamedTuple):
    """`torch` names a tensor, `flax` the parameter(s) it holds; '{i}' in both stands for the layer."""

    torch: str
    flax: str | tuple[str, ...]
    kind: Kind = SAME

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.flax,) if isinstance(self.flax, str) else self.flax


def layer(rules: Iterable[Rule], i: int) -> list[Rule]:
    """The rules of layer `i`, from rules with '{i}'."""
    number = str(i)
    return [
        Rule(rule.torch.replace("{i}", number), tuple(path.replace("{i}", number) for path in rule.paths), rule.kind)
        for rule in rules
    ]


def per_layer(rules: Iterable[Rule], depth: int) -> list[Rule]:
    """The rules of layers 0 … depth-1, from rules with '{i}'."""
    rules = list(rules)
    return [rule for i in range(depth) for rule in layer(rules, i)]


def inside(torch: str, flax: str, rules: Iterable[Rule]) -> list[Rule]:
    """`rules` of a part, for the whole in which its names begin with `torch` and its paths with `flax`."""
    return [Rule(torch + rule.torch, tuple(flax + path for path in rule.paths), rule.kind) for rule in rules]


def linear(torch: str, flax: str, bias: bool = True) -> list[Rule]:
    """nn.Linear <-> Dense."""
    rules = [Rule(f"{torch}.weight", f"{flax}/kernel", LINEAR)]
    return rules + ([Rule(f"{torch}.bias", f"{flax}/bias")] if bias else [])


def layer_norm(torch: str, flax: str) -> list[Rule]:
    """nn.LayerNorm <-> LayerNorm."""
    return [Rule(f"{torch}.weight", f"{flax}/scale"), Rule(f"{torch}.bias", f"{flax}/bias")]


def batch_norm(torch: str, flax: str) -> list[Rule]:
    """nn.BatchNorm2d with its running statistics <-> BatchNorm."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(f"{torch}.{theirs}", f"{flax}/{ours}") for theirs, ours in names.items()]


def _query_key_value(flax: str, name: str) -> tuple[str, ...]:
    return tuple(f"{flax}/{part}/{name}" for part in ("query", "key", "value"))


def qkv(weight: str, bias: str, flax: str) -> list[Rule]:
    """One nn.Linear for q, k and v, or the in_proj of nn.MultiheadAttention <-> Attention."""
    return [
        Rule(weight, _query_key_value(flax, "kernel"), QKV_LINEAR),
        Rule(bias, _query_key_value(flax, "bias"), QKV),
    ]


def qkv_without_key_bias(torch: str, flax: str) -> list[Rule]:
    """BEiT's qkv.weight for all three with q_bias and v_bias beside it <-> Attention with `biases` 'qv'."""
    return [
        Rule(f"{torch}.qkv.weight", _query_key_value(flax, "kernel"), QKV_LINEAR),
        Rule(f"{torch}.q_bias", f"{flax}/query/bias"),
        Rule(f"{torch}.v_bias", f"{flax}/value/bias"),
    ]


def patch_embed(torch: str, flax: str = "patch_embed", bias: bool = True) -> list[Rule]:
    """The strided nn.Conv2d <-> PatchEmbed."""
    return [Rule(f"{torch}.weight", f"{flax}/kernel", CONV)] + ([Rule(f"{torch}.bias", f"{flax}/bias")] if bias else [])


class Layout(NamedTuple):
    """One kind of file.

    name:       what --from calls it
    summary:    what such files are, in a few words
    marks:      names that only this layout has, all of them, after `clean`: how --from=auto knows it
    describe:   (state, config) -> the model's description: {'type': …, its fields}; sizes are read from shapes, what
                shapes do not tell from `config` (the config.json beside the file, or the cfg in it); 'assumed' lists
                the fields that are only usual for such files; raises UserError
    rules:      description -> the table
    clean:      state -> state with wrappers and old names brought to one form
    ignored:    {start or end of a name: why it is not needed}
    constants:  description -> {name: the only value it may have}: checked and not kept; needs not be in the file
    fits:       (state, config) -> whether it can be this layout, where several have the same marks
    """

    name: str
    summary: str
    marks: tuple[str, ...]
    describe: Callable[[State, dict], dict]
    rules: Callable[[dict], list[Rule]]
    clean: Callable[[State], State] = dict
    ignored: Mapping[str, str] = {}
    constants: Callable[[dict], dict[str, np.ndarray]] = lambda description: {}
    fits: Callable[[State, dict], bool] = lambda state, config: True

    def has_marks(self, state: State, config: dict) -> bool:
        """Whether the file's names, as they are, can be of this layout."""
        return set(self.marks) <= set(self.clean(state)) and self.fits(state, config)


def without_prefix(*prefixes: str) -> Callable[[State], State]:
    """A `clean` that takes the first of `prefixes` that any name has off the names that have it."""

    def clean(state: State) -> State:
        for prefix in prefixes:
            if any(name.startswith(prefix) for name in state):
                return {name.removeprefix(prefix): x for name, x in state.items()}
        return dict(state)

    return clean


class Report(NamedTuple):
    """What became of every name in a file."""

    mapped: dict[str, tuple[str, ...]]  # PyTorch name -> Flax paths
    ignored: dict[str, str]  # PyTorch name -> reason
    missing: list[str]
    unexpected: list[str]
    wrong: dict[str, str]  # PyTorch name -> what is wrong with it
    widened: list[str]  # 16-bit floats, made fp32 without loss
    assumed: tuple[str, ...] = ()  # fields of the description that neither the file nor a config beside it says

    @property
    def sound(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong)

    def lines(self, *, detail: bool = False) -> list[str]:
        """For people; `detail` lists the mapped names too."""
        lines = [f"mapped      {len(self.mapped)} tensors"]
        if detail:
            lines += [f"  {name} -> {', '.join(paths)}" for name, paths in self.mapped.items()]
        if self.widened:
            lines.append(f"widened     {len(self.widened)} of them from 16-bit floats to fp32, exactly")
        if self.assumed:
            flags = " and ".join(f"--{name}" for name in self.assumed)
            lines.append(f"assumed     {', '.join(self.assumed)}: not said, so what is usual; {flags} if it is not")
        reasons = sorted(set(self.ignored.values()))
        for reason in reasons:
            names = [name for name, why in self.ignored.items() if why == reason]
            lines.append(f"left out    {len(names)}: {reason} ({names[0]}{', …' if len(names) > 1 else ''})")
        lines += [f"missing     {name}" for name in self.missing]
        lines += [f"unexpected  {name}" for name in self.unexpected]
        lines += [f"wrong       {name}: {what}" for name, what in self.wrong.items()]
        return lines


class Stored:
    """A parameter that lies in its file until it is read.

    shape, dtype: of the parameter
    """

    dtype = np.dtype(np.float32)

    def __init__(self, name: str, part: np.ndarray, check: Callable[[], None]):
        """name: of the tensor in the file, for messages; part: a view of it; check: called before it is read."""
        self.name, self.shape, self._part, self._check = name, part.shape, part, check

    def __getitem__(self, rows: slice) -> "Stored":
        return Stored(self.name, self._part[rows], self._check)

    def read(self) -> np.ndarray:
        """The parameter, fp32 and contiguous; UserError where it holds NaN or infinity, or where its file changed."""
        self._check()
        made = _array(self._part)
        # The extremes are NaN where any number is, and take a third of the time of looking at each.
        if made.size and not np.isfinite([made.min(), made.max()]).all():
            raise UserError(f"{self.name} holds NaN or infinity: fetch or convert the model again")
        return made


def to_flax(
    layout: Layout, state: State, description: dict, shapes: Any, *, stored: Callable[[], None] | None = None
) -> tuple[Any, Report]:
    """(parameters as a nested dict of fp32 arrays, report) of the cleaned `state`.

    shapes: the model's own parameter tree (arrays or ShapeDtypeStructs): what is to come out
    stored: leave each parameter in its file, as `Stored`; it is called before one is read, and NaN is looked for then
    The parameters are whole only where the report is sound.
    """
    want = {path: x.shape for path, x in flat_of(shapes).items()}
    flat: dict[str, Any] = {}
    report = Report({}, {}, [], [], {}, [])
    constants = layout.constants(description)
    rules = {rule.torch: rule for rule in layout.rules(description)}
    report.missing.extend(name for name in rules if name not in state)
    for name, x in state.items():
        if name in rules:
            problem = _take(rules[name], x, want, flat, stored)
            if problem:
                report.wrong[name] = problem
                continue
            report.mapped[name] = rules[name].paths
            if x.dtype.itemsize == 2:
                report.widened.append(name)
        elif name in constants:
            expected = np.asarray(constants[name])
            near = 1e-5 if x.dtype.itemsize > 2 else 2.0**-8  # what bfloat16 makes of a number up to 1
            if x.shape != expected.shape or not np.allclose(x.astype(np.float64), expected, rtol=0, atol=near):
                report.wrong[name] = "a fixed value that differs from the one this model computes"
            else:
                report.ignored[name] = "computed, and checked against the file"
        else:
            matches = (why for part, why in layout.ignored.items() if name.startswith(part) or name.endswith(part))
            why = next(matches, None)
            if why is None:
                report.unexpected.append(name)
            else:
                report.ignored[name] = why
    covered = {path for rule in rules.values() for path in rule.paths}
    if covered != set(want):
        raise AssertionError(f"the table of {layout.name} and its model differ in {sorted(covered ^ set(want))}")
    return nested(flat), report


def _take(rule: Rule, x: np.ndarray, want: Mapping[str, tuple], flat: dict[str, Any], stored) -> str:
    """Adds what `x` holds to `flat`; returns what is wrong with it, or ''."""
    if not np.issubdtype(x.dtype, np.floating) and x.dtype.name != "bfloat16":
        return f"{x.dtype} where a float is expected"
    if x.dtype.itemsize > 4:
        return f"{x.dtype}, which fp32 cannot hold exactly: save the file in fp32"
    if stored is None and not np.isfinite(x).all():
        return "it holds NaN or infinity"
    try:
        parts = rule.kind.to_flax(x)
    except ValueError as error:
        return f"shape {x.shape}: {error}"
    for path, part in zip(rule.paths, parts, strict=True):
        if part.shape != want.get(path, part.shape):
            return f"shape {x.shape} gives {part.shape} for {path}, which is {want[path]}"
        flat[path] = _array(part) if stored is None else Stored(rule.torch, part, stored)
    return ""


def _array(part: np.ndarray) -> np.ndarray:
    """A copy, fp32 and contiguous: what was mapped from a file must not change with the file."""
    size = part.size * np.dtype(np.float32).itemsize
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    made = room[start : start + size].view(np.float32).reshape(part.shape)
    made[...] = part
    return made


def to_torch(layout: Layout, params: Any, description: dict, *, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The state dict of `params` in this layout: contiguous arrays, the exact way back of `to_flax`.

    Raises UserError where the parameters are not those of the description.
    """
    return state_of(layout.rules(description), params, layout.name, dtype=dtype)


def state_of(rules: Iterable[Rule], params: Any, name: str, *, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The same by a table of its own; `name` is what messages call it."""
    flat = flat_of(params)
    rules = list(rules)
    differing = {path for rule in rules for path in rule.paths} ^ set(flat)
    if differing:
        raise UserError(f"these parameters do not fit the layout {name}: {', '.join(sorted(differing)[:8])}")
    state = {rule.torch: rule.kind.to_torch(*(np.asarray(flat[path]) for path in rule.paths)) for rule in rules}
    return {name: np.array(x, dtype, order="C") for name, x in state.items()}

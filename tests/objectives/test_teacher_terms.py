"""Terms that learn from the teacher example by example, whole: halves, sides and levels, against PyTorch."""

import jax
import numpy as np
import pytest

from smke_jax.losses.collective import ALONE
from smke_jax.objectives import TERMS

torch = pytest.importorskip("torch")
F = torch.nn.functional

ROWS, WIDTH = 12, 7
HEADS = ("image/head", "text/head")


def both(loss):
    return lambda x: (loss(x["image/head"], x) + loss(x["text/head"], x)) / 2


def kl(logits, x):
    return F.kl_div(logits.log_softmax(1), x["target/logits"].log_softmax(1), reduction="batchmean", log_target=True)


def related(queries, keys, x):
    """KL of the teacher's cosines over 0.2 and those of the student's queries with its keys over 0.4."""
    queries, keys, taught = (F.normalize(a, dim=1) for a in (queries, keys, x["target/cls"]))
    q, p = (queries @ keys.T / 0.4).log_softmax(1), (taught @ taught.T / 0.2).softmax(1)
    return F.kl_div(q, p, reduction="batchmean")


def ranked(x, level, symmetric):
    """Every image against its own text and each other text, and if `symmetric` the other way round."""
    image, text = (F.normalize(x[f"{side}/{level}"], dim=1) for side in ("image", "text"))

    def one_way(anchors, others):
        own, other = np.nonzero(~np.eye(ROWS, dtype=bool))
        good, bad = (anchors * others).sum(1)[own], (anchors[own] * others[other]).sum(1)
        return F.margin_ranking_loss(good, bad, torch.ones(len(own)), margin=0.3)

    return (one_way(image, text) + one_way(text, image)) / 2 if symmetric else one_way(image, text)


CASES = {
    "kl": ({}, both(kl)),
    "regress": ({}, both(lambda head, x: F.mse_loss(head, x["target/cls"]))),
    "regress, normalised": (
        {"normalise": True},
        both(lambda head, x: F.mse_loss(F.normalize(head, dim=1), F.normalize(x["target/cls"], dim=1))),
    ),
    "relational_kl": (
        {"teacher_temperature": 0.2, "temperature": 0.4},
        lambda x: (related(x["image/out"], x["text/out"], x) + related(x["text/out"], x["image/out"], x)) / 2,
    ),
    "target_code": ({"num_codes": WIDTH}, both(lambda head, x: F.cross_entropy(head, x["target/code"]))),
    "ranking": (
        {"levels": ("out", "head"), "margin": 0.3},
        lambda x: (ranked(x, "out", False) + ranked(x, "head", False)) / 2,
    ),
    "ranking, symmetric": (
        {"levels": ("head",), "margin": 0.3, "symmetric": True},
        lambda x: ranked(x, "head", True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case):
    options, reference = CASES[case]
    term = TERMS[case.partition(",")[0]](**options)
    rng = np.random.default_rng(0)
    reps = {name: rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
            for name in (*HEADS, "image/out", "text/out", "target/cls", "target/logits")}  # fmt: skip
    reps |= {"target/code": rng.integers(0, WIDTH, ROWS), "id": np.arange(ROWS, dtype=np.int32)}
    learned = [name for name in term.needs if name.startswith(("image/", "text/"))]
    rest = {name: x for name, x in reps.items() if name not in learned}
    loss = lambda x: term.value({}, (), x | rest, ALONE)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)({name: reps[name] for name in learned})

    theirs = {name: torch.tensor(x, dtype=torch.float64 if x.dtype == np.float32 else torch.int64)
              for name, x in reps.items()}  # fmt: skip
    for name in learned:
        theirs[name].requires_grad_()
    expected = reference(theirs)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for name in learned:
        np.testing.assert_allclose(gradient[name], theirs[name].grad, atol=1e-6, err_msg=name)

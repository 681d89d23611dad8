"""MoTIS' losses against float64 PyTorch, one query at a time, in value and gradient on 1, 2 and 8 devices."""

import jax
import numpy as np
import pytest
import torch
from over_devices import DEVICES, assert_near, run_together, spread, tensors, unit_rows

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives.hard_itc import hard_itc
from smke_jax.objectives.intra_modal import intra_modal
from smke_jax.objectives.score_kl import score_kl

BATCH, WIDTH, HARD = 8, 4, 3
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4], np.int32)
NAMES = ("image/out", "text/out", "teacher_image/out", "teacher_text/out", "hard/negatives")

rng = np.random.default_rng(0)
IMAGE, TEXT, OLD_IMAGE, OLD_TEXT = (3 * rng.normal(size=(BATCH, WIDTH)).astype(np.float32) for _ in range(4))
NEGATIVES = unit_rows(rng, BATCH, HARD, WIDTH)
LOG_SCALE = np.float32(1.3)

TERMS = {
    "contrastive": intra_modal(temperature=0.2),
    "contrastive, learned, masked": intra_modal(learnable_scale=True, same_image="masked"),
    "mse": intra_modal(loss="mse"),
    "mse of raw rows": intra_modal(loss="mse", normalised=False),
    "kl": score_kl(temperature=0.3, target_temperature=0.1),
    "kl, learned": score_kl(target_temperature=0.1, learnable_scale=True),
    "hard": hard_itc(key="text/out"),
    "hard, fixed": hard_itc(key="text/out", learnable_scale=False, temperature=0.25),
    "hard, folded in": hard_itc(key="text/out", fold="batch", same_image="masked"),
}


def case(term):
    def run(image, text, old_image, old_text, hard, log_scale, ids, scope):
        reps = dict(zip(NAMES, (image, text, old_image, old_text, hard), strict=True)) | {"id": ids}
        params, _ = term.init(jax.random.key(0), reps)
        loss, metrics = term.value(jax.tree.map(lambda start: log_scale, params), (), reps, scope)
        return loss, metrics

    return run


@pytest.fixture(scope="module", params=DEVICES)
def outcomes(request):
    runs = {name: spread(request.param, case(term), whole=(5,)) for name, term in TERMS.items()}
    arrays = (IMAGE, TEXT, OLD_IMAGE, OLD_TEXT, NEGATIVES, LOG_SCALE, IDS)
    return run_together(runs, arrays, to=(0, 1, 2, 3, 4, 5))


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def among(query, right, wrong, scale):
    """-log softmax of `right` among it and `wrong` (n, D)."""
    logits = scale * torch.stack([right, *wrong]) @ query
    return -torch.log_softmax(logits, 0)[0]


def others(i, rows, masked):
    return [rows[j] for j in range(BATCH) if j != i and not (masked and IDS[i] == IDS[j])]


def contrastive(image, text, old_image, old_text, hard, log_scale, *, scale=None, masked=False):
    a, b = unit(image), unit(old_image).detach()
    scale = torch.exp(log_scale) if scale is None else scale
    return torch.stack([among(a[i], b[i], others(i, b, masked), scale) for i in range(BATCH)]).mean()


def mse(image, text, old_image, *rest, raw=False):
    a, b = (image, old_image) if raw else (unit(image), unit(old_image))
    return torch.nn.functional.mse_loss(a, b)


def kl(image, text, old_image, old_text, hard, log_scale, *, scale=None):
    scale = torch.exp(log_scale) if scale is None else scale
    q, p = scale * unit(image) @ unit(text).T, 10 * unit(old_image).detach() @ unit(old_text).detach().T

    def rows(q, p):
        return torch.nn.functional.kl_div(
            torch.log_softmax(q, 1), torch.log_softmax(p, 1), log_target=True, reduction="batchmean"
        )

    return (rows(q, p) + rows(q.T, p.T)) / 2


def hard(image, text, old_image, old_text, hard, log_scale, *, scale=None, folded=False):
    a, b, hard = unit(image), unit(text), hard.detach()
    scale = torch.exp(log_scale) if scale is None else scale
    more = (lambda i: others(i, b, True)) if folded else (lambda i: [])
    loss = torch.stack([among(a[i], b[i], [*hard[i], *more(i)], scale) for i in range(BATCH)]).mean()
    if folded:
        loss = loss + torch.stack([among(b[i], a[i], others(i, a, True), scale) for i in range(BATCH)]).mean()
    return loss


REFERENCES = {
    "contrastive": lambda *x: contrastive(*x, scale=5.0),
    "contrastive, learned, masked": lambda *x: contrastive(*x, masked=True),
    "mse": mse,
    "mse of raw rows": lambda *x: mse(*x, raw=True),
    "kl": lambda *x: kl(*x, scale=1 / 0.3),
    "kl, learned": kl,
    "hard": hard,
    "hard, fixed": lambda *x: hard(*x, scale=4.0),
    "hard, folded in": lambda *x: hard(*x, folded=True),
}


@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradient(outcomes, name):
    given = tensors(IMAGE, TEXT, OLD_IMAGE, OLD_TEXT, NEGATIVES, LOG_SCALE)
    expected = REFERENCES[name](*given)
    expected.backward()
    (value, _), gradients = outcomes[name]
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for place, (ours, theirs) in enumerate(zip(gradients, given, strict=True)):
        if theirs.grad is None or place in (2, 3, 4):
            assert not np.any(ours), f"{place} gets no gradient"
        else:
            assert_near(ours, theirs.grad.numpy(), 2e-5)
    assert np.any(gradients[0])


def test_one_direction_is_not_the_other(outcomes):
    there = outcomes["contrastive"][0][0]
    back = contrastive(*map(torch.tensor, (OLD_IMAGE, TEXT, IMAGE, OLD_TEXT, NEGATIVES, LOG_SCALE)), scale=5.0)
    assert abs(there - back.item()) > 1e-2


def test_the_teacher_itself_has_the_least_loss_and_no_kl():
    reps = {"image/out": OLD_IMAGE, "text/out": OLD_TEXT, "teacher_image/out": OLD_IMAGE, "teacher_text/out": OLD_TEXT}
    same, other = score_kl(temperature=0.1, target_temperature=0.1), {**reps, "image/out": IMAGE}
    assert abs(same.value({}, (), reps, ALONE)[0]) < 1e-6 < same.value({}, (), other, ALONE)[0]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: intra_modal(loss="l1"), "loss is 'l1': give contrastive or mse"),
        (lambda: intra_modal(temperature=0.0), "temperature is 0.0: it has to be above 0"),
        (lambda: score_kl(target_temperature=-1.0), "target_temperature is -1.0: it has to be above 0"),
        (lambda: hard_itc(fold="both"), "fold is 'both': give separate or batch"),
    ],
)
def test_what_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        wrong()


def test_a_student_of_another_width_is_refused_by_name():
    shapes = {name: jax.ShapeDtypeStruct((2, WIDTH), np.float32) for name in NAMES[:4]}
    shapes["image/out"] = jax.ShapeDtypeStruct((2, 6), np.float32)
    with pytest.raises(UserError, match="image/out has 6 channels and teacher_image/out 4: set the student's width=4"):
        intra_modal().init(jax.random.key(0), shapes)

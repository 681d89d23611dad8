"""S-SMKE on codes takes them from the run that learned them, with the teacher that they were learned with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import tiny_pairs

from smke_jax.convert.params_file import load_params, read_description, save_params
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.models.quantizer import Quantizer
from smke_jax.models.teachers import build_teacher
from smke_jax.parts import part
from smke_jax.training.build import build_part
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.opening import open_run
from smke_jax.training.restore import restore_run

SIZES = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "image_size": 32, "patch_size": 16}
CODES, DIM = 12, 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A file of random weights."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = {"type": "beit", **SIZES, "mean": [0.5] * 3, "std": [0.5] * 3}
    params = jax.jit(build_teacher(model).init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    save_params(path, params, {"model": model})
    return str(path)


def learning(teacher):
    """A run that learns codes."""
    form = form_of("smoke")
    c = form.run()
    c.update(batch_size=8, total_steps=2, num_devices=2)
    c.log.report = False
    c.task = form.images()
    c.task.source = "tiny"
    c.networks.teacher = part("frozen", start=teacher)
    c.networks.codes = part("autoencoder", num_codes=CODES, code_dim=DIM, num_heads=2, mlp_dim=16)
    c.terms.image_vq = part("image_vq")
    return c


@pytest.fixture(scope="module")
def codes_run(tmp_path_factory, teacher):
    workdir = tmp_path_factory.mktemp("image_vq")
    assert train_and_evaluate(learning(teacher), workdir).step == 2
    export_run(workdir, workdir / "export")
    return workdir


def using(teacher, codes, **fields):
    """A student of matrices that learns these codes."""
    c = tiny_pairs()
    del c.networks.net, c.networks.target, c.terms.itc, c.terms.target_itc
    c.networks.student = part("pixels_and_words", width=CODES)
    c.networks.teacher = part("frozen", start=teacher)
    c.networks.quantizer = part("quantizer", start=str(codes), **{"num_codes": CODES, "code_dim": DIM} | fields)
    c.terms.target_code = part("target_code")
    return c


def test_its_targets_are_the_codes_of_the_run(teacher, codes_run):
    run, export = restore_run(codes_run), load_params(codes_run / "export")
    assert export["codes"].shape == (CODES, DIM)
    quantizer = build_part("networks", "quantizer", using(teacher, codes_run / "export").networks.quantizer)
    shapes = jax.eval_shape(lambda: quantizer.init(jax.random.key(0), {"target/cls": jnp.zeros((2, 16))}))
    params = quantizer.start(shapes).params
    np.testing.assert_array_equal(params["codes"], export["codes"])

    # Through the passes of the run that learned them, the nearest code is the one that the frozen codes name.
    rng = np.random.default_rng(0)
    cls, patches = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 16), (16, 4, 16)))
    learned = next(p for p in run.experiment.recipe.passes if p.name == "codes")
    arrays = {"target/cls": cls, "target/patches": patches}
    borrowed = {"codes": run.params["codes"], "slots/image_vq": {"codes": jnp.asarray(params["codes"])}}
    made = jax.jit(lambda key: learned.run(borrowed, arrays, key, True))(jax.random.key(0))
    code = Quantizer(CODES, DIM).apply({"params": params}, cls)
    np.testing.assert_array_equal(code, np.argmax(made["code/similarity"], axis=1))
    assert len(set(np.asarray(code).tolist())) > 1


def test_a_run_records_them_and_the_codes_are_not_trained(teacher, codes_run, tmp_path):
    plan = open_run(using(teacher, codes_run / "export"), tmp_path)
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert len(identity["quantizer weights"]) == 64 and identity["teacher form"] == "final_norm=True"
    assert set(plan.abstract.params) == {"student", "terms"}
    assert plan.experiment.shapes.arrays["target/code"].dtype == jnp.int32


def refused(config, workdir) -> str:
    with pytest.raises(UserError) as error:
        open_run(config, workdir)
    assert "\n" not in str(error.value) and not (workdir / "run.json").exists()
    return str(error.value)


def test_codes_belong_to_their_teacher_whatever_it_is_called(teacher, codes_run, tmp_path):
    """The name is another one in the run that learned the codes, in the one that uses them, or in both."""
    description = read_description(codes_run / "export")
    text = json.dumps(description["source"])
    source = json.loads(text.replace('"teacher ', '"oracle ').replace(".teacher.", ".oracle."))
    renamed = tmp_path / "renamed.safetensors"
    save_params(renamed, load_params(codes_run / "export"), description | {"source": source})
    for i, codes in enumerate((codes_run / "export", renamed)):
        for name in ("teacher", "wise"):
            own = using(teacher, codes)
            del own.networks.teacher
            other = own.copy_and_resolve_references()
            own.networks[name] = part("frozen", start=teacher)
            open_run(own, tmp_path / f"{i} {name}")
            other.networks[name] = part("frozen", start="random", model=part("beit", **SIZES))
            message = refused(other, tmp_path / f"{i} {name} of another")
            assert f"made with another {name} weights" in message


def test_what_does_not_go_together_is_refused(teacher, codes_run, tmp_path):
    codes, other = codes_run / "export", tmp_path / "other.safetensors"
    random = using(teacher, codes)
    random.networks.teacher = part("frozen", start="random", model=part("beit", **SIZES))
    assert "config.networks.quantizer starts from a file that was made with another teacher weights" in refused(
        random, tmp_path / "a"
    )
    without_norm = using(teacher, codes)
    without_norm.networks.teacher.final_norm = False
    message = refused(without_norm, tmp_path / "b")
    assert "another teacher form (final_norm=True there, final_norm=False here)" in message
    message = refused(using(teacher, codes, code_dim=5), tmp_path / "c")
    assert f"config.networks.quantizer: code_dim is 5 and was {DIM} in {codes}: set it so" in message
    assert "no weights at nowhere" in refused(using(teacher, "nowhere"), tmp_path / "d")
    save_params(other, {"w": np.zeros(2)}, {"model": {"type": "beit"}})
    assert "holds a model of type 'beit' and no codes" in refused(using(teacher, other), tmp_path / "e")
    narrow = using(teacher, codes)
    narrow.networks.student.width = 7
    message = refused(narrow, tmp_path / "f")
    assert f"config.terms.target_code: image/head has 7 channels for {CODES} codes: set the student's head=" in message

"""The student's forward with the moving average of its parameters: a momentum encoder (spec 12)."""

from smke_jax.passes.base import Average, Pass


def momentum_pass(student: Pass, decay: float) -> Pass:
    """Everything that `student` makes, under 'momentum/<name>' and without gradient.

    The average θ' ← decay · θ' + (1 - decay) · θ comes first in the step, from the parameters before their update, and
    the pass runs without dropout.  Source: MoCo (He et al. 2020), eq. 2.
    """

    def run(params, batch, key, train):
        return {f"momentum/{name}": x for name, x in student.run(params, batch, key, train).items()}

    names = tuple(f"momentum/{name}" for name in student.provides)
    return Pass("momentum", names, False, student.init, run, average=Average(student.name, decay))

"""The pictures of a gallery are read one after another, as often as they are asked for."""

from smke_jax.data.gallery import Pictures


def test_pictures_are_decoded_when_they_are_asked_for():
    decoded = []
    found = Pictures(["a", "b", "c"], [2, 0], lambda example: decoded.append(example) or example)
    assert next(iter(found)) == "c" and decoded == ["c"]
    assert list(found) == list(found) == ["c", "a"], "each model has to see all of them"

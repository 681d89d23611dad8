"""The half of a model that reads texts gives what the whole model gives."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_export import save_model

import smke_jax
from smke_jax.errors import UserError
from smke_jax.search import words_files
from smke_jax.search.words import keep, load

TEXTS = ["red dog", "snow", "a red dog runs over the blue snow over the red dog and more than it reads", ""]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return smke_jax.load(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def index(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    keep(folder, embedder.text_half(), embedder.digest)
    return folder


def test_texts_have_the_embeddings_of_the_model(index, embedder):
    words = load(index, embedder.digest)
    np.testing.assert_allclose(words.encode_texts(TEXTS), embedder.encode_texts(TEXTS), atol=1e-5)
    with pytest.raises(UserError, match="the text cannot be read: character 2 is half a surrogate pair"):
        words.encode_texts(["a \ud83d"])


def test_what_sees_photos_is_left_out(index, embedder):
    from safetensors.numpy import load_file

    held = sum(x.size for x in load_file(index / "words/params.safetensors").values())
    networks = embedder._networks.params["embedder"]
    assert held == sum(
        x.size
        for name in ("text_encoder", "shared", "type_embedding", "type_scale")
        for x in jax.tree.leaves(networks[name])
    )


def test_it_is_written_once(index, embedder):
    before = (index / "words/about.json").stat().st_ino
    keep(index, embedder.text_half(), embedder.digest)
    assert (index / "words/about.json").stat().st_ino == before


@pytest.mark.parametrize("field", ["digest", "jax", "platform", "crc"])
def test_of_another_model_jax_or_device_it_is_not_used(index, embedder, field, tmp_path):
    keep(tmp_path, embedder.text_half(), embedder.digest)
    path = tmp_path / "words/about.json"
    about = json.loads(path.read_text())
    (about if field == "crc" else about["made_for"])[field] = "another"
    path.write_text(json.dumps(about))
    assert load(tmp_path, embedder.digest) is None
    path.write_text("{")
    assert load(tmp_path, embedder.digest) is None
    keep(tmp_path, embedder.text_half(), embedder.digest)
    assert load(tmp_path, embedder.digest) is not None


def test_the_compiled_program_is_found_again(index, embedder, program_cache, monkeypatch):
    compiled = load(index, embedder.digest).encode_texts(TEXTS)
    assert len(list(program_cache.glob("smke-words-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(jax.export, "deserialize", None)  # so it cannot be compiled
        np.testing.assert_array_equal(load(index, embedder.digest).encode_texts(TEXTS), compiled)
        patch.setenv("XLA_FLAGS", "--another")
        with pytest.raises(TypeError):
            load(index, embedder.digest)


def test_a_damaged_compiled_program_is_made_anew(index, embedder, program_cache, caplog):
    whole = load(index, embedder.digest).encode_texts(TEXTS)
    (path,) = program_cache.glob("smke-words-*")
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(load(index, embedder.digest).encode_texts(TEXTS), whole)
    assert "is made anew" in caplog.text and path.stat().st_size > 1000


def test_parameters_stay_in_their_file(index):
    """JAX takes what is aligned as it is, so a search reads each byte once."""
    for x in words_files.read(index).params:
        assert not x.flags.owndata
    first = words_files.read(index).params[0]
    assert first.ctypes.data % 64 == 0 and jax.device_put(first).unsafe_buffer_pointer() == first.ctypes.data


def test_a_damaged_file_is_not_used(index, embedder, tmp_path):
    for name in (words_files.FUNCTION, words_files.PARAMS, words_files.TOKENIZER):
        shutil.copytree(index, tmp_path / name)
        path = tmp_path / name / words_files.WORDS / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert words_files.read(tmp_path / name) is None
    path.write_bytes(b"")
    assert words_files.read(tmp_path / name) is None


def test_nothing_kept_is_nothing(tmp_path):
    assert load(tmp_path, "x") is None

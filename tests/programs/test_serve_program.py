"""`smke serve` with the smallest model: what it serves, and how it begins and ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import jax
import numpy as np
import pytest
from made_up import jpeg
from tiny_export import save_model

from smke_jax.__main__ import main
from smke_jax.convert.params_file import save_params
from smke_jax.models.build import param_shapes
from smke_jax.programs import serve
from smke_jax.search.server import Server


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with model, photos and index: not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "model")
    (folder / "photos").mkdir()
    for seed in range(5):
        (folder / f"photos/{seed}.jpg").write_bytes(jpeg(seed))
    assert main(["index", *(f"--{x}={folder / x}" for x in ("model", "photos")), f"--out={folder / 'index'}"]) == 0
    return folder


@pytest.fixture
def served(monkeypatch) -> list[dict]:
    """What the pages that were served are about; each ends at once, as by Ctrl-C."""
    found = []

    def serve_forever(server):
        found.append(server.site.about())
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve_forever)
    return found


def fetch(address: str):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_the_page_answers_as_search_does_until_ctrl_c(made, tmp_path, capsys, interruptible):
    environment = os.environ | {"BROWSER": f"{sys.executable} {tmp_path}/browser.py %s"}
    (tmp_path / "browser.py").write_text(
        f"import sys, urllib.request\nurllib.request.urlopen(sys.argv[1])\nopen({str(tmp_path / 'opened')!r}, 'w')"
    )
    command = [sys.executable, "-m", "smke_jax", "serve", f"--index={made / 'index'}", "--port=0", "--open"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.fullmatch(r"5 photos at (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops\)\n", line)[1]
            for text in ("red dog", "snow"):
                hits = fetch(f"{address}search?{urlencode({'q': text, 'all': 1})}")["hits"]
                capsys.readouterr()
                main(["search", text, f"--index={made / 'index'}", "--min_score=-1", "--json"])
                expected = json.loads(capsys.readouterr().out)["hits"]
                assert [hit["path"] for hit in hits] == [hit["path"] for hit in expected]
                np.testing.assert_allclose(*([hit["score"] for hit in x] for x in (hits, expected)), atol=6e-4)
            until = time.monotonic() + 60
            while not (tmp_path / "opened").is_file() and time.monotonic() < until:  # the browser takes its time
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert (tmp_path / "opened").is_file()


class AtOnce(threading.Thread):
    """A thread that ends before `start` returns."""

    def start(self):
        super().start()
        self.join()


def test_without_a_browser_the_address_is_named(made, served, monkeypatch, capsys):
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    # The thread of the browser ends before main does only here.
    monkeypatch.setattr(serve, "threading", SimpleNamespace(Thread=AtOnce))
    assert main(["serve", f"--index={made / 'index'}", "--port=0", "--open"]) == 0
    assert re.fullmatch(r"no browser was found: open http://127\.0\.0\.1:\d+/ yourself\n", capsys.readouterr().err)


def test_the_model_may_have_moved(made, served, tmp_path, fails):
    out = shutil.copytree(made / "index", tmp_path / "index")
    shutil.rmtree(out / "words")
    about = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(about | {"model": str(tmp_path / "gone")}))
    assert "--model=… says where it is now" in fails("serve", f"--index={out}", "--port=0")
    assert main(["serve", f"--index={out}", f"--model={made / 'model'}", "--port=0"]) == 0
    assert served[0]["reads_texts"] and served[0]["count"] == 5


def test_an_image_teacher_shows_similar_photos_alone(made, served, tmp_path):
    beit = {"type": "beit", "image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    beit |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), param_shapes(beit))
    save_params(tmp_path / "params.safetensors", params, {"model": beit})
    assert main(["index", f"--model={tmp_path}", f"--photos={made / 'photos'}", f"--out={tmp_path / 'index'}"]) == 0
    assert main(["serve", f"--index={tmp_path / 'index'}", "--port=0"]) == 0
    assert not served[0]["reads_texts"]


def test_mistakes_are_one_line(made, fails, tmp_path):
    assert "holds no index: make one" in fails("serve", f"--index={tmp_path}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails("serve", f"--index={made / 'index'}", f"--port={port}")
    assert line == f"error: port {port} cannot be had (Address already in use): give another by --port=…, 0 for any"
    assert "'65536' is no port" in fails("serve", f"--index={made / 'index'}", "--port=65536")

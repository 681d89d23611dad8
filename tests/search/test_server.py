"""What the local page's server answers, and what it refuses."""

import concurrent.futures
import http.client
import io
import json
import os
import socket
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from planted import embedding, picture, run
from served import Reader, index_photos, serving

from smke_jax.errors import UserError
from smke_jax.search.server import Server
from smke_jax.search.site import PAGE, Site

SCRIPT = "<script>alert(1)</script>"
NAMES = {f"{folder}/{i}.png": 100 * len(folder) + i for folder in ("a", "b b", "a/deep") for i in range(20)}
NAMES |= {SCRIPT.replace("/", "") + ".png": 999}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(photos, index): not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    index_photos(folder / "photos", folder / "index", NAMES)
    return folder / "photos", folder / "index"


@pytest.fixture(scope="module")
def server(made):
    with serving(made[1], Reader()) as server:
        yield server


@pytest.fixture
def own(tmp_path):
    """(photos, index) to change."""
    index_photos(tmp_path / "photos", tmp_path / "index", {f"{i}.png": i for i in range(10)})
    return tmp_path / "photos", tmp_path / "index"


def ask(server, path: str, method: str = "GET", **headers) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def search(server, status: int = 200, **fields) -> dict:
    found, content, _ = ask(server, f"/search?{urlencode({k.rstrip('_'): v for k, v in fields.items()})}")
    assert found == status, content
    return json.loads(content)


def error(server, path: str, **headers) -> tuple[int, str]:
    status, content, _ = ask(server, path, **headers)
    return status, json.loads(content)["error"]


def names(answer: dict) -> list[str]:
    return [hit["path"].rpartition("photos/")[2] for hit in answer["hits"]]


def test_a_text_finds_its_photo_and_few_others(server):
    answer = search(server, q="photo 307")
    seeds = [NAMES[name] for name in names(answer)]
    cosines = [float(embedding(picture(307)) @ embedding(picture(seed))) for seed in seeds]
    assert seeds[0] == 307
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], cosines, atol=3e-3)
    assert len(seeds) < 30 and answer["others"] and not answer["more"]
    assert answer["message"] == f"{len(answer['hits'])} photos of 61 answer “photo 307”"


def test_a_text_without_an_answer_can_show_all(server, monkeypatch):
    monkeypatch.setattr("smke_jax.search.cutoff.ABOVE_CHANCE", 100.0)
    answer = search(server, q="photo 5000")
    assert answer["message"] == "No photo of 61 answers “photo 5000”" and not answer["hits"] and answer["others"]
    answer = search(server, q="photo 5000", all=1)
    assert answer["message"] == "61 photos, the closest to “photo 5000” first" and not answer["others"]
    assert len(answer["hits"]) == PAGE and answer["more"]


def test_pages_follow_each_other(server):
    first = search(server)
    rest = search(server, from_=PAGE)
    assert first["message"] == "61 photos, the newest first" and first["more"] and not rest["more"]
    assert len({hit["key"] for hit in first["hits"] + rest["hits"]}) == 61
    assert search(server, from_=500)["hits"] == []


def test_similar_photos_come_without_the_photo_itself(server):
    hit = search(server, q="photo 107")["hits"][0]
    answer = search(server, like=hit["key"])
    assert hit["key"] not in {other["key"] for other in answer["hits"]} and len(answer["hits"]) == PAGE
    cosines = {name: float(embedding(picture(107)) @ embedding(picture(seed))) for name, seed in NAMES.items()}
    best = sorted(cosines, key=cosines.get)[-2]
    assert names(answer)[0] == best
    assert answer["message"] == "60 photos, the most similar first" and answer["like"]["name"] == hit["name"]


def test_folders_and_dates(own, made, server):
    about = json.loads(ask(server, "/about")[1])
    assert about["count"] == 61 and about["reads_texts"]
    assert [(x["name"], x["count"]) for x in about["folders"]] == [("a", 40), ("a/deep", 20), ("b b", 20)]
    for folder in about["folders"]:
        answer = search(server, folder=folder["id"])
        assert answer["message"].startswith(f"{folder['count']} photos")
        assert all(name.startswith(folder["name"] + "/") for name in names(answer))
    photos, out = own
    (photos / "3.png").write_bytes(picture(3, taken="2024:05:06 23:59:59"))
    run(photos, out)
    with serving(out, Reader()) as other:
        assert names(search(other))[0] == "3.png"
        assert names(search(other, since="2024-05-06", until="2024-05-06")) == ["3.png"]
        assert "No photo lies there" in search(other, since="2024-05-07")["message"]
        assert len(search(other, until="2024-05-05")["hits"]) == 9
        assert search(other, 400, since="soon")["error"] == "'soon' is no date: give YYYY-MM-DD"


def test_a_folder_whose_name_is_no_text(tmp_path):
    index_photos(tmp_path / "photos", tmp_path / "index", {"\udcff\n/1.png": 1, "2.png": 2})
    with serving(tmp_path / "index") as server:
        [folder] = json.loads(ask(server, "/about")[1])["folders"]
        assert folder == {"id": "%FF%0A", "name": r"\udcff\n", "count": 1}
        [hit] = search(server, folder=folder["id"])["hits"]
        assert hit["path"].endswith(r"/\udcff\n/1.png")
        assert ask(server, f"/thumbnail/{hit['key']}")[0] == 200


def test_pictures_are_jpegs_of_bounded_size_without_metadata(own):
    photos, out = own
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    Image.new("RGB", (3000, 500)).save(photos / "0.png", "JPEG", exif=exif)
    Image.new("RGBA", (300, 500)).save(photos / "1.png")
    with serving(out) as server:
        keys = {hit["name"]: hit["key"] for hit in search(server)["hits"]}
        for place, side in (("thumbnail", 400), ("photo", 1600)):
            status, content, headers = ask(server, f"/{place}/{keys['0.png']}")
            image = Image.open(io.BytesIO(content))
            assert (status, image.format, max(image.size), len(image.getexif())) == (200, "JPEG", side, 0)
            assert b"secret" not in content and headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(ask(server, f"/photo/{keys['1.png']}")[1])).size == (300, 500)


def test_a_photo_that_is_gone_or_damaged_says_so(own):
    photos, out = own
    with serving(out, Reader()) as server:
        keys = {hit["name"]: hit["key"] for hit in search(server)["hits"]}
        (photos / "3.png").unlink()
        (photos / "4.png").write_bytes(b"no photo")
        assert error(server, f"/thumbnail/{keys['3.png']}") == (
            404, "the photo cannot be shown: No such file or directory",
        )  # fmt: skip
        assert error(server, f"/photo/{keys['4.png']}") == (404, "the photo cannot be shown: not an image file")
        answer = search(server)
        assert len(answer["hits"]) == 9
        assert answer["notes"] == ["left out because their files are gone: 1; run `smke index` again"]
        assert [hit["name"] for hit in search(server, like=keys["3.png"])["hits"]]  # its row is still there


def test_the_page_follows_its_index(own, tmp_path):
    photos, out = own
    with serving(out, Reader()) as server:
        keys = {hit["name"]: hit["key"] for hit in search(server)["hits"]}
        (photos / "5.png").write_bytes(picture(55))
        (photos / "6.png").unlink()
        (photos / "new.png").write_bytes(picture(66))
        run(photos, out)
        found = {hit["name"]: hit["key"] for hit in search(server)["hits"]}
        assert (
            found.keys() == keys.keys() - {"6.png"} | {"new.png"}
            and json.loads(ask(server, "/about")[1])["count"] == 10
        )
        for key in (keys["5.png"], keys["6.png"]):
            assert error(server, f"/thumbnail/{key}") == (404, "the index has no such photo")
            assert search(server, 400, like=key)["error"] == "that photo is no more in the index"
        about = json.loads((out / "index.json").read_text())
        (out / "index.json").write_text(json.dumps(about | {"digest": "another"}))
        assert "made anew by another model: start `smke serve` again" in search(server, 400)["error"]


PAGES = ("/", "/about", "/search?q=photo+1", "/thumbnail/KEY", "/photo/KEY")


def pages(server) -> list[str]:
    key = search(server)["hits"][0]["key"]
    return [page.replace("KEY", key) for page in PAGES]


def test_the_server_listens_on_this_machine_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1.evil.example:PORT",
                                  "localhost:1", "", "[::1]:PORT", "127.0.0.1:PORT, localhost:PORT"])  # fmt: skip
def test_another_host_name_gets_nothing(server, host):
    """A site may have its own name point to 127.0.0.1 (DNS rebinding)."""
    for page in pages(server):
        assert error(server, page, Host=host.replace("PORT", str(server.server_address[1])))[0] == 421


def test_names_of_this_machine_are_answered(server):
    port = server.server_address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        for page in pages(server):
            assert ask(server, page, Host=host, Origin=f"http://{host.lower()}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:PORT"},
    {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://localhost:PORT"}, {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none", "Origin": "http://evil.example"},
])  # fmt: skip
def test_another_origin_gets_nothing(server, headers):
    headers = {name: value.replace("PORT", str(server.server_address[1])) for name, value in headers.items()}
    for page in pages(server):
        status, why = error(server, page, **headers)
        assert status == 403 and why.startswith("other sites get nothing here")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(server, method):
    for page in pages(server):
        status, _, headers = ask(server, page, method)
        assert (status, headers["Allow"], headers["Connection"]) == (405, "GET, HEAD", "close")


def test_head_gives_the_headers_of_get(server):
    for page in pages(server):
        (status, content, headers), (_, whole, others) = ask(server, page, "HEAD"), ask(server, page)
        assert (status, content) == (200, b"") and headers["Content-Length"] == str(len(whole))
        assert {*headers} == {*others}


@pytest.mark.parametrize("path", [
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/thumbnail/../../../etc/passwd", "/thumbnail/..%2f..%2fetc",
    "/photo//etc/passwd", "/photo/a/0.png", "/photo/0.png", "/index.json", "/rows.bin", "/photo/index.json", "/photo/",
    "/photo", "/photo/0", "/photo/0-00000000", "/photo/-1-00000000", "/photo/99999-00000000", "/photo/KEYx",
    "/photo/KEY/", "/photo/%00", "/photo/١-00000000", "/favicon.ico", "/search/", "/abouts", "//etc/passwd",
    "http://127.0.0.1/about", "http://[x", "*", "/photo/99999999999999999999999-00000000",
])  # fmt: skip
def test_what_is_not_in_the_index_is_not_there(server, path):
    path = path.replace("KEY", search(server)["hits"][0]["key"]).encode().decode("latin-1")
    with socket.create_connection(server.server_address, timeout=10) as link:  # clients tidy paths up
        host = f"127.0.0.1:{server.server_address[1]}"
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ") and b'{"error": "' in answer


def test_long_and_odd_queries_get_a_clear_answer(server):
    assert search(server, 400, q="x" * 10_000)["error"] == (
        "the text has 10,000 characters: 1,000 are the most; one sentence is best"
    )
    status, why = error(server, f"/search?q={'%F0%9F%90%95' * 10_000}")
    assert status == 414 and "Too Long" in why
    assert (
        search(server, q=f"{SCRIPT} photo 1", all=1)["message"] == f"61 photos, the closest to “{SCRIPT} photo 1” first"
    )
    assert search(server, q="   ")["message"] == "61 photos, the newest first"
    assert search(server, 400, from_="-1")["error"] == "'from' is no number of photos"
    assert "no photo of the index lies in that folder" in search(server, 400, folder="../..")["error"]
    assert "too many parts" in error(server, "/search?" + "&".join(["q=a"] * 20))[1]
    assert ask(server, "/search?q=photo+1&q=%ff%00+photo+2&from=")[0] == 200


@pytest.mark.parametrize("request_", [
    b"GET /\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n",
])  # fmt: skip
def test_what_is_no_request_gets_an_error(server, request_):
    with socket.create_connection(server.server_address, timeout=10) as link:
        link.sendall(request_)
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert b'"error"' in answer and b"<!DOCTYPE" not in answer


def test_a_body_is_refused(server):
    for headers in ({"Content_Length": "5"}, {"Transfer_Encoding": "chunked"}):
        status, _, answered = ask(server, "/about", **headers)
        assert status == 400 and answered["Connection"] == "close"


def test_every_answer_has_the_headers_that_keep_browsers_safe(server):
    for page in [*pages(server), "/nothing", "/search?from=x"]:
        headers = ask(server, page)[2]
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == policy["img-src"] == "'self'"
        assert {policy[x] for x in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert all(policy[x].startswith("'sha256-") and "unsafe" not in policy[x] for x in ("script-src", "style-src"))
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


def test_many_at_once(own):
    reader, (_, out) = Reader(), own
    with serving(out, reader) as server:
        keys = [hit["key"] for hit in search(server)["hits"]]
        paths = [f"/search?q=photo+{i % 10}&all=1" for i in range(40)] + [f"/photo/{keys[i % 10]}" for i in range(40)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda path: ask(server, path)[:2], paths))
    assert {status for status, _ in found} == {200} and reader.at_once == 1
    for i, (_, content) in enumerate(found[:40]):
        assert json.loads(content)["hits"][0]["name"] == f"{i % 10}.png"


def test_a_model_without_texts_finds_similar_photos(own):
    with serving(own[1], None) as server:
        assert not json.loads(ask(server, "/about")[1])["reads_texts"]
        assert "reads no texts: choose a photo" in search(server, 400, q="photo 1")["error"]
        assert search(server, like=search(server)["hits"][0]["key"])["hits"]


def test_a_browser_that_leaves_prints_nothing(own, capfd):
    with serving(own[1]) as server:
        for _ in range(3):
            link = socket.create_connection(server.server_address)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() resets the connection
            link.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n\r\n".encode())
            link.close()
        assert ask(server, "/about")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_named(server, made):
    port = server.server_address[1]
    with pytest.raises(UserError, match=rf"port {port} cannot be had \(Address .* in use\): give another"):
        Server(Site(made[1], None), port)


def test_no_photos_are_refused(tmp_path, own):
    photos, out = own
    with pytest.raises(UserError, match="holds no index"):
        Site(tmp_path / "none", None)
    os.rename(photos, tmp_path / "disk")
    with pytest.raises(UserError, match="connect its disk"):
        Site(out, None)

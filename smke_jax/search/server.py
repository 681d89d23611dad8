"""The local page over HTTP, for browsers on this machine alone.

What keeps others out: the server listens on 127.0.0.1; a request under another host name is refused, so that no site
reaches the server by pointing a name of its own to this address; a request that another origin has caused is refused;
only GET and HEAD are answered; no path of a file is read from a request; every picture is made anew as a JPEG.  The
page runs its own script and style alone, which its policy names by their hashes.  Other users of this machine are not
kept out.
"""

import base64
import hashlib
import importlib.resources
import json
import logging
import re
import socketserver
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

from smke_jax.errors import UserError
from smke_jax.search.site import LARGE, SMALL, NotThere, Site

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # what a browser may call this server
WAITS = 30  # seconds, for a request that was begun
LOG = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """Serves a `Site`, each connection in a thread of its own.

    address: of the page
    """

    def __init__(self, site: Site, port: int):
        """`port`: 0 for any that is free.  UserError where the port cannot be had."""
        self.site = site
        self.page = importlib.resources.files("smke_jax.search").joinpath("local_page.html").read_bytes()
        self.policy = _policy(self.page.decode())
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = error.strerror or str(error)
            raise UserError(f"port {port} cannot be had ({why}): give another by --port=…, 0 for any") from None
        number = self.server_address[1]
        self.hosts = {f"{name}:{number}" for name in NAMES} | (set(NAMES) if number == 80 else set())
        self.address = f"http://{HOST}:{number}/"

    def server_bind(self) -> None:
        # HTTPServer would ask the network for this machine's name.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser may leave at any time
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version, server_version, sys_version = "HTTP/1.1", "smke", ""
    timeout = WAITS

    def do_GET(self) -> None:
        try:
            self._check()
            kind, content = self._content()
        except _Refused as refusal:
            self.close_connection = True  # a body may follow, which is not read
            self._send_error(refusal.status, str(refusal))
        except NotThere as error:
            self._send_error(HTTPStatus.NOT_FOUND, str(error))
        except UserError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._send(HTTPStatus.OK, kind, content)

    do_HEAD = do_GET

    def send_error(self, code, message=None, explain=None) -> None:
        """What the parser of requests and unknown methods end in."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send_error(status, status.phrase)

    def log_message(self, format, *args) -> None:
        LOG.debug("%s", format % args)

    def _check(self) -> None:
        """Raises _Refused for a request that is not of the page itself, or not of a person who opens the page."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, f"open the page as {self.server.address}")
        origins = self.headers.get_all("Origin", [])
        sites = self.headers.get_all("Sec-Fetch-Site", [])
        own = f"http://{hosts[0].lower()}"
        if any(x.lower() != own for x in origins) or any(x not in ("same-origin", "none") for x in sites):
            raise _Refused(HTTPStatus.FORBIDDEN, f"other sites get nothing here: open {self.server.address} itself")
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            raise _Refused(HTTPStatus.BAD_REQUEST, "a request has no body here")

    def _content(self) -> tuple[str, bytes]:
        """(type, content) of what was asked for."""
        site, (path, _, query) = self.server.site, self.path.partition("?")
        place, _, key = path.removeprefix("/").partition("/")
        if path == "/":
            return "text/html; charset=utf-8", self.server.page
        if path == "/about":
            return "application/json", _json(site.about())
        if path == "/search":
            return "application/json", _json(site.search(_fields(query)))
        if place in PICTURES:
            return "image/jpeg", site.picture(key, PICTURES[place])
        raise NotThere("there is no such page")

    def _send_error(self, status: HTTPStatus, why: str) -> None:
        self._send(status, "application/json", _json({"error": why}))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy, "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }  # fmt: skip
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


PICTURES = {"thumbnail": SMALL, "photo": LARGE}


def _fields(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, max_num_fields=16))
    except ValueError:
        raise UserError("the query has too many parts") from None


def _json(value: dict) -> bytes:
    return json.dumps(value).encode()


def _policy(page: str) -> str:
    """The Content-Security-Policy of the page: its one script and one style, its own pictures and answers."""
    script, style = (" ".join(_hashes(page, tag)) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def _hashes(page: str, tag: str) -> Iterator[str]:
    for content in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
        yield f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

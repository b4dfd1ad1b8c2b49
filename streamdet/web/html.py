"""The HTML of the page and of the login: each is one file that loads no others, assembled once at the start."""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from importlib import resources

HTML = "text/html; charset=utf-8"
# In the order in which they build on each other.
_SCRIPTS = ("dom", "words", "draw", "wire", "tiles", "journal", "detail", "app")
_STYLE_MARK = "/* style */"
_SCRIPT_MARK = "/* script */"
_MESSAGE_MARK = "<!-- message -->"
_ACCOUNT_MARK = "<!-- account -->"
_LOG_OUT = '<form method="post" action="/logout"><button class="button" type="submit">Log out</button></form>'


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served.

    Attributes:
        wall: the page itself.
        content_security_policy: allows exactly the style and the script that stand in the pages, and connections
            to where they came from; nothing else, from nowhere.
    """

    wall: bytes
    content_security_policy: str
    _login: str

    @classmethod
    def load(cls, *, with_log_out: bool) -> Pages:
        """Reads the files of the package."""
        style = _read("style.css")
        body = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
        script = f'"use strict";\n(() => {{\n{body}\n}})();\n'
        wall = _read("wall.html").replace(_STYLE_MARK, style).replace(_SCRIPT_MARK, script)
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        return cls(
            wall=wall.replace(_ACCOUNT_MARK, _LOG_OUT if with_log_out else "").encode(),
            content_security_policy=policy,
            _login=_read("login.html").replace(_STYLE_MARK, style),
        )

    def login(self, message: str = "") -> bytes:
        """The login page, with a line that describes the error."""
        line = f'<p class="problem" role="alert">{html.escape(message)}</p>' if message else ""
        return self._login.replace(_MESSAGE_MARK, line).encode()


def _read(name: str) -> str:
    return resources.files("streamdet.web").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""The HTML of the page and of the login: each is one document that loads no files, assembled once at the start.

The page consists of a shell, the HTML of each view, styles and scripts. All are plain files, joined in the order below.
A new view is a name in `_VIEWS` with its HTML, its script and, where it needs one, its style.
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from importlib import resources

HTML = "text/html; charset=utf-8"
_VIEWS = ("wall", "add", "stream", "zones", "rules", "review", "nodes")
# In the order in which they build on each other.
_STYLES = (
    "tokens", "base", "shell", "picture", "wall", "add", "stream", "zones", "rules", "journal", "review", "nodes",
)  # fmt: skip
_SCRIPTS = (
    "dom", "session", "words", "draw", "clock", "wire", "rows", "views", "picture", "wall", "journal", "stream",
    "shapes", "toml", "changes", "add", "remove", "zones", "rules", "occurrence", "timeline", "review", "nodes", "app",
)  # fmt: skip
_STYLE_MARK = "/* style */"
_SCRIPT_MARK = "/* script */"
_VIEWS_MARK = "<!-- views -->"
_MESSAGE_MARK = "<!-- message -->"
_ACCOUNT_MARK = "<!-- account -->"
_NAME_MARK = "<!-- name -->"
# Without names, a password manager still stores the password for something.
_NO_NAME = '<input type="text" name="username" value="streamdet" autocomplete="username" hidden>'
_NAME = (
    '<label class="field"><span>Name</span><input type="text" name="username" autocomplete="username" autofocus '
    'maxlength="64" autocapitalize="none" spellcheck="false"></label>'
)
_LOG_OUT = '<form method="post" action="/logout"><button class="button" type="submit">Log out</button></form>'


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served.

    Attributes:
        page: with all its views.
        content_security_policy: allows exactly the style and the script that stand in the pages, and connections
            to where they came from; nothing else, from nowhere.
    """

    page: bytes
    content_security_policy: str
    _login: str

    @classmethod
    def load(cls, *, with_log_out: bool) -> Pages:
        """Reads the files of the package."""
        style = "".join(_read(f"{name}.css") for name in _STYLES)
        body = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
        script = f'"use strict";\n(() => {{\n{body}\n}})();\n'
        views = "".join(_read(f"{name}.html") for name in _VIEWS)
        page = _read("shell.html").replace(_VIEWS_MARK, views)
        page = page.replace(_ACCOUNT_MARK, _LOG_OUT if with_log_out else "")
        page = page.replace(_STYLE_MARK, style).replace(_SCRIPT_MARK, script)
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
            "img-src 'self' data:; media-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        return cls(
            page=page.encode(),
            content_security_policy=policy,
            _login=_read("login.html").replace(_STYLE_MARK, style),
        )

    def login(self, message: str = "", *, with_name: bool = False) -> bytes:
        """The login page, with a line that describes the error, and a field for a name."""
        line = f'<p class="problem" role="alert">{html.escape(message)}</p>' if message else ""
        page = self._login.replace(" autofocus", "") if with_name else self._login
        return page.replace(_MESSAGE_MARK, line).replace(_NAME_MARK, _NAME if with_name else _NO_NAME).encode()


def _read(name: str) -> str:
    return resources.files("streamdet.web").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

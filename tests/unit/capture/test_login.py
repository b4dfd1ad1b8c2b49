"""Digest and Basic, against the examples of their standards and servers' own ways to ask."""

from __future__ import annotations

import os

import pytest

from streamdet.capture.sources.login import Login, challenges_in

# RFC 7616, 3.9.1.
_RFC = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


class _Fixed(bytes):
    def hex(self, *_: object) -> str:
        return "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_example_of_the_standard(monkeypatch: pytest.MonkeyPatch, algorithm: str, response: str) -> None:
    monkeypatch.setattr(os, "urandom", lambda _: _Fixed())
    login = Login("Mufasa", "Circle of Life")
    assert login.choose(challenges_in([_RFC.format(algorithm)]))
    header = login.header("GET", "/dir/index.html")
    assert header is not None
    assert f'response="{response}"' in header
    assert "nc=00000001" in header
    assert "nc=00000002" in (login.header("GET", "/dir/index.html") or "")


@pytest.mark.parametrize(
    ("headers", "method"),
    [
        (['Digest realm="a, b", nonce="x", algorithm=SHA-256, Basic realm="r"'], "SHA-256"),
        (['Basic realm="r"', 'Digest realm="r",nonce="x" , stale=FALSE'], "MD5"),
        (['digest nonce=x,realm="q",algorithm="sha-256-sess"'], "SHA-256"),
        (['Digest nonce="x", qop="auth-int"', "Basic"], "BASIC"),
        (['Digest nonce="x", algorithm=SHA-3, Digest nonce="y", algorithm=MD5'], "MD5"),
        (["NTLM TlRMTVNTUAACAAAAA==", "Basic realm=open"], "BASIC"),
        (["Negotiate", "NTLM"], ""),
        (['Digest realm="no nonce"'], ""),
        (["", ", ,", '="', 'realm="x"', "\\", '"' * 5000], ""),
    ],
)
def test_the_best_of_what_is_offered(headers: list[str], method: str) -> None:
    login = Login("user", "word")
    assert login.choose(challenges_in(headers)) == bool(method)
    assert login.method == method
    assert (login.header("GET", "/") is not None) == bool(method)


def test_what_was_refused_is_not_given_again() -> None:
    offers = challenges_in(['Digest nonce="x", algorithm=SHA-256, Digest nonce="x", Basic'])
    login = Login("user", "word")
    methods = []
    while login.choose(offers):
        methods.append(login.method)
        login.was_refused(offers)
    assert methods == ["SHA-256", "MD5", "BASIC"]
    stale = challenges_in(['Digest nonce="y", stale=TRUE'])
    login = Login("user", "word")
    assert login.choose(stale)
    login.was_refused(stale)
    assert login.choose(stale)


def test_basic_and_odd_users() -> None:
    login = Login.of_url("http://us%22er:p%40%2Fss@h/")
    assert login is not None
    login.choose(challenges_in(["Basic"]))
    assert login.header("GET", "/") == "Basic dXMiZXI6cEAvc3M="
    login.choose(challenges_in(['Digest nonce="x", userhash=true']))
    assert 'us"er' not in (login.header("GET", "/") or "")
    login.choose(challenges_in(['Digest nonce="x"']))
    assert 'username="us\\"er"' in (login.header("GET", "/") or "")
    assert Login.of_url("http://h/") is None


def test_long_headers_take_time_in_proportion_to_their_length() -> None:
    for piece in ("a", 'a="', "a=b,", "Basic ", " ,", '\\"'):
        assert len(challenges_in([piece * 100_000] * 20)) <= 16

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from streamdet.security.redact import MASK, forget_secrets, redact, remember_secret, remember_url
from support.waiting import join

# Property tests take as long as they take on a busy machine.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
# A secret that cannot be found again by chance in the text around it.
LETTERS = st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_categories=("C", "Z"))
PASSWORDS = st.text(LETTERS, min_size=1, max_size=20).map(lambda text: f"QzX{text}XzQ")
PROSE = st.text(st.sampled_from("abc 12.,()\n"), max_size=20)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    forget_secrets()
    yield
    forget_secrets()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://user:p@ss@host/x", "rtsp://***@host/x"),
        ("rtsp://user:pa/ss:w@rd@host:554/x", "rtsp://***@host:554/x"),
        ("rtsp://user:p%40ss@host/x", "rtsp://***@host/x"),
        ("rtsp://user@host/x", "rtsp://***@host/x"),
        ("rtsps://:secret@[2001:db8::1]:322/x", "rtsps://***@[2001:db8::1]:322/x"),
        ("a rtsp://u:p@h1/x, b http://v:q@h2/y.", "a rtsp://***@h1/x, b http://***@h2/y."),
        ("rtsp://u:p@h1/x,rtsp://h2/y|rtsp://v:q@h3/z", "rtsp://***@h1/x,rtsp://h2/y|rtsp://***@h3/z"),
        ("rtsp://u:a://b@host", "rtsp://***@host"),
        (r'{"url":"rtsp:\/\/u:p@host\/x"}', r'{"url":"rtsp:\/\/***@host\/x"}'),
        ("RTSP://U:P@HOST/", "RTSP://***@HOST/"),
        ("http://h/mjpg?user=u&pwd=p&fps=5", "http://h/mjpg?user=***&pwd=***&fps=5"),
        ("http://h/v?access_token=abc#t", "http://h/v?access_token=***"),
        ("https://h/v.m3u8?X-Amz-Signature=ab%2Fc&n=1", "https://h/v.m3u8?X-Amz-Signature=***&n=1"),
        ("opened with password=abc and more", "opened with password=*** and more"),
        ("Authorization: Basic dTpw\r\nCSeq: 2", "Authorization: ***\r\nCSeq: 2"),
        ('Digest username="u", response="abc"', "Digest  ***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': ***"),
        ("ipc://@streamdet and ipc:///run/streamdet/events", "ipc://@streamdet and ipc:///run/streamdet/events"),
        ("http://127.0.0.1:9095/metrics, mail a@b.c", "http://127.0.0.1:9095/metrics, mail a@b.c"),
        ("the basic key is a monkey; author: me", "the basic key is a monkey; author: me"),
        ('add url = "rtsp://${FRONT_DOOR_LOGIN}@h/x"', 'add url = "rtsp://${FRONT_DOOR_LOGIN}@h/x"'),
        ("rtsp://${USER}:${PASSWORD}@h/x?token=${TOKEN}", "rtsp://${USER}:${PASSWORD}@h/x?token=${TOKEN}"),
        ("rtsp://admin:${PASSWORD}@h, rtsp://${A}@x@h", "rtsp://***@h, rtsp://***@h"),
        ("FRONT_DOOR_LOGIN=user:password and more", "FRONT_DOOR_LOGIN=*** and more"),
        ('YARD_PASS="a b" KEY=c MONKEY=1', "YARD_PASS=*** KEY=*** MONKEY=1"),
        ("", ""),
    ],
)
def test_masks_what_looks_like_a_secret(text: str, expected: str) -> None:
    assert redact(text) == expected


@PATIENT
@given(before=PROSE, user=PASSWORDS, password=PASSWORDS, after=PROSE)
def test_the_login_of_a_url_never_shows(before: str, user: str, password: str, after: str) -> None:
    shown = redact(f"{before} rtsp://{user}:{password}@192.0.2.5/stream1 {after}")
    assert user not in shown
    assert password not in shown
    assert shown == f"{before} rtsp://{MASK}@192.0.2.5/stream1 {after}"


@PATIENT
@given(
    st.lists(st.tuples(PASSWORDS, PASSWORDS), min_size=2, max_size=5), st.sampled_from([" ", ", ", "\n", "|rtsp://h "])
)
def test_all_urls_in_a_text_are_masked(logins: list[tuple[str, str]], between: str) -> None:
    shown = redact(between.join(f"http://{user}:{quote(password, safe='')}@h/" for user, password in logins))
    assert shown == between.join([f"http://{MASK}@h/"] * len(logins))


@PATIENT
@given(password=PASSWORDS, name=st.sampled_from(["token", "password", "key", "auth", "secret", "signature", "api_key"]))
def test_a_secret_query_value_never_shows(password: str, name: str) -> None:
    for encode in (quote, quote_plus):
        shown = redact(f"GET http://192.0.2.5/v?size=1&{name}={encode(password)}&fps=2 failed")
        assert shown == f"GET http://192.0.2.5/v?size=1&{name}={MASK}&fps=2 failed"


@PATIENT
@given(st.text())
@example("://@")
@example("a://b@c@\udc80")
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@PATIENT
@given(st.binary())
def test_any_bytes_are_readable_afterwards(data: bytes) -> None:
    assert redact(redact(data)) == redact(data)


def test_bytes_are_redacted_like_text() -> None:
    assert redact(b"rtsp://u:p@h/\xff") == r"rtsp://***@h/\xff"


@PATIENT
@given(PASSWORDS, PROSE, PROSE)
@example('QzX"\\/é€ 1', "", "")
@example("QzX", "a ", ".")
def test_a_remembered_secret_never_shows_in_any_spelling(secret: str, before: str, after: str) -> None:
    forget_secrets()
    remember_secret(secret)
    spellings = [secret, quote(secret), quote(secret, safe=""), quote_plus(secret)]
    spellings.append(re.sub("%..", lambda escape: escape[0].lower(), quote(secret, safe="")))
    spellings += [json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]]
    spellings.append(repr(secret.encode())[2:-1])
    for spelling in spellings:
        shown = redact(f"{before} {spelling} {after}")
        assert spelling not in shown, spelling
        assert secret not in shown


@PATIENT
@given(user=PASSWORDS, password=PASSWORDS)
def test_the_password_of_a_remembered_login_is_masked_alone_and_its_user_is_not(user: str, password: str) -> None:
    assume(":" not in user and user not in password and password not in user)
    forget_secrets()
    remember_secret(f"{user}:{password}")
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    shown = redact(f"user is {user}, password is {password}, header is {encoded}")
    assert shown == f"user is {user}, password is {MASK}, header is {MASK}"


def test_a_percent_encoded_login_is_remembered_decoded_too() -> None:
    remember_secret("user:p%40ss%2Fword")
    assert redact("p@ss/word p%40ss%2fword") == "*** ***"


def test_a_short_secret_is_masked_only_as_a_word() -> None:
    remember_secret("1234")
    assert redact("frame 51234 of 1234, user%3A1234 (1234)") == "frame 51234 of ***, user%3A*** (***)"


def test_a_long_secret_is_masked_inside_words() -> None:
    remember_secret("correct-horse")
    assert redact("xcorrect-horsex") == "x***x"


@pytest.mark.parametrize("value", ["", " ", "a", "ab", ":", "***"])
def test_values_too_short_to_be_secret_change_nothing(value: str) -> None:
    remember_secret(value)
    text = "a b ab : *** 12"
    assert redact(text) == text


def test_a_secret_within_another_does_not_uncover_it() -> None:
    remember_secret("hunter2")
    remember_secret("hunter2-and-more")
    assert redact("hunter2-and-more") == MASK


def test_a_user_name_that_is_an_ordinary_word_stays_readable() -> None:
    remember_url("rtsp://camera:hunter2hunter2@192.0.2.5/x")
    shown = redact("camera does not answer at rtsp://camera:hunter2hunter2@192.0.2.5/x, login camera:hunter2hunter2")
    assert shown == "camera does not answer at rtsp://***@192.0.2.5/x, login ***"


def test_of_many_changed_passwords_the_latest_and_those_in_use_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.security.redact._MAX_REMEMBERED", 10)
    for number in range(100):
        remember_secret("password-in-use")  # as reading the configuration again does
        remember_secret(f"password-{number:03}")
    known = redact(" ".join(f"password-{number:03}" for number in range(100))).split()
    assert known == [f"password-{number:03}" for number in range(91)] + [MASK] * 9
    assert redact("password-in-use") == MASK


def test_thousands_of_secrets_are_remembered_in_moments() -> None:
    began = time.process_time()
    for number in range(10_000):
        remember_secret(f"user-{number}:password-{number:05}")
    assert redact("password-00000 password-09999") == f"{MASK} {MASK}"
    # Sorting them again for each one took a minute.
    assert time.process_time() - began < 10


def test_threads_may_remember_while_others_redact() -> None:
    def remember(number: int) -> None:
        for i in range(20):
            remember_secret(f"secret-{number}-{i}-end")

    threads = [threading.Thread(target=remember, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        redact("rtsp://u:p@h secret-1-1-end")
    for thread in threads:
        join(thread)
    text = " ".join(f"secret-{n}-{i}-end" for n in range(4) for i in range(20))
    assert set(redact(text).split()) == {MASK}


@pytest.mark.parametrize("piece", ["a", "a://", "@", "rtsp://", "?a", "password", "a:/", "\\", "digest ", "pass"])
def test_a_long_text_takes_time_in_proportion_to_its_length(piece: str) -> None:
    text = "?" + piece * (200_000 // len(piece))
    began = time.process_time()
    redact(text)
    # Linear work takes well below a second; quadratic work would take minutes.
    assert time.process_time() - began < 20

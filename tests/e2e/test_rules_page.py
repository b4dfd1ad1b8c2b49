"""From a zone drawn in the browser to its alert in the review: a real daemon, the page's own process, and users."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from streamdet.assets import sample_clip
from streamdet.config import load_config
from streamdet.security.passwords import Password, User, write_user
from support.axe import FINDINGS, axe_script
from support.browser import drag
from support.page import PageProcess
from support.processes import DaemonProcess
from support.processes import stream as configured
from support.web import WebServer

pytestmark = pytest.mark.package("chromium")

_WORDS = "correct horse battery"
TRIANGLE = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
# What Chromium says of a clip that is not there yet, of a refused change, and of questions on their way to a login.
NO_COMPLAINTS = re.compile("status of (?:400|401|403|404|409|422)")
_MORE = """
[pictures]
directory = "{folder}/pictures"
[clips]
directory = "{folder}/clips"
[web]
allow_changes = true
password_file = "page.users"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("rules") / "d"
    daemon = DaemonProcess(folder, comes_and_goes=True)
    # A comment of the file.
    daemon.write_config(
        "# Gate.\n" + configured("gate", max_fps=10, track_max_lost_seconds=0.3), more=_MORE.format(folder=folder)
    )
    for name, role in (("alice", "operator"), ("bob", "viewer")):
        write_user(folder / "page.users", User(name, role, Password.of(_WORDS, cost=(4, 8, 1))))
    daemon.ready()
    yield daemon
    assert daemon.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def server(daemon: DaemonProcess) -> Iterator[PageProcess]:
    with PageProcess(daemon.endpoint, "--config", str(daemon.path)) as server:
        yield server


def log_in(page: Page, name: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(_WORDS)
    page.keyboard.press("Enter")
    expect(page.locator("#total-up")).to_have_text("1 of 1")


def expect_alert_with_picture_and_clip(page: Page, rule: str) -> None:
    # The first one may have begun before its packets were kept.
    card = page.locator(".occurrence[data-kind=alert]", has_text="clip").first
    news = page.locator("#review-news")
    deadline = time.monotonic() + 60
    while not card.is_visible():
        assert time.monotonic() < deadline, "no alert"
        if news.is_visible():
            news.click()
        page.wait_for_timeout(200)
    expect(card).to_contain_text(rule)
    card.locator("a").press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("h2")).to_contain_text(rule)
    assert dialog.locator(".shot img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    expect(dialog.locator("svg.overlay polygon.zone")).not_to_have_count(0)
    video = dialog.locator("video")
    expect(video).to_be_visible()
    deadline = time.monotonic() + 60
    while video.evaluate("video => video.readyState") < 1:
        assert time.monotonic() < deadline, "no clip"
        page.wait_for_timeout(200)


def test_an_operator_draws_a_zone_makes_a_rule_and_sees_its_alert(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    written = daemon.path.read_text()
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "alice")
    page.locator(".tile a").click()
    page.get_by_role("link", name="Zones", exact=True).click()
    expect(page.locator("#zones-veil")).to_be_hidden()
    page.get_by_role("button", name="Zone", exact=True).click()
    drag(page, (0.05, 0.1), (0.95, 0.999))
    page.keyboard.type("bay")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-applied")).to_have_text("Applied. It lasts until the daemon is restarted.")
    page.get_by_role("link", name="Make a rule").click()
    expect(page.locator("#rule-sentence")).to_contain_text("in the zone bay of gate")
    page.get_by_label("After an alert, none for").fill("8")  # else its clips are one, until it is long
    page.get_by_label("Clip from").fill("1")
    page.get_by_label("Clip to").fill("1")
    name = page.get_by_label("Name", exact=True).nth(1).input_value()
    assert name == "person in bay"
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator("#rule-tried")).to_contain_text(
        re.compile(r"It would have raised \d+ alerts?\. \d+ frames since")
    )
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#rule-done")).to_have_text("In force, until the daemon is restarted.")
    page.get_by_role("link", name="Show its alerts in the review").click()
    expect_alert_with_picture_and_clip(page, "person in bay")
    assert daemon.path.read_text() == written
    assert daemon.ask("GET", "/v1/streams/gate/settings")["persisted"] is False
    page.goto("about:blank")


def test_a_picture_shows_the_zones_as_they_are_when_it_is_opened(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    page = open_page(f"{server.url}#/review?kind=objects", viewport={"width": 1440, "height": 900})
    log_in(page, "bob")
    card = page.locator(".occurrence[data-kind=object]").first
    expect(card).to_be_visible()
    zones = page.locator("dialog svg.overlay polygon.zone")
    for names in (["bay", "door"], ["bay"], []):
        configure(daemon, *names)  # while the list is open
        card.locator("a").press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        expect(zones).to_have_count(len(names))
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()


def press(page: Page, *keys: str) -> None:
    for key in keys:
        name, _, count = key.partition("*")
        for _ in range(int(count or 1)):
            page.keyboard.press(name)


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until this has the focus."""
    for _ in range(60):
        press(page, "Tab")
        focused = page.evaluate(
            "document.activeElement.ariaLabel ?? document.activeElement.closest('label, a, button')?.innerText"
        )
        if (focused or "").strip().startswith(name):
            return
    raise AssertionError(name)


def test_the_same_with_the_keyboard_alone(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "alice")
    tab_to(page, "gate")
    press(page, "Enter")
    tab_to(page, "Zones")
    press(page, "Enter")
    expect(page.locator("#zones-veil")).to_be_hidden()
    tab_to(page, "Zone")
    press(page, "Enter", "Shift+ArrowUp*4", "Shift+ArrowLeft*4", "Enter", "Shift+ArrowRight*8", "Enter")
    press(page, "Shift+ArrowDown*9", "Enter", "Shift+ArrowLeft*8", "Enter", "f")
    expect(page.locator("#zones-shape [name=name]")).to_be_focused()
    page.keyboard.type("keyed")
    tab_to(page, "Apply")
    press(page, "Enter")
    expect(page.locator("#zones-applied")).to_contain_text("Applied.")
    page.locator(".zones-item", has_text="keyed").focus()
    press(page, "Enter")
    tab_to(page, "Make a rule")
    press(page, "Enter")
    expect(page.locator("#rules-title")).to_be_focused()
    expect(page.locator("#rule-form [name=name]")).to_have_value("person in keyed")
    tab_to(page, "After an alert")
    page.keyboard.type("8")
    tab_to(page, "Clip from")
    page.keyboard.type("1")
    tab_to(page, "Clip to")
    page.keyboard.type("1")
    # The page must know the rules in force: a person is not so fast.
    expect(page.locator("#rule-apply")).to_have_attribute("aria-disabled", "false")
    tab_to(page, "Apply")
    press(page, "Enter")
    expect(page.locator("#rule-done")).to_contain_text("In force")
    tab_to(page, "Show its alerts")
    press(page, "Enter")
    expect_alert_with_picture_and_clip(page, "person in keyed")
    page.goto("about:blank")


def zone_of(name: str) -> dict[str, Any]:
    return {"name": name, "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], "labels": ["person"]}


def configure(daemon: DaemonProcess, *names: str) -> None:
    zones = [zone_of(name) for name in names]
    daemon.ask("PUT", "/v1/rules", {"rules": []})
    daemon.ask("PATCH", "/v1/streams/gate", {"zones": zones, "lines": [], "masks": []})


def open_zones(server: PageProcess, open_page: Callable[..., Page], user: str, zones: int) -> Page:
    page = open_page(
        server.url, viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    log_in(page, user)
    page.goto(f"{server.url}#/zones/gate")
    expect(page.locator(".zones-item")).to_have_count(zones)
    expect(page.locator("#zones-veil")).to_be_hidden()
    return page


def test_two_who_change_the_same_stream_do_not_overwrite_each_other(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    page = open_zones(server, open_page, "alice", 1)
    page.get_by_role("button", name="Zone", exact=True).click()
    drag(page, (0.1, 0.1), (0.4, 0.4))
    configure(daemon, "bay", "theirs")
    expect(page.locator("#zones-warning")).to_contain_text("Someone else has changed")
    expect(page.locator("#zones-apply")).to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Discard mine, take theirs").click()
    expect(page.locator(".zones-item strong")).to_have_text(["bay", "theirs"])
    page.get_by_role("button", name="Zone", exact=True).click()
    drag(page, (0.1, 0.1), (0.4, 0.4))
    page.locator(".zones-item", has_text="bay").click()
    page.get_by_label("Only these labels").fill("")
    configure(daemon, "bay", "zone-1")
    daemon.ask("PATCH", "/v1/streams/gate", {"zones": [{"name": "bay", "polygon": TRIANGLE}, zone_of("zone-1")]})
    expect(page.locator("#zones-warning")).to_have_text(
        "Someone else has changed this stream meanwhile: changed the zone bay, added the zone zone-1, deleted the zone "
        "theirs. You have changed the zone bay as well: Keep both takes yours."
    )
    page.get_by_role("button", name="Keep both").click()
    expect(page.locator(".zones-item strong")).to_have_text(["bay", "zone-1", "zone-2"])
    page.locator("#zones-persist").check()
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-applied")).to_have_text("Applied, and kept over restarts.")
    settings = daemon.ask("GET", "/v1/streams/gate/settings")
    assert settings["persisted"] is True
    zones = settings["settings"]["zones"]
    assert [zone["name"] for zone in zones] == ["bay", "zone-1", "zone-2"]
    assert [len(zone["polygon"]) for zone in zones] == [4, 4, 4]
    assert [zone["labels"] for zone in zones] == [[], ["person"], []]
    configure(daemon, "last")
    expect(page.locator(".zones-item strong")).to_have_text(["last"])
    expect(page.locator("#zones-applied")).to_contain_text("Someone else has changed them meanwhile.")
    page.goto("about:blank")


def test_other_settings_of_a_stream_are_in_no_ones_way(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    page = open_zones(server, open_page, "alice", 1)
    page.get_by_role("button", name="Zone", exact=True).click()
    drag(page, (0.1, 0.1), (0.4, 0.4))
    daemon.ask("PATCH", "/v1/streams/gate", {"track_start_score": 0.7})
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-applied")).to_contain_text("Applied.")
    page.goto("about:blank")


def test_a_zone_that_a_rule_needs_leads_to_the_rule(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    daemon.ask("PUT", "/v1/rules", {"rules": [{"name": "in the bay", "streams": ["gate"], "zone": "bay"}]})
    page = open_zones(server, open_page, "alice", 1)
    problem = page.locator("#zones-apply-problem")
    page.locator(".zones-item").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(problem).to_have_text(
        "The rule in the bay needs the zone bay: it cannot be deleted. Change or delete the rule first."
    )
    problem.get_by_role("link", name="in the bay").click()
    expect(page.locator("#rule-title")).to_have_text("Rule in the bay")
    expect(page.locator("#rule-form [name=zone]")).to_have_value("bay")
    page.goto(f"{server.url}#/rules/none")
    expect(page.locator("#rule-problem")).to_have_text("There is no rule none any more.")
    page.goto("about:blank")


def test_a_new_name_of_a_zone_is_carried_into_the_rules_that_need_it(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay", "far")
    rules: list[dict[str, Any]] = [
        {"name": "in the bay", "streams": ["gate"], "zone": "bay"},
        {"name": "far", "zone": "far"},
        {"name": "crowd", "zone": "bay", "at_least": 3},
    ]
    daemon.ask("PUT", "/v1/rules", {"rules": rules})
    page = open_zones(server, open_page, "alice", 2)
    carried, name = page.locator("#zones-carried"), page.locator("#zones-shape").get_by_label("Name", exact=True)

    def zones_of_rules() -> list[str]:
        return [rule["zone"] for rule in daemon.ask("GET", "/v1/rules")["rules"]]

    page.locator(".zones-item", has_text="bay").click()
    expect(carried).to_be_empty()
    name.fill("yard")
    expect(carried).to_have_text(
        "Apply also changes the rules in the bay (zone bay becomes yard), crowd (zone bay becomes yard)."
    )
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-applied")).to_have_text("Applied. It lasts until the daemon is restarted.")
    expect(carried).to_be_empty()
    assert zones_of_rules() == ["yard", "far", "yard"]
    assert [zone["name"] for zone in daemon.ask("GET", "/v1/streams/gate/settings")["settings"]["zones"]] == [
        "yard", "far",
    ]  # fmt: skip
    # Back again, also where the page was loaded again meanwhile, and someone else has changed the stream.
    page.get_by_role("button", name="Undo").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(carried).to_contain_text("in the bay (zone yard becomes bay)")
    daemon.ask("PATCH", "/v1/streams/gate", {"zones": [zone_of("yard"), zone_of("far"), zone_of("theirs")]})
    page.get_by_role("button", name="Keep both").click()
    expect(carried).to_contain_text("crowd (zone yard becomes bay)")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-applied")).to_contain_text("Applied.")
    assert zones_of_rules() == ["bay", "far", "bay"]
    page.goto("about:blank")


def test_a_zone_and_its_rule_are_applied_in_one_go(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    page = open_zones(server, open_page, "alice", 1)
    both = page.get_by_role("button", name="Apply the zone, then the rule")
    seconds = page.locator("#rule-form [name=for_seconds]")
    for corner in (0.1, 0.5):
        page.get_by_role("button", name="Zone", exact=True).click()
        drag(page, (corner, 0.1), (corner + 0.3, 0.4))
    page.get_by_label("Only these labels").fill("persn")
    page.get_by_role("link", name="Make a rule").click()
    expect(page.locator("#rule-standing")).to_have_text(
        "Not in force yet. The zone zone-2 is drawn, but not applied either."
    )
    seconds.fill("3")
    page.locator("#rule-form [name=labels]").fill("")
    both.click()
    expect(page.locator("#rule-problem")).to_contain_text(
        'The zone zone-2 is not applied, and so neither is the rule. The labels hold "persn", which is not'
    )
    page.locator("#rule-problem").get_by_role("link", name="Zones of gate").click()
    page.get_by_label("Only these labels").fill("person")
    page.get_by_role("link", name="Make a rule").click()
    expect(seconds).to_have_value("3")
    seconds.fill("soon")
    daemon.ask("PUT", "/v1/rules", {"rules": [{"name": "another"}]})
    both.click()
    expect(page.locator(".rule-note")).to_contain_text('The time is "soon"; must be a number')
    expect(page.locator("#rule-problem")).to_have_text("The zone zone-2 is applied, the rule is not.")
    seconds.fill("3")
    page.locator("#rule-form [name=clip]").uncheck()
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#rule-done")).to_have_text("In force, until the daemon is restarted.")
    expect(page.locator("#rule-apply")).to_have_text("Apply")
    settings = daemon.ask("GET", "/v1/streams/gate/settings")["settings"]
    assert [zone["name"] for zone in settings["zones"]] == ["bay", "zone-2"]
    assert daemon.ask("GET", "/v1/rules")["rules"][1]["for_seconds"] == 3
    page.goto(f"{server.url}#/zones/gate")
    expect(page.locator("#zones-list strong")).to_have_text(["bay", "zone-1", "zone-2"])
    expect(page.locator("#zones-standing")).to_have_text("You have changes that are not applied.")
    page.get_by_role("button", name="Discard changes").click()
    expect(page.locator("#zones-list strong")).to_have_text(["bay", "zone-2"])
    page.goto("about:blank")


def open_rules(server: PageProcess, open_page: Callable[..., Page], user: str = "alice", **options: Any) -> Page:
    page = open_page(server.url, **{"viewport": {"width": 1440, "height": 900}, **options})
    log_in(page, user)
    page.goto(f"{server.url}#/rules")
    expect(page.locator("#rules-list")).to_be_visible()
    return page


def test_changes_of_a_rule_are_not_lost_without_a_question(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    daemon.ask("PUT", "/v1/rules", {"rules": [{"name": "first", "for_seconds": 2}, {"name": "second"}]})
    page = open_rules(server, open_page)
    standing, title, dialog = page.locator("#rule-standing"), page.locator("#rule-title"), page.get_by_role("dialog")
    seconds, apply = page.locator("#rule-form [name=for_seconds]"), page.locator("#rule-apply")
    page.locator("#rules-list button").first.click()
    expect(standing).to_have_text("As in force.")
    expect(apply).to_have_attribute("aria-disabled", "true")
    seconds.fill("8")
    expect(standing).to_have_text("You have changes that are not in force.")
    expect(apply).to_have_attribute("aria-disabled", "false")
    for leave in (page.get_by_role("button", name="New rule"), page.locator("#rules-list button").nth(1)):
        leave.click()
        expect(dialog.locator("h2")).to_have_text("Discard your changes?")
        dialog.get_by_role("button", name="Cancel").click()
        expect(seconds).to_have_value("8")
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    expect(standing).to_have_text("You have changes that are not in force.")
    assert asked == ["beforeunload"]
    page.get_by_role("button", name="Discard changes").click()
    expect(seconds).to_have_value("2")
    expect(standing).to_have_text("As in force.")
    seconds.fill("9")
    page.locator("#rules-list button").nth(1).click()
    dialog.get_by_role("button", name="Discard them").click()
    expect(title).to_have_text("Rule second")
    page.get_by_role("button", name="Delete this rule").click()
    expect(dialog.locator("h2")).to_have_text("Delete the rule second?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert len(daemon.ask("GET", "/v1/rules")["rules"]) == 2
    page.get_by_role("button", name="Delete this rule").click()
    dialog.get_by_role("button", name="Delete it").click()
    expect(page.locator("#rule-done")).to_have_text("second is deleted, until the daemon is restarted.")
    assert [rule["name"] for rule in daemon.ask("GET", "/v1/rules")["rules"]] == ["first"]
    page.reload()
    expect(title).to_have_text("New rule")
    assert asked == ["beforeunload"]
    page.goto("about:blank")


def test_what_others_do_to_the_rules_is_seen(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)

    def put(*rules: dict[str, Any]) -> None:
        daemon.ask("PUT", "/v1/rules", {"rules": list(rules)})

    put({"name": "first", "for_seconds": 2})
    page = open_rules(server, open_page)
    news, seconds, listed = page.locator("#rule-news"), page.locator("#rule-form [name=for_seconds]"), page.locator(
        "#rules-list strong"
    )  # fmt: skip
    page.locator("#rules-list button").first.click()
    put({"name": "first", "for_seconds": 4}, {"name": "second"})
    expect(listed).to_have_text(["first", "second"])
    expect(seconds).to_have_value("4")
    expect(news).to_have_text("Someone else has changed this rule. The form shows it as it is now.")
    seconds.fill("8")
    put({"name": "first", "for_seconds": 5}, {"name": "second"})
    expect(news).to_contain_text("Someone else has changed this rule meanwhile. In force is now: When an object is in")
    expect(news).to_contain_text("for 5 seconds")
    expect(news).to_contain_text("Apply replaces it by yours, Discard changes takes theirs.")
    put({"name": "second"})
    expect(listed).to_have_text(["second"])
    gone = "Someone else has deleted this rule, or given it another name. Apply puts it in force again."
    expect(news).to_have_text(gone)
    page.goto(f"{server.url}#/")
    page.goto(f"{server.url}#/rules")
    expect(news).to_have_text(gone)
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#rule-done")).to_contain_text("In force")
    expect(news).to_have_text("")
    assert [rule["name"] for rule in daemon.ask("GET", "/v1/rules")["rules"]] == ["second", "first"]
    # Another rule is in no one's way, however short the time in between.
    seconds.fill("9")
    put({"name": "third"}, {"name": "first", "for_seconds": 8})
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#rule-done")).to_contain_text("In force")
    assert [rule["name"] for rule in daemon.ask("GET", "/v1/rules")["rules"]] == ["third", "first"]
    page.goto("about:blank")


def test_a_refused_rule_says_why_at_its_field(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    daemon.ask("PUT", "/v1/rules", {"rules": [{"name": "first"}]})
    page = open_rules(server, open_page)
    note, name = page.locator(".rule-note"), page.locator("#rule-form [name=name]")
    name.fill("first")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(note).to_have_text("Another rule has this name already; every rule needs a name of its own.")
    expect(name).to_be_focused()
    expect(name).to_have_attribute("aria-describedby", "rule-note-name")
    name.fill("other")
    expect(note).to_have_count(0)
    page.locator("#rule-form [name=streams]").fill("yard")
    page.locator("#rule-form [name=cooldown_seconds]").fill("soon")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(note.first).to_contain_text('The time after an alert is "soon"; must be a number')
    expect(page.locator("#rule-problem")).to_have_text("")
    page.locator("#rule-form [name=cooldown_seconds]").fill("")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(note).to_have_text('The stream is "yard", which matches no stream; the streams are gate.')
    page.goto("about:blank")


def test_what_is_typed_while_a_rule_is_sent_is_not_in_force(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    page = open_rules(server, open_page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api/changes", hold)
    page.locator("#rule-form [name=clip]").uncheck()
    with page.expect_request("**/api/changes"):
        page.get_by_role("button", name="Apply", exact=True).click()
    page.locator("#rule-form [name=for_seconds]").fill("9")
    held[0].continue_()
    expect(page.locator("#rule-done")).to_contain_text("In force")
    expect(page.locator("#rule-standing")).to_have_text("You have changes that are not in force.")
    expect(page.locator("#rule-apply")).to_have_attribute("aria-disabled", "false")
    page.unroute_all(behavior="wait")
    page.goto("about:blank")


def test_a_phone_shows_that_a_rule_is_in_force(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon)
    page = open_rules(server, open_page, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.locator("#rule-form [name=clip]").uncheck()
    expect(page.locator("#rule-apply")).to_have_attribute("aria-disabled", "false")
    page.locator("#rule-apply").evaluate("button => button.scrollIntoView({ block: 'end' })")
    box = page.locator("#rule-apply").bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + 10, box["y"] + 10)
    expect(page.get_by_role("link", name="Show its alerts in the review")).to_be_in_viewport(ratio=1)
    expect(page.locator("#rule-done")).to_be_in_viewport(ratio=1)
    page.goto("about:blank")


def test_what_the_daemon_refuses_is_shown_at_the_shape(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    page = open_zones(server, open_page, "alice", 1)
    page.locator(".zones-item").click()
    page.locator("#zones-shape").get_by_label("Only these labels").fill("persn")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-shape-problem")).to_contain_text('hold "persn", which is not a published label')
    expect(page.locator(".zones-item.wrong")).to_have_count(1)
    assert daemon.ask("GET", "/v1/streams/gate/settings")["settings"]["zones"][0]["labels"] == ["person"]
    page.get_by_role("button", name="Discard changes").click()
    page.goto(f"{server.url}#/rules")
    form = page.locator("#rule-form")
    page.get_by_role("button", name="New rule").click()
    form.get_by_label("Streams").fill("gate")
    form.get_by_label("From", exact=True).evaluate("field => field.closest('details').open = true")
    form.get_by_label("From", exact=True).fill("22:00")
    form.get_by_label("To", exact=True).fill("22:00")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator(".rule-note")).to_have_text(
        "The time of day ends when it begins; for the whole day, leave it out."
    )
    expect(form.get_by_label("From", exact=True)).to_have_attribute("aria-invalid", "true")
    page.goto("about:blank")


def test_a_viewer_draws_and_copies_and_applies_nothing(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    configure(daemon, "bay")
    page = open_zones(server, open_page, "bob", 1)
    expect(page.locator("#zones-may")).to_have_text(
        "Bob is a viewer; only operators may change anything. "
        "You can draw, and copy the text into the file of the daemon."
    )
    page.get_by_role("button", name="Line", exact=True).click()
    drag(page, (0.1, 0.5), (0.9, 0.5))
    expect(page.locator("#zones-standing")).to_have_text(
        "Not applied: copy the text into the file of the daemon and reload it."
    )
    expect(page.get_by_role("button", name="Apply", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#zones-copied")).to_have_text("Copied.")
    path = tmp_path / "c.toml"
    path.write_text(
        '[[streams]]\nname = "gate"\nurl = "rtsp://192.0.2.1/s"\n' + page.evaluate("navigator.clipboard.readText()")
    )
    stream = load_config(path).streams[0]
    assert stream.zones[0].labels == ("person",)  # which outlines alone would not say
    assert [line.name for line in stream.lines] == ["line-1"]
    page.get_by_role("link", name="Make a rule").click()
    expect(page.locator("#rule-form [name=line]")).to_have_value("line-1")
    expect(page.locator("#rule-form [name=line] option")).to_have_text(["line-1 (not applied yet)"])
    page.locator("#rule-form [name=name]").fill('<b>"out"</b> ${HOME} \U0001f6a8')
    expect(page.locator("#rule-sentence")).to_contain_text("crosses the line line-1 of gate, once for each")
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator("#rule-tried")).to_contain_text("It would have raised 0 alerts.")
    expect(page.locator("#rule-tried")).to_contain_text("With one condition fewer:")
    text = page.locator("#rule-toml").text_content() or ""
    assert tomllib.loads(text)["rules"][0]["name"] == '<b>"out"</b> $${HOME} \U0001f6a8'
    assert page.locator("#rules-view b").count() == 0
    expect(page.locator("#rule-apply")).to_be_hidden()
    page.goto("about:blank")


def test_trying_finds_what_the_command_finds(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    configure(daemon, "bay")
    rule = {"name": "r", "streams": ["gate"], "zone": "west", "for_seconds": 0.3, "cooldown_seconds": 2.0}
    west = {"name": "west", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]}
    page = open_page(server.url)
    log_in(page, "bob")
    send = """async (body) => {
      const headers = {"Content-Type": "application/json"};
      const answer = await fetch("/api/rules/try", {method: "POST", headers, body: JSON.stringify(body)});
      return [answer.status, await answer.json()];
    }"""
    stream = {"name": "gate", "zones": [west], "track_max_lost_seconds": 0.3}
    deadline = time.monotonic() + 60
    while True:  # a daemon that has only just begun has little of a past
        status, tried = page.evaluate(send, {"rule": rule, "streams": [stream], "seconds": 86400})
        assert status == 200, tried
        by_page = [alert["raised_at"] for alert in tried["alerts"]]
        if len(by_page) > 3:
            break
        assert time.monotonic() < deadline, by_page
        page.wait_for_timeout(500)
    config = daemon.folder / "rules.toml"
    config.write_text(
        f'[[streams]]\nname = "gate"\nurl = "{sample_clip()}"\npace = "fastest"\ntrack_max_lost_seconds = 0.3\n'
        '[[streams.zones]]\nname = "west"\npolygon = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]\n'
        '[[rules]]\nname = "r"\nstreams = ["gate"]\nzone = "west"\nfor_seconds = 0.3\ncooldown_seconds = 2.0\n'
    )
    spool = str(daemon.folder / "spool")
    done = subprocess.run(
        [sys.executable, "-m", "streamdet", "rules", "test", str(config), "--spool", spool, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_command = [alert["raised_at"] for alert in json.loads(done.stdout)["alerts"]]
    assert by_command[: len(by_page)] == by_page
    # Wrong ones are refused, in the words of the check.
    for wrong, where, why in (
        ({**rule, "zone": "wst"}, "zone", 'is "wst", and stream gate has no zone of this name; did you mean "west"?'),
        (
            {**rule, "line": "gate"},
            "line",
            "does not go with zone; a rule watches a zone or a line, so write two rules",
        ),
        ({**rule, "streams": ["yard"]}, "streams", "match no stream that the daemon has"),
    ):
        status, answer = page.evaluate(send, {"rule": wrong, "streams": [stream], "seconds": 60})
        assert (status, answer["problems"][0]["key"], answer["problems"][0]["text"]) == (422, where, why)
    for body in (
        [],
        {"rule": rule},
        {"rule": rule, "streams": [1], "seconds": 5},
        {"rule": rule, "streams": [], "seconds": -1},
    ):
        assert page.evaluate(send, body)[0] == 400
    page.goto("about:blank")


def test_a_stream_that_is_removed_while_someone_draws_stays_as_text(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    daemon.ask("POST", "/v1/streams", {"name": "yard", "url": str(sample_clip()), "loop": True, "max_fps": 5})
    page = open_page(server.url)
    page.get_by_label("Name").fill("alice")
    page.get_by_label("Password").fill(_WORDS)
    page.keyboard.press("Enter")
    expect(page.locator("#total-up")).to_have_text("2 of 2")
    page.goto(f"{server.url}#/zones/yard")
    expect(page.locator("#zones-veil")).to_be_hidden()
    page.get_by_role("button", name="Zone", exact=True).click()
    drag(page, (0.1, 0.1), (0.4, 0.4))
    daemon.ask("DELETE", "/v1/streams/yard")
    expect(page.locator("#zones-warning")).to_have_text(
        "There is no stream of this name any more. What you drew stays here as text."
    )
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#zones-apply-problem")).to_contain_text("yard")
    expect(page.locator("#zones-toml")).to_contain_text('name = "zone-1"')
    page.goto("about:blank")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.mark.package("nodejs")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390), ("light", 390), ("dark", 1440)])
def test_the_rules_have_no_finding_of_axe(
    daemon: DaemonProcess, server: PageProcess, open_page: Callable[..., Page], axe: str, scheme: str, width: int
) -> None:
    configure(daemon, "bay")
    page = open_page(server.url, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    log_in(page, "alice")
    page.goto(f"{server.url}#/rules?stream=gate&zone=bay")
    expect(page.locator("#rule-apply")).to_be_visible()
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator("#rule-tried")).to_contain_text("It would have raised")
    page.get_by_label("With a clip").uncheck()
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("#rule-done")).to_contain_text("In force")
    expect(page.locator("#rules-list button")).to_have_count(1)
    page.get_by_text("Only at some times").click()
    page.evaluate(axe)
    assert page.evaluate(FINDINGS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.goto("about:blank")


def test_a_rule_asks_for_no_files_that_the_daemon_does_not_keep(
    tmp_path: Path, server: PageProcess, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url, viewport={"width": 1440, "height": 900})
    log_in(page, "alice")
    page.goto(f"{server.url}#/rules")
    expect(page.get_by_label("With a clip")).to_be_checked()
    page.goto("about:blank")
    bare = DaemonProcess(tmp_path / "d", comes_and_goes=True)
    bare.write_config(configured("gate"), more='[web]\nallow_changes = true\npassword_file = "page.users"\n')
    write_user(tmp_path / "d/page.users", User("alice", "operator", Password.of(_WORDS, cost=(4, 8, 1))))
    with bare.ready(), PageProcess(bare.endpoint, "--config", str(bare.path)) as own:
        page = open_page(own.url, viewport={"width": 1440, "height": 900})
        log_in(page, "alice")
        page.goto(f"{own.url}#/rules")
        for name in ("With a picture", "With a clip"):
            expect(page.get_by_label(name)).to_be_disabled()
            expect(page.get_by_label(name)).not_to_be_checked()
        expect(page.locator("#rule-kept")).to_have_text(
            "The daemon keeps no pictures and no clips: its configuration has no directory in [pictures] and [clips]."
        )
        expect(page.locator("#rule-discard")).to_have_attribute("aria-disabled", "true")
        page.get_by_role("button", name="Apply", exact=True).click()
        expect(page.locator("#rule-done")).to_have_text("In force, until the daemon is restarted.")
        page.goto("about:blank")


def test_the_form_names_streams_whose_alerts_have_no_clip(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    folder = tmp_path / "d"
    with WebServer() as camera, DaemonProcess(folder, comes_and_goes=True) as daemon:
        daemon.write_config(
            configured("gate"), configured("jpegs", camera.url("/mjpeg")), more=_MORE.format(folder=folder)
        )
        write_user(folder / "page.users", User("alice", "operator", Password.of(_WORDS, cost=(4, 8, 1))))
        daemon.ready()
        with PageProcess(daemon.endpoint, "--config", str(daemon.path)) as own:
            page = open_page(own.url, viewport={"width": 1440, "height": 900})
            page.get_by_label("Name").fill("alice")
            page.get_by_label("Password").fill(_WORDS)
            page.keyboard.press("Enter")
            expect(page.locator("#total-up")).to_have_text("2 of 2")
            page.goto(f"{own.url}#/rules")
            kept = page.locator("#rule-kept")
            none = "Alerts of jpegs have no clip: the video is neither H.264 nor H.265, which clips need."
            expect(kept).to_have_text(none)
            page.get_by_label("With a clip").uncheck()
            expect(kept).to_be_empty()
            page.get_by_label("With a clip").check()
            expect(kept).to_have_text(none)
            page.locator("#rule-form [name=streams]").fill("gate")
            expect(kept).to_be_empty()
            page.goto("about:blank")

"""The page of a cluster in a real Chromium: a head and two nodes with real daemons, one of which dies."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from support.axe import FINDINGS, axe_script
from support.browser import SERVER_ENDS
from support.page import PageProcess
from support.page_cluster import PageCluster
from support.waiting import wait_until

pytestmark = [pytest.mark.package("chromium"), pytest.mark.slow, pytest.mark.timeout(600)]

# What Chromium says of pictures that a node does not give away now, and of questions while the server ends.
NO_COMPLAINTS = re.compile(f"status of (404|503)|{SERVER_ENDS}")
# Two groups of streams; nine of them have room on one node.
STREAMS = ("dock", "gate", "hall", "lobby", "office", "ramp", "roof", "shop", "stairs", "yard")
NODES = ("n1", "n2")


def tile(page: Page, stream: str) -> Any:
    return page.locator(".tile", has=page.locator(".tile-name", has_text=re.compile(f"^{stream}$")))


def get(server: PageProcess, path: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", f"/api/{path}")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_streams_of_a_node_that_dies_are_not_live_until_the_next_node_watches_them(
    tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    with PageCluster(tmp_path, NODES, STREAMS) as cluster:
        owners = cluster.until(lambda owners: len(owners) == len(STREAMS) and set(owners.values()) == set(NODES))
        victim, other = (owners["dock"], owners["yard"])
        with PageProcess(None, "--cluster", cluster.server.address) as server:
            page = open_page(server.url, viewport={"width": 1440, "height": 900})
            expect(page.locator("#total-up")).to_have_text("10 of 10")
            # Those of the nodes' own files, which both call "own", are not among them.
            expect(page.locator(".tile")).to_have_count(10)
            for stream in ("dock", "yard"):
                tile(page, stream).scroll_into_view_if_needed()
                expect(tile(page, stream).locator("canvas[data-frame]")).to_have_count(1)
                expect(tile(page, stream)).to_contain_text(f"on {owners[stream]}")
            tile(page, "dock").evaluate("element => element.dataset.kept = 'yes'")

            # The head does not yet know of it.
            tile(page, "dock").scroll_into_view_if_needed()
            cluster.hold()
            cluster.kill(victim)
            expect(tile(page, "dock")).to_have_attribute("data-live", "false")
            expect(tile(page, "dock")).to_contain_text(f"waiting for {victim}")
            expect(tile(page, "dock").locator(".age")).to_have_text(re.compile("Last seen .* ago"))
            expect(tile(page, "yard")).to_have_attribute("data-live", "true")
            expect(page.locator("#notice")).to_contain_text(f"No connection from here to {victim}")
            expect(page.locator("#journal li", has_text=f"Node {victim}")).to_contain_text("The connection is gone.")

            # It gives the streams to the other node, as far as there is room.
            cluster.go_on()
            expect(page.locator("#total-up")).to_have_text("9 of 10")
            expect(page.locator(".tile")).to_have_count(10)
            after = cluster.until(lambda owners: len(owners) == 9)
            assert set(after.values()) == {other}
            (unplaced,) = set(STREAMS) - set(after)
            moved = "dock" if unplaced != "dock" else "gate"
            expect(tile(page, moved)).to_have_attribute("data-live", "true")
            expect(tile(page, moved)).to_contain_text(f"before on {victim}")
            assert tile(page, "dock").get_attribute("data-kept") == "yes"
            tile(page, unplaced).scroll_into_view_if_needed()
            expect(tile(page, unplaced)).to_contain_text("Unplaced")
            expect(tile(page, unplaced)).to_contain_text("No node watches it: it needs 5 frames per second")
            expect(page.locator("#journal li", has_text=f"Moved from {victim} to {other}")).to_have_count(8 - 1)
            expect(page.locator("#notice")).to_be_hidden()

            # The nodes, and the stream's own page.
            page.get_by_role("link", name="Nodes").click()
            expect(page.locator(".node", has_text=victim)).to_contain_text("Lost")
            expect(page.locator(".node", has_text=other)).to_contain_text("9 streams, load 45.0 of 45.0 fps")
            expect(page.locator("#moves tbody tr")).to_have_count(7)
            page.locator("#moves a", has_text=moved).click()
            expect(page.locator("#detail-picture canvas[data-frame]")).to_have_count(1)
            expect(page.locator("#facts")).to_contain_text(other)
            expect(page.locator("#stages-hint")).to_have_text("No batch was detected in the last seconds.")

            # The head goes, and all that is watched goes on.
            cluster.hold()
            cluster.server.close()
            expect(page.locator("#notice")).to_contain_text("cannot be asked")
            expect(page.locator("#notice")).to_contain_text("Streams go on from the nodes that are known.")
            before = page.locator("#detail-picture canvas").get_attribute("data-frame")
            expect(page.locator("#detail-picture canvas")).not_to_have_attribute("data-frame", before or "")
            expect(page.locator("#total-up")).to_have_text("9 of 10")


def test_the_past_of_all_nodes_is_one_list(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    pictures = f'[pictures]\ndirectory = "{tmp_path}/pictures-NODE"\n'
    rule = '[[rules]]\nname = "someone"\npicture = true\n'
    streams = ("dock", "gate", "hall", "lobby", "office", "ramp", "roof", "shop")
    with PageCluster(
        tmp_path, NODES, streams, comes_and_goes=True, more=pictures + rule, max_fps=10, track_max_lost_seconds=0.3
    ) as cluster:
        owners = cluster.until(lambda owners: len(owners) == 8 and set(owners.values()) == set(NODES))
        with PageProcess(None, "--cluster", cluster.server.address) as server:
            wait_until(lambda: {item["event"]["node"] for item in get(server, "review")["items"]} == set(NODES))
            wait_until(lambda: get(server, "review")["missing"] == "")
            for stream in ("dock", "ramp"):
                query = f"review?kind=alerts&stream={stream}"
                wait_until(lambda query=query: get(server, query)["items"], stream)
                (first, *_) = get(server, query)["items"]
                assert first["event"]["node"] == owners[stream]
            page = open_page(f"{server.url}#/review?kind=alerts&stream=ramp", viewport={"width": 1200, "height": 900})
            card = page.locator(".occurrence").last
            card.scroll_into_view_if_needed()
            assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 20

            cluster.hold()
            cluster.kill(owners["dock"])
            wait_until(lambda: get(server, "review")["missing"] == f"{owners['dock']} is away")
            wait_until(lambda: {item["event"]["node"] for item in get(server, "review")["items"]} == {owners["ramp"]})
            wait_until(lambda: get(server, "timeline?span=hour")["missing"] == f"{owners['dock']} is away")
            page.goto(f"{server.url}#/review")
            page.reload()
            expect(page.locator("#review-hint")).to_contain_text(f"is missing: {owners['dock']} is away.")


@pytest.mark.package("nodejs")
def test_the_views_of_a_cluster_have_no_finding_of_axe_and_need_no_mouse(
    tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    axe = axe_script(tmp_path)
    with PageCluster(tmp_path, NODES, STREAMS) as cluster:
        cluster.until(lambda owners: len(owners) == len(STREAMS))
        with PageProcess(None, "--cluster", cluster.server.address) as server:
            opened = [
                open_page(server.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
                for scheme, width in (("light", 1440), ("dark", 390), ("light", 320))
            ]
            for page in opened:
                expect(page.locator("#total-up")).to_have_text("10 of 10")
            cluster.kill(cluster.owners()["dock"])
            for page in opened:
                expect(page.locator("#total-up")).to_have_text("9 of 10")
                page.keyboard.press("Tab")  # to the link that skips what follows
                for _ in range(5):
                    page.keyboard.press("Tab")
                page.keyboard.press("Enter")
                expect(page.locator("#nodes-title")).to_be_focused()
                expect(page.locator("#moves tbody tr")).to_have_count(7)
                for address in ("#/nodes", "#/"):
                    page.goto(server.url + address)
                    page.evaluate(axe)
                    assert page.evaluate(FINDINGS) == [], address
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address

"""The dashboard in a browser, against what would use it: hostile pages of a batch, other pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import expect

from nimbus_tasks.core.errors import ProcessorError
from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.browser.conftest import NewPage, status
from tests.dashboard.served import Served
from tests.factories import a_map, upload, work, write_map

HOSTILE = '<script>document.title="owned"</script><img src=http://evil.test/x onerror=alert(1)>'


def test_hostile_pages_are_text_and_nothing_else(
    project: Project, store: Store, new_page: NewPage, dashboard: Served
) -> None:
    folder = project.folder / "maps"
    write_map(folder, "one.json", a_map(f"dist/\u202e{HOSTILE}.html"))
    batch_id = upload(project, store, folder).batch_id

    def process(one: Mapping[str, Any], progress: Callable[..., None]) -> Mapping[str, Any]:
        progress(HOSTILE, 20)
        raise ProcessorError(HOSTILE + "\u202e" + "x" * 3_000_000, code=HOSTILE[:50])

    work(project, store, process)
    page, asked, faults = new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.goto(f"{dashboard.url}#{batch_id}")
    name = page.locator(".failure-row .name")
    expect(name).to_contain_text("<script>")
    name.click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror=alert(1)")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Retry failed pages").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert all(address.startswith(dashboard.url) for address in asked)
    assert faults == []
    assert "owned" not in page.title()
    assert len(page.content()) < 100_000


def test_the_page_runs_nothing_that_is_put_into_it(new_page: NewPage, dashboard: Served) -> None:
    page = new_page()
    page.goto(dashboard.url)
    refused = page.evaluate("try { document.body.innerHTML = '<b>x</b>'; 0 } catch { 1 }")
    assert refused == 1
    inline = "const s = document.createElement('script'); document.body.append(s);"
    assert (
        page.evaluate(f"try {{ {inline} s.text = 'window.ran = 1'; }} catch {{}} window.ran")
        is None
    )


class _ForeignPage(BaseHTTPRequestHandler):
    """A page of another server on this machine: the same site to a browser, another origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title>")

    def log_message(self, *_: object) -> None:
        pass


def test_another_page_can_neither_act_nor_frame_even_if_it_knows_the_address(
    project: Project, store: Store, new_page: NewPage, dashboard: Served, failed: str
) -> None:
    page = new_page()
    with ThreadingHTTPServer(("127.0.0.1", 0), _ForeignPage) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{foreign.server_port}/")
        script = """async address => {
            const ways = [{}, {mode: "no-cors"}, {headers: {"x-nimbus-action": "1"}}];
            const ask = way => fetch(address, {method: "POST", body: "{}", ...way});
            return (await Promise.allSettled(ways.map(ask))).map(one => one.value?.status ?? 0);
        }"""
        assert page.evaluate(script, f"{dashboard.url}batches/{failed}/retry") == [0, 0, 0]
        page.evaluate(
            """address => new Promise(seen => {
                const frame = document.createElement("iframe");
                Object.assign(frame, {src: address, onload: seen});
                document.body.append(frame);
            })""",
            dashboard.url,
        )
        assert page.frame_locator("iframe").get_by_role("heading", name="Batches").count() == 0
        foreign.shutdown()
    assert status(project, store, failed)["status"] == "partially_completed"


def test_a_foreign_name_for_this_machine_is_refused(new_page: NewPage, dashboard: Served) -> None:
    page = new_page()
    answer = page.goto(dashboard.url.replace("127.0.0.1", "rebound.localhost"))
    assert answer is not None
    assert answer.status == 403
    expect(page.locator("body")).to_contain_text("not the address")

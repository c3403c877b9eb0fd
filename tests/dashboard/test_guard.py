"""Who may not speak to the dashboard, and what every answer tells the browser."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator

import pytest
import requests

from nimbus_tasks.core import batches
from nimbus_tasks.core.project import Project, new_project, save_project
from nimbus_tasks.dashboard import guard, serving
from nimbus_tasks.kv.store import Store
from tests.dashboard.served import Served, served


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dashboard of an empty project, for tests that change nothing."""
    project = new_project(tmp_path_factory.mktemp("still"))
    save_project(project)
    with served(project) as one:
        yield one


def fetched(site: str, mode: str, destination: str) -> dict[str, str]:
    """What a browser says of a request."""
    return {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}


def status_of(project: Project, store: Store, batch: str) -> str:
    head = batches.find(store, project.project_id, batch)
    return batches.fold(store, head).status(head.intent)


@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.test:{port}", ""],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(still: Served, host: str) -> None:
    answer = still.get(Host=host.format(port=still.address.port))
    assert answer.status_code in (400, 403)  # uvicorn itself refuses an empty one
    assert "<html" not in answer.text


def test_localhost_is_this_machine(still: Served) -> None:
    assert still.get(Host=f"localhost:{still.address.port}").status_code == 200


def test_two_hosts_are_none(still: Served) -> None:
    with socket.create_connection(("127.0.0.1", still.address.port), timeout=20) as plain:
        host = f"Host: 127.0.0.1:{still.address.port}\r\n"
        path = f"/{still.address.token}/"
        plain.sendall(f"GET {path} HTTP/1.1\r\n{host}Host: evil.test\r\n\r\n".encode())
        assert plain.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "path", ["", "/", "/static/main.js", "/events", "/x/", "/%00/", "//", "/{part}/"]
)
def test_without_the_token_there_is_nothing(still: Served, path: str) -> None:
    part = still.address.token[:-1]
    answer = requests.get(still.origin + path.format(part=part), timeout=20)
    assert answer.status_code == 403
    assert still.address.token not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        fetched("cross-site", "navigate", "document"),
        {"Host": "evil.test"},
    ],
)  # fmt: skip
def test_another_page_cannot_act(
    project: Project, store: Store, batch: str, dashboard: Served, headers: dict[str, str]
) -> None:
    assert dashboard.act(f"batches/{batch}/retry", **headers).status_code == 403
    assert status_of(project, store, batch) == "partially_completed"


def test_an_action_says_where_it_comes_from_and_has_a_header_of_its_own(
    batch: str, dashboard: Served
) -> None:
    address = f"{dashboard.url}batches/{batch}/retry"
    own = {"Origin": dashboard.origin, guard.ACTION_HEADER: "1"}
    for missing in own:
        headers = {name: value for name, value in own.items() if name != missing}
        assert requests.post(address, data="{}", headers=headers, timeout=20).status_code == 403
    assert requests.post(address, data="{}", headers=own, timeout=20).status_code == 200


@pytest.mark.parametrize("action", ["retry", "cancel"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_a_post_acts(
    project: Project, store: Store, batch: str, dashboard: Served, action: str, method: str
) -> None:
    own = {"Origin": dashboard.origin, guard.ACTION_HEADER: "1"}
    answer = requests.request(
        method, f"{dashboard.url}batches/{batch}/{action}", headers=own, timeout=20
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert status_of(project, store, batch) == "partially_completed"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        (fetched("cross-site", "navigate", "document"), 200),
        (fetched("cross-site", "navigate", "iframe"), 403),
        (fetched("cross-site", "no-cors", "script"), 403),
        (fetched("same-site", "cors", "empty"), 403),
        ({"Origin": "http://evil.test"}, 403),
    ],
)  # fmt: skip
def test_the_page_can_be_opened_and_not_be_used(
    still: Served, headers: dict[str, str], status: int
) -> None:
    assert still.get(**headers).status_code == status


@pytest.mark.parametrize(
    "path", ["", "static/main.js", "static/none.js", "project", "none", "batches/x/retry"]
)
def test_every_answer_has_the_headers_and_none_a_cookie(still: Served, path: str) -> None:
    refused = requests.get(still.origin, timeout=20)
    for answer in (still.get(path), refused):
        assert {name: answer.headers.get(name) for name in guard.HEADERS} == dict(guard.HEADERS)
        assert "set-cookie" not in answer.headers
        assert "server" not in answer.headers


def test_the_policy_lets_the_page_load_its_own_files_and_nothing_else(still: Served) -> None:
    policy = still.get().headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))


@pytest.mark.parametrize(
    "path", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "%2fetc%2fpasswd", ""]
)
def test_only_the_pages_own_files_are_served(still: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", still.address.port), timeout=20) as plain:
        where = f"/{still.address.token}/static/{path}"
        host = f"Host: 127.0.0.1:{still.address.port}"
        plain.sendall(f"GET {where} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode())
        assert plain.recv(100).split()[1] in (b"404", b"403")


def test_an_address_without_its_last_slash_leads_to_the_page(still: Served) -> None:
    answer = requests.get(still.url[:-1], timeout=20)
    assert answer.status_code == 200
    assert answer.url == still.url


def test_the_address_is_random_and_its_owners_alone(project: Project) -> None:
    assert len({guard.new_token() for _ in range(50)}) == 50
    listening, address = serving.open_port(project, 0)
    listening.close()
    kept = project.folder / "dashboard.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text()) == {"port": address.port, "token": address.token}


def test_a_dashboard_that_starts_again_has_its_address_again(project: Project) -> None:
    project.folder.mkdir(exist_ok=True)
    listening, address = serving.open_port(project, None)
    listening.close()
    again, same = serving.open_port(project, None)
    again.close()
    assert same == address


def test_where_the_port_is_taken_the_token_is_not_used_again(project: Project) -> None:
    listening, address = serving.open_port(project, None)
    with listening:
        other, its = serving.open_port(project, None)
        other.close()
    assert its.port != address.port
    assert its.token != address.token


def test_an_address_that_others_can_read_is_not_used_again(project: Project) -> None:
    listening, address = serving.open_port(project, None)
    listening.close()
    (project.folder / "dashboard.json").chmod(0o640)
    other, its = serving.open_port(project, None)
    other.close()
    assert its.token != address.token
    assert stat.S_IMODE((project.folder / "dashboard.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "kept", ["", "[]", "{}", '{"port": "x", "token": 1}', '{"port": 99999, "token": "short"}']
)
def test_a_spoiled_address_is_made_anew(project: Project, kept: str) -> None:
    path = project.folder / "dashboard.json"
    path.touch(mode=0o600)
    path.write_text(kept)
    listening, address = serving.open_port(project, None)
    listening.close()
    assert len(address.token) == 43


def test_the_key_of_a_browser_leads_to_the_address_once(dashboard: Served) -> None:
    once = dashboard.address.url_for_once
    assert dashboard.address.key not in (dashboard.address.token, "")
    rebound = requests.get(once, headers={"Host": "evil.test"}, timeout=20, allow_redirects=False)
    assert rebound.status_code == 403
    first = requests.get(once, timeout=20, allow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, f"/{dashboard.address.token}/")
    assert requests.get(once, timeout=20).status_code == 403

"""The project: its configuration, made once, and its store."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nimbus_tasks.core.errors import StoreError, UsageError
from nimbus_tasks.core.keys import is_id
from nimbus_tasks.core.project import (
    Project,
    config_path,
    create_project,
    load_project,
    new_project,
    save_project,
)
from tests.factories import names_in

CONFIG: dict[str, Any] = {
    "project_id": "proj_0123456789ab",
    "name": "Shop",
    "created": "2026-11-24T12:00:00.000000Z",
    "store": "sqlite",
    "queue": "keys",
}


def write_config(root: Path, content: object) -> Path:
    """Write a configuration: JSON, or text or bytes as they are."""
    path = config_path(root)
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return path


# --- the configuration ---


def test_a_configuration_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)

    assert load_project(tmp_path) == Project(
        tmp_path, "proj_0123456789ab", "Shop", "2026-11-24T12:00:00.000000Z"
    )


def test_a_project_that_was_saved_is_loaded_as_the_same(tmp_path: Path) -> None:
    project = new_project(tmp_path, name="Ünïcode 😀 \n shop")
    save_project(project)

    assert load_project(tmp_path) == project
    assert names_in(tmp_path / ".nimbus") == ["project-config.json"]


def test_a_new_project_has_an_id_of_its_own_and_the_name_of_its_folder(tmp_path: Path) -> None:
    one, two = new_project(tmp_path / "shop"), new_project(tmp_path / "shop")

    assert one.name == "shop"
    assert is_id(one.project_id)
    assert one.project_id != two.project_id


def test_all_of_a_projects_files_lie_in_its_folder(tmp_path: Path) -> None:
    project = new_project(tmp_path)

    assert config_path(tmp_path) == tmp_path / ".nimbus" / "project-config.json"
    assert project.store_path == tmp_path / ".nimbus" / "kv.sqlite3"
    assert project.reports == tmp_path / ".nimbus" / "reports"


def test_fields_that_we_do_not_know_are_left_alone(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "cloudflare": {"account_id": "a1", "api_base": "http://127.0.0.1", "x": [1, None]},
        "owner": "ann",
        "": {},
    }
    path = write_config(tmp_path, config)

    save_project(load_project(tmp_path))

    assert json.loads(path.read_text(encoding="utf-8")) == config


def test_a_configuration_needs_no_more_than_an_id(tmp_path: Path) -> None:
    write_config(tmp_path, {"project_id": "proj_1"})

    project = load_project(tmp_path)

    assert (project.project_id, project.name) == ("proj_1", tmp_path.name)
    assert (project.store, project.queue, project.created) == ("sqlite", "keys", "")


def test_a_configuration_that_an_editor_gave_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())

    assert load_project(tmp_path).name == "Shop"


def test_a_project_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no project") as error:
        load_project(tmp_path)

    assert error.value.exit_code == 2
    assert error.value.advice is not None
    assert "nimbus.init" in error.value.advice


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{'project_id': 'proj_1'}",
        '{"project_id": "proj_1",}',
        "[" * 200_000,
        '{"project_id": "proj_1", "n": ' + "9" * 5000 + "}",
        b"\xff\xfe\x00",
        b"\x00" * 100,
        "[]",
        "null",
        '"proj_1"',
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_broken_configuration_is_refused_and_its_path_named(
    tmp_path: Path, content: object
) -> None:
    path = write_config(tmp_path, content)

    with pytest.raises(UsageError) as error:
        load_project(tmp_path)
    assert str(path) in error.value.message
    assert error.value.exit_code == 2


def test_a_folder_in_the_place_of_the_configuration_is_refused(tmp_path: Path) -> None:
    config_path(tmp_path).mkdir(parents=True)

    with pytest.raises(UsageError, match=r"project-config\.json"):
        load_project(tmp_path)


def test_a_file_in_the_place_of_the_projects_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".nimbus").write_text("a file")

    with pytest.raises(UsageError, match=r"project-config\.json"):
        load_project(tmp_path)


@pytest.mark.parametrize(
    "project_id", [None, "", 5, True, [], {}, "a:b", "../x", "a\n", "a" * 129, "é"]
)
def test_a_project_id_that_may_not_stand_in_a_key_is_refused(
    tmp_path: Path, project_id: object
) -> None:
    write_config(tmp_path, {**CONFIG, "project_id": project_id})

    with pytest.raises(UsageError, match="project_id") as error:
        load_project(tmp_path)
    assert error.value.exit_code == 2


def test_a_configuration_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    path = config_path(tmp_path)
    path.mkdir(parents=True)
    with pytest.raises(UsageError) as error:
        load_project(tmp_path)
    assert error.value.message == f"cannot read {path}: Is a directory"
    path.rmdir()
    path.write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        load_project(tmp_path)


def test_a_missing_project_id_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {"name": "Shop"})

    with pytest.raises(UsageError, match="project_id"):
        load_project(tmp_path)


@pytest.mark.parametrize("value", [None, "", 5, True, [], ["sqlite"], {}, "redis", "SQLITE", "a\n"])
@pytest.mark.parametrize("name", ["store", "queue"])
def test_a_store_or_queue_that_we_do_not_know_is_refused_and_named(
    tmp_path: Path, name: str, value: object
) -> None:
    write_config(tmp_path, {**CONFIG, name: value})

    with pytest.raises(UsageError, match=f"'{name}'") as error:
        load_project(tmp_path)
    assert error.value.exit_code == 2
    assert error.value.advice is not None


@pytest.mark.parametrize("name", [None, 5, True, [], {}])
def test_a_name_of_the_wrong_type_counts_as_absent(tmp_path: Path, name: object) -> None:
    write_config(tmp_path, {**CONFIG, "name": name})

    assert load_project(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("created", [None, 5, True, [], {}])
def test_a_creation_time_of_the_wrong_type_counts_as_absent(
    tmp_path: Path, created: object
) -> None:
    write_config(tmp_path, {**CONFIG, "created": created})

    assert load_project(tmp_path).created == ""


def test_a_configuration_with_half_a_surrogate_pair_is_refused_or_written_again(
    tmp_path: Path,
) -> None:
    write_config(tmp_path, '{"project_id": "proj_1", "owner": "\\ud83d"}')

    try:
        project = load_project(tmp_path)
    except UsageError:
        return
    save_project(project)

    assert load_project(tmp_path) == project


# --- two at once ---


def test_a_project_is_created_where_there_is_none(tmp_path: Path) -> None:
    project = new_project(tmp_path, name="Shop")

    assert create_project(project) is project
    assert load_project(tmp_path) == project
    assert names_in(tmp_path / ".nimbus") == ["project-config.json"]


def test_of_two_that_create_a_project_at_once_the_first_one_is_it(tmp_path: Path) -> None:
    first, second = new_project(tmp_path), new_project(tmp_path)

    assert create_project(first) is first
    assert create_project(second) == first
    assert load_project(tmp_path) == first
    assert names_in(tmp_path / ".nimbus") == ["project-config.json"]


def test_a_broken_configuration_is_not_overwritten_by_a_new_project(tmp_path: Path) -> None:
    path = write_config(tmp_path, "{broken")

    with pytest.raises(UsageError, match="JSON"):
        create_project(new_project(tmp_path))
    assert path.read_text() == "{broken"
    assert names_in(tmp_path / ".nimbus") == ["project-config.json"]


def test_a_project_that_cannot_be_created_is_a_store_error_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)

    with pytest.raises(StoreError, match="No space left"):
        create_project(new_project(tmp_path))
    assert names_in(tmp_path / ".nimbus") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_project_is_created_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    project = new_project(tmp_path)

    assert create_project(project) is project
    assert load_project(tmp_path) == project
    assert names_in(tmp_path / ".nimbus") == ["project-config.json"]


# --- opening the store ---


def test_a_store_that_is_not_there_is_made_only_if_asked_for(tmp_path: Path) -> None:
    project = new_project(tmp_path)

    with pytest.raises(StoreError, match="no store"), project.open_store():
        pass
    assert names_in(tmp_path) == []

    with project.open_store(create=True) as store:
        store.put("a", "1")
    with project.open_store() as store:
        assert store.get("a") is not None


def test_a_store_is_closed_when_the_work_with_it_fails(tmp_path: Path) -> None:
    project = new_project(tmp_path)

    with pytest.raises(KeyError), project.open_store(create=True) as store:
        raise KeyError
    with pytest.raises(StoreError):
        store.get("a")

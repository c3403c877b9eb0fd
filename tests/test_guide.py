"""The guide: where a project stands, whatever it is in, and what to type next."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoke.context import Context

from nimbus_tasks import doctor, guide, nimbus
from nimbus_tasks.core.project import Project, config_path
from nimbus_tasks.kv.store import Store
from tests.factories import failing, invoke, upload, work


def commands(root: Path) -> list[str]:
    return [step.command for step in guide.standing(root).steps]


def test_where_there_is_no_project_or_no_batch_it_begins_with_an_upload(
    tmp_path: Path, project: Project
) -> None:
    assert commands(tmp_path / "nowhere") == ["invoke nimbus.upload"]
    assert commands(project.root) == ["invoke nimbus.upload"]
    with project.open_store(create=True):
        assert commands(project.root) == ["invoke nimbus.upload"]


@pytest.mark.parametrize(
    ("settings", "folder"),
    [("nimbus: {upload: {folder: content/maps}}", "content/maps"), ("nimbus: 5", ".nimbus/maps")],
)
def test_it_names_the_folder_that_an_upload_would_send(
    project: Project, settings: str, folder: str
) -> None:
    (project.root / "invoke.yaml").write_text(settings)
    shown = invoke(project.root, "nimbus").stdout
    assert f"Send the content maps in {folder}, or in --folder" in shown


def test_it_goes_on_with_the_latest_batch(project: Project, store: Store, maps: Path) -> None:
    batch_id = upload(project, store, maps).batch_id
    assert commands(project.root) == [f"invoke nimbus.worker --batch={batch_id}"]
    work(project, store, failing("dist/page-001.html"))
    assert "9 of 10 pages done, 1 failed" in guide.standing(project.root).words
    assert commands(project.root) == [
        f"invoke nimbus.batch.report --batch={batch_id} --open",
        f"invoke nimbus.batch.retry --batch={batch_id} --error=broken",
        f"invoke nimbus.worker --batch={batch_id}",
    ]


def test_what_is_wrong_is_said_and_is_no_error_of_the_guide(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config_path(project.root).write_text("{")
    monkeypatch.chdir(project.root)
    guide.guide(Context())
    shown = capsys.readouterr().out
    words, advice = " ".join(shown.split()), "Write a new one with: invoke nimbus.init --force"
    assert f"(line 1, column 2) · {advice} See what else there is to it:" in words
    assert "Something is wrong" in shown
    assert "     invoke nimbus.doctor\n" in shown


def test_a_configuration_that_is_named_and_not_there_is_said_by_guide_and_doctor(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMBUS_CONFIG", "nowhere.json")
    assert "NIMBUS_CONFIG names no file: nowhere.json" in guide.standing(project.root).words
    checks = {check.name: check for check in doctor.examine(project.root)}
    assert "NIMBUS_CONFIG names no file" in checks["configuration"].detail
    assert checks["folder"].level == "ok"


def test_the_collections_name_alone_is_the_guide_and_that_of_batches_the_list(
    project: Project, store: Store, maps: Path
) -> None:
    batch_id = str(upload(project, store, maps).batch_id)
    said = invoke(project.root, "nimbus").stdout
    assert f"\n   Project test has 1 batch; the latest, {batch_id}, is queued: " in said
    listed = invoke(project.root, "nimbus.batch").stdout
    assert listed.splitlines()[1].split()[1] == batch_id


def test_each_task_has_a_line_for_the_list_and_an_example_for_its_help() -> None:
    for name in nimbus.task_names:
        lines = (nimbus[name].__doc__ or "").strip().splitlines()
        assert len(lines[0]) <= 60, name
        assert any("Example: invoke nimbus" in line for line in lines), name
        # Invoke shows them as they are, two columns in.
        assert all(len(line.strip()) <= 78 for line in lines), name


def test_the_guide_names_every_task() -> None:
    named = {name for _, tasks in guide._PURPOSES for name in tasks.split(", ")}
    assert named == set(nimbus.task_names) - {"guide"}

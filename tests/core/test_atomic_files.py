"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus_tasks.core.errors import StoreError
from nimbus_tasks.core.project import atomic_files, write_atomically
from tests.factories import names_in


def test_a_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "report.json"

    write_atomically(path, ["é\n", "😀"])

    assert path.read_bytes() == "é\n😀".encode()
    assert names_in(path.parent) == ["report.json"]


def test_an_older_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("something much longer than the new text")

    write_atomically(path, ["new"])

    assert path.read_text() == "new"


def test_until_all_is_written_a_reader_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    with atomic_files([path]) as (file,):
        file.write("new")
        file.flush()
        assert path.read_text() == "old"

    assert path.read_text() == "new"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_writing_that_is_cut_off_leaves_the_old_file_and_no_litter(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def parts() -> Iterator[str]:
        yield "half"
        raise failure

    with pytest.raises(failure):
        write_atomically(path, parts())
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["report.json"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)

    with pytest.raises(StoreError, match=r"report\.json.*No space left") as error:
        write_atomically(path, ["new"])
    assert error.value.exit_code == 5
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["report.json"]


def test_a_folder_in_the_place_of_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.mkdir()

    with pytest.raises(StoreError, match="cannot write"):
        write_atomically(path, ["new"])
    assert names_in(tmp_path) == ["report.json"]


def test_a_file_in_the_place_of_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")

    with pytest.raises(StoreError, match="cannot write"):
        write_atomically(tmp_path / "reports" / "report.json", ["new"])
    assert (tmp_path / "reports").read_text() == "a file"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_file_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    old_mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "report.json", ["new"])
    finally:
        os.umask(old_mask)

    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o640


def test_a_text_that_no_file_can_hold_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    with pytest.raises((StoreError, UnicodeEncodeError)):
        write_atomically(path, ["half of a pair: \ud83d"])
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["report.json"]

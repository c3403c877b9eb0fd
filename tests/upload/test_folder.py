"""Checking a folder: each file is taken or refused, with its reason on one line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.maps import find_map_files
from nimbus_tasks.upload.folder import Checked, check_folder
from tests.factories import a_map, write_map, write_maps

PROJECT = "proj_test"


def check(folder: Path) -> Checked:
    return check_folder(folder, PROJECT)


def reasons(folder: Path) -> dict[str, str]:
    return {rejected.file: rejected.error for rejected in check(folder).rejected}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"path": "x", ', "no JSON"),
        ("[1, 2]", "an array"),
        ('"text"', "a text"),
        ("null", "null"),
        ("7", "a number"),
        ('{"head": {}}', "no 'path', 'route' or 'url'"),
        ('{"path": "", "head": {}}', "no 'path'"),
        ('{"path": ["x"], "head": {}}', "an array for its 'path'"),
        ('{"path": "x"}', "neither 'head' nor 'blocks'"),
        ('{"path": "x", "head": []}', "an array for its 'head'"),
        ('{"path": "x", "blocks": {}}', "an object for its 'blocks'"),
        ('{"path": "x", "blocks": [{}, "p"]}', "a text for block 1"),
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"path": "x", "head": {"n": NaN}}', "holds NaN"),
        ('{"path": "x", "head": {"n": 1e999}}', "1e999"),
        ('{"path": "x", "head": {"n": ' + "9" * 5000 + "}}", "thousands of digits"),
        ('{"path": "x", "head": {"t": "\\ud800"}}', "surrogate"),
        (b'{"path": "\xe9"}', "not UTF-8 text (byte 10)"),
        ('{"path": "' + "x" * 3000 + '", "head": {}}', "3000 characters"),
    ],
)
def test_what_is_no_map_is_refused_with_its_reason(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    write_map(tmp_path, "bad.json", content)
    write_map(tmp_path, "good.json", a_map())
    checked = check(tmp_path)
    assert [content_map.file for content_map in checked.maps] == ["good.json"]
    [rejected] = checked.rejected
    assert rejected.file == "bad.json"
    assert reason in rejected.error
    assert "\n" not in rejected.error


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    write_map(tmp_path, "bom.json", b"\xef\xbb\xbf" + json.dumps(a_map("bom")).encode())
    assert [m.source_path for m in check(tmp_path).maps] == ["bom"]


@pytest.mark.parametrize("name", ["route", "url"])
def test_a_page_may_be_named_by_its_route_or_url(tmp_path: Path, name: str) -> None:
    write_map(tmp_path, "a.json", {name: "/about", "head": {}})
    assert [m.source_path for m in check(tmp_path).maps] == ["/about"]


def test_titles_of_escape_codes_and_html_are_content_and_taken(tmp_path: Path) -> None:
    title = "\x1b[31mred\x07 <script>alert(1)</script>"
    write_map(tmp_path, "a.json", a_map("a", head={"title": title}))
    assert len(check(tmp_path).maps) == 1


def test_a_file_of_300_megabytes_is_refused_unread(tmp_path: Path) -> None:
    os.truncate(write_map(tmp_path, "huge.json", "{}"), 300 * 2**20)
    assert "too large: 300.0 MB" in reasons(tmp_path)["huge.json"]


def test_two_files_of_one_page_are_both_refused(tmp_path: Path) -> None:
    write_map(tmp_path, "one.json", a_map("same"))
    write_map(tmp_path, "two.json", a_map("same"))
    write_map(tmp_path, "other.json", a_map("other"))
    checked = check(tmp_path)
    assert [m.file for m in checked.maps] == ["other.json"]
    assert reasons(tmp_path) == {
        "one.json": "names the same page as two.json",
        "two.json": "names the same page as one.json",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes as POSIX has them")
def test_links_out_of_the_folder_loops_and_pipes_are_refused_without_waiting(
    tmp_path: Path,
) -> None:
    secret = write_map(tmp_path / "outside", "secret.json", a_map("secret"))
    folder = tmp_path / "maps"
    write_map(folder, "real.json", a_map("real"))
    (folder / "out.json").symlink_to(secret)
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "in.json").symlink_to("real.json")
    os.mkfifo(folder / "pipe.json")
    refused = reasons(folder)
    assert "leads out of the folder" in refused["out.json"]
    assert "cannot be read" in refused["loop.json"]
    assert "no regular file" in refused["pipe.json"]
    assert "same page" in refused["in.json"]  # within the folder it is only a twin


@pytest.mark.skipif(sys.platform == "win32", reason="links as POSIX has them")
def test_links_to_folders_are_not_followed_so_that_a_circle_has_an_end(tmp_path: Path) -> None:
    folder, outside = tmp_path / "maps", tmp_path / "outside"
    write_map(folder / "blog", "a.json", a_map("a"))
    write_map(outside, "b.json", a_map("b"))
    (folder / "blog" / "up").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "beside").symlink_to(outside)
    assert list(find_map_files(folder)) == ["blog/a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="links as POSIX has them")
def test_a_folder_that_is_a_link_itself_is_searched(tmp_path: Path) -> None:
    write_map(tmp_path / "maps", "a.json", a_map("a"))
    (tmp_path / "linked").symlink_to(tmp_path / "maps")
    (tmp_path / "maps" / "twin.json").symlink_to("a.json")
    assert list(find_map_files(tmp_path / "linked")) == ["a.json", "twin.json"]
    assert reasons(tmp_path / "linked").keys() == {"a.json", "twin.json"}  # of one page, no more


def test_the_listing_is_told_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    listing = {"pages": [{"file": "index.json", "path": "dist/index.html", "title": "Home"}]}
    write_map(tmp_path, "scan.json", listing)
    write_map(tmp_path, "index.json", a_map("dist/index.html"))
    checked = check(tmp_path)
    assert list(checked.listings) == ["scan.json"]
    assert [m.file for m in checked.maps] == ["index.json"]
    assert not checked.rejected


def test_folders_are_searched_in_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.json", "a/z.json", ".hidden/c.json", ".d.json", "notes.txt"):
        write_map(tmp_path, name, a_map(name))
    assert [m.file for m in check(tmp_path).maps] == ["a/z.json", "b.json"]


def test_a_limit_takes_the_first_usable_maps(tmp_path: Path) -> None:
    write_maps(tmp_path, 5)
    write_map(tmp_path, "aaa.json", "{")
    checked = check_folder(tmp_path, PROJECT, limit=2)
    assert [m.file for m in checked.maps] == ["page-000.json", "page-001.json"]
    assert [r.file for r in checked.rejected] == ["aaa.json"]


@pytest.mark.parametrize("name", ["missing", "file.json"])
def test_a_folder_that_is_none_is_a_usage_error(tmp_path: Path, name: str) -> None:
    write_map(tmp_path, "file.json", "{}")
    with pytest.raises(UsageError, match=name):
        check(tmp_path / name)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["path", "head", "blocks", "pages", "url", "x"]), inner, max_size=4
            )
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_a_file_holds_it_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    write_map(tmp_path, "any.json", content)
    checked = check(tmp_path)
    assert len(checked.maps) + len(checked.rejected) + len(checked.listings) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text as Linux has them")
def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.json")).write_text(json.dumps(a_map("a")))
    (tmp_path / os.fsdecode(b"\xff.json")).write_text("{")
    checked = check(tmp_path)
    assert [m.source_path for m in checked.maps] == ["a"]
    assert [os.fsencode(r.file) for r in checked.rejected] == [b"\xff.json"]


def test_a_folder_that_is_called_like_a_map_is_searched(tmp_path: Path) -> None:
    write_map(tmp_path, "old.json/a.json", a_map("a"))
    write_map(tmp_path, "Upper.JSON", a_map("b"))
    assert [m.file for m in check(tmp_path).maps] == ["Upper.JSON", "old.json/a.json"]


def test_folders_may_lie_deep_in_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 1200  # a path of 2,400 characters; Linux allows 4,096
    write_map(tmp_path, "a.json", a_map("a"))
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    write_map(Path(), "b.json", a_map("b"))
    try:
        assert len(check(tmp_path).maps) == 2
    finally:  # shutil.rmtree cannot take it away
        Path("b.json").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()


def test_a_path_of_spaces_is_refused_for_what_it_is(tmp_path: Path) -> None:
    write_map(tmp_path, "a.json", a_map("  "))
    assert "not a text" not in reasons(tmp_path)["a.json"]

"""The README's completion for bash, in a real interactive bash."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from nimbus_tasks.core.project import Project
from nimbus_tasks.kv.store import Store
from tests.factories import REPOSITORY, TASKS, upload
from tests.terminal.pseudo_terminal import PseudoTerminal

BASH = shutil.which("bash") or ""


@pytest.mark.skipif(not BASH, reason="this system has no bash")
def test_bash_completes_tasks_options_and_batch_ids(
    project: Project, store: Store, maps: Path, tmp_path: Path
) -> None:
    batch_id = str(upload(project, store, maps).batch_id)
    (project.root / "tasks.py").write_text(TASKS)
    found = re.search(
        r"```bash\n(.+?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    start = tmp_path / "bashrc"
    start.write_text(f"PS1='ready> '\n{found[1]}", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    argv = [BASH, "--noprofile", "--rcfile", str(start), "-i"]
    with PseudoTerminal(argv, project.root, 120, 30, PATH=path) as shell:
        shell.shows("ready>")
        shell.press("invoke nimbus.batch.sta\t")
        shell.shows("nimbus.batch.status")
        shell.press("--exit\t")
        shell.shows("--exit-status")
        shell.press("--batch=ba\t")
        shell.shows(f"--batch={batch_id}")
        shell.press("\x15inv nimbus.batch.wait --batch la\t")
        shell.shows("--batch latest")

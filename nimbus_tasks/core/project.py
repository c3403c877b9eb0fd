"""The project: its directory, its configuration file, and the store that it names."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nimbus_tasks.core.clock import now_iso
from nimbus_tasks.core.errors import UsageError, cannot_write
from nimbus_tasks.core.keys import is_id, new_project_id
from nimbus_tasks.core.wire import NoJsonError, strict_loads, text_field

if TYPE_CHECKING:
    from nimbus_tasks.kv.store import Store

#: The folder of content maps, in the project, where nobody says otherwise.
DEFAULT_FOLDER = ".nimbus/maps"
STORES = ("sqlite", "cloudflare")
QUEUES = ("keys", "document", "cloudflare-queues")
#: Those of :attr:`Project.engine` that are a Worker.
WORKER_ENGINES = ("cloudflare", "dev")
#: What file systems without hard links answer; EINVAL is what Windows does of FAT.
_NO_HARD_LINKS = frozenset(
    (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
)
#: Nobody writes a report for so long.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Project:
    """A project directory and its configuration.

    ``cloudflare`` has ``account_id``, ``namespace_id``, ``queue_id``, ``api_base`` and
    ``worker_namespace_id``, each as far as it is set; ``extra`` are fields of others, left alone.
    """

    root: Path
    project_id: str
    name: str
    created: str
    store: str = "sqlite"
    queue: str = "keys"
    cloudflare: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """``.nimbus`` in the project directory."""
        return self.root / ".nimbus"

    @property
    def store_path(self) -> Path:
        """The file of the embedded store."""
        return self.folder / "kv.sqlite3"

    @property
    def reports(self) -> Path:
        """The folder of the reports."""
        return self.folder / "reports"

    def to_config(self) -> dict[str, Any]:
        """What the configuration file holds."""
        return {
            "project_id": self.project_id,
            "name": self.name,
            "created": self.created,
            "store": self.store,
            "queue": self.queue,
            **({"cloudflare": dict(self.cloudflare)} if self.cloudflare else {}),
            **self.extra,
        }

    @property
    def has_store(self) -> bool:
        """Whether there is a store already; one on Cloudflare is not made here."""
        return self.store != "sqlite" or self.store_path.exists()

    @property
    def is_shared(self) -> bool:
        """Whether workers on any number of machines may share the work."""
        return self.queue == "cloudflare-queues"

    @property
    def engine(self) -> str:
        """Who takes up queued pages: ``python`` is one ``nimbus.worker``; ``fleet`` several of
        them, to which a Cloudflare Queue gives pages of any batch; ``cloudflare`` the Worker that
        ``nimbus.cloud.deploy`` has deployed; ``dev`` that of ``nimbus.cloud.dev``."""
        if self.is_shared:
            return "fleet"
        served = self.cloudflare.get("worker_namespace_id")
        if self.store != "cloudflare" or not served:
            return "python"
        if served != self.cloudflare.get("namespace_id"):
            return "python"
        return "dev" if "/cdn-cgi/local/" in str(self.cloudflare.get("api_base")) else "cloudflare"

    @contextmanager
    def open_store(
        self,
        *,
        create: bool = False,
        tell: Callable[[str], None] = lambda _: None,
        hold_seconds: float | None = None,
    ) -> Iterator[Store]:
        """The project's store, opened; made if ``create`` is set and it is the embedded one.

        ``tell`` is told in words where the store has to wait. ``hold_seconds`` makes it the store
        of a worker: only then it takes messages from a queue, and nobody else is given them for so
        long. Raises :class:`UsageError` for a configuration that names no store,
        :class:`StoreError` for one that cannot be opened.
        """
        with self._in_front(self._open(create, tell), tell, hold_seconds) as store:
            yield store

    def _in_front(
        self, store: Store, tell: Callable[[str], None], hold_seconds: float | None
    ) -> Store:
        """The store as the layout of the queue has it."""
        if self.queue == "document":
            from nimbus_tasks.core.queue_document import DocumentQueueStore

            return DocumentQueueStore(store, self.project_id)
        if self.is_shared:
            from nimbus_tasks.core.queue_messages import MessageQueueStore
            from nimbus_tasks.kv.cloudflare import open_queue

            queue = open_queue(self.cloudflare, os.environ, tell)
            return MessageQueueStore(store, queue, self.project_id, hold_seconds=hold_seconds)
        return store

    def _open(self, create: bool, tell: Callable[[str], None]) -> Store:
        if self.store == "cloudflare":
            from nimbus_tasks.kv.cloudflare import open_cloudflare

            # Then others write over what this directory has just written.
            shared = self.engine != "python"
            return open_cloudflare(self.cloudflare, os.environ, self.folder, tell, shared=shared)
        from nimbus_tasks.kv.sqlite import SqliteStore

        if create:
            self.folder.mkdir(mode=0o775, parents=True, exist_ok=True)
        return SqliteStore(self.store_path, create=create, tell=tell)


def check_layout(store: str, queue: str) -> None:
    """Raises :class:`UsageError` for a store that cannot keep its queue in that layout."""
    if queue == "cloudflare-queues" and store != "cloudflare":
        raise UsageError(
            f"the queue {queue} goes with the store cloudflare, not with {store}",
            advice="Give nimbus.init --force --store=cloudflare, or --queue=keys.",
        )


def config_path(root: Path) -> Path:
    """Where the configuration of the project in ``root`` lies: where ``NIMBUS_CONFIG`` says, if it
    is set. Raises :class:`UsageError` if that is no file."""
    other = os.environ.get("NIMBUS_CONFIG")
    if not other:
        return root / ".nimbus" / "project-config.json"
    if not Path(other).is_file():
        raise UsageError(f"NIMBUS_CONFIG names no file: {other}", advice="Mend it, or unset it.")
    return Path(other).absolute()


def new_project(root: Path, *, name: str | None = None, project_id: str | None = None) -> Project:
    """A project of the embedded store, not yet written: called like its folder, if not named."""
    folder = root.name.encode("utf-8", "replace").decode()  # a folder's name need not be text
    return Project(root, project_id or new_project_id(), name or folder or "project", now_iso())


def load_project(root: Path) -> Project:
    """The project of a directory. Raises :class:`UsageError` where there is none, or a bad one."""
    path = config_path(root)
    try:
        config = strict_loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(
            f"there is no project in {root} (no .nimbus/project-config.json)",
            advice="Make one with: invoke nimbus.init, or upload your first pages.",
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", advice=_mending()) from error
    except NoJsonError as error:
        raise UsageError(f"{path} {error}", advice=_mending()) from error
    return _parse_config(root, path, config)


def save_project(project: Project) -> None:
    """Write the configuration file, whole or not at all."""
    write_atomically(config_path(project.root), [_config_text(project)])


def create_project(project: Project) -> Project:
    """Write the configuration of a new project, unless somebody else has just made one there: then
    that one is returned, and is the project. Raises :class:`StoreError`."""
    import secrets  # not at the top: most commands only read, and it brings all of OpenSSL

    path = config_path(project.root)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    write_atomically(beside, [_config_text(project)])
    try:
        os.link(beside, path)  # unlike a rename it refuses where there is a file
    except FileExistsError:
        return load_project(project.root)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise cannot_write(path, error) from error
        save_project(project)
    finally:
        beside.unlink(missing_ok=True)
    return project


def _config_text(project: Project) -> str:
    return json.dumps(project.to_config(), indent=2, ensure_ascii=False) + "\n"


@contextmanager
def atomic_files(paths: Iterable[Path]) -> Iterator[list[TextIO]]:
    """Text files to write to, made beside ``paths`` and put in their places when all of them are
    written and synced.

    On an exception nothing is left behind and older files stay as they were. What a killed writer
    has left is removed by a later one. Raises :class:`OSError`.
    """
    with ExitStack() as made:
        parts = [(made.enter_context(_beside(path)), path) for path in paths]
        yield [file for file, _ in parts]
        for file, _ in parts:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        # mkstemp makes files for the owner alone; reports are to be as readable as any new file.
        # But nobody else may write them, whatever the umask: the configuration says where the token
        # is sent.
        umask = os.umask(0)
        os.umask(umask)
        for file, path in parts:
            Path(file.name).chmod(0o664 & ~umask)
            Path(file.name).replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[TextIO]:
    """A text file beside ``path``, which goes at the end unless it was renamed."""
    import tempfile  # as above

    path.parent.mkdir(mode=0o775, parents=True, exist_ok=True)
    if path.is_dir():  # which no file can take the place of: not to be found out at the end
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(fd)
    part = Path(name)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, parts: Iterator[str] | list[str]) -> None:
    """Write text to ``path``, whole or not at all. Raises :class:`StoreError`."""
    try:
        with atomic_files([path]) as (file,):
            file.writelines(parts)
    except OSError as error:
        raise cannot_write(path, error) from error


def _mending() -> str:
    """What to do about a configuration that cannot be read."""
    if os.environ.get("NIMBUS_CONFIG"):
        return (
            "NIMBUS_CONFIG names it: unset that, or mend it (nimbus.cloud.dev writes its own anew)."
        )
    return "Write a new one with: invoke nimbus.init --force"


def _parse_config(root: Path, path: Path, config: object) -> Project:
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no JSON object", advice=_mending())
    project_id = config.get("project_id")
    if not is_id(project_id):
        raise UsageError(f"{path}: 'project_id' is missing or is no id", advice=_mending())
    for name, known, default in (("store", STORES, "sqlite"), ("queue", QUEUES, "keys")):
        if config.get(name, default) not in known:
            raise UsageError(
                f"{path}: {name!r} is {str(config[name])[:40]!r}, which this version does not know",
                advice=f"It knows: {', '.join(known)}",
            )
    check_layout(config.get("store", "sqlite"), config.get("queue", "keys"))
    own = ("project_id", "name", "created", "store", "queue", "cloudflare")
    title = config.get("name")
    cloudflare = config.get("cloudflare", {})
    if not isinstance(cloudflare, dict):
        raise UsageError(f"{path}: 'cloudflare' is no object", advice=_mending())
    return Project(
        root=root,
        project_id=str(project_id),
        name=title if isinstance(title, str) else root.name,
        created=text_field(config.get("created")) or "",
        store=config.get("store", "sqlite"),
        queue=config.get("queue", "keys"),
        cloudflare=cloudflare,
        extra={key: value for key, value in config.items() if key not in own},
    )

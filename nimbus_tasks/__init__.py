"""nimbus-tasks: batches of page work as Invoke tasks.

In a project's ``tasks.py``::

    from invoke import Collection
    from nimbus_tasks import nimbus

    ns = Collection(nimbus)
"""

from invoke.collection import Collection

from nimbus_tasks.command import Namespace
from nimbus_tasks.lazy import lazy_task

__all__ = ["nimbus"]

nimbus = Namespace(
    "nimbus",
    lazy_task("guide"),
    lazy_task("init"),
    lazy_task("doctor"),
    lazy_task("upload"),
    lazy_task("worker"),
    lazy_task("dashboard"),
    Collection(
        "batch",
        lazy_task("batch.list"),
        lazy_task("batch.status"),
        lazy_task("batch.monitor"),
        lazy_task("batch.wait"),
        lazy_task("batch.report"),
        lazy_task("batch.metrics"),
        lazy_task("batch.retry"),
        lazy_task("batch.cancel"),
        lazy_task("batch.verify"),
    ),
    Collection(
        "cloud",
        lazy_task("cloud.init"),
        lazy_task("cloud.dev"),
        lazy_task("cloud.deploy"),
    ),
)

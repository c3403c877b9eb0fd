"""nimbus-tasks: batches of page work as Invoke tasks.

In a project's ``tasks.py``::

    from invoke import Collection
    from nimbus_tasks import nimbus

    ns = Collection(nimbus)
"""

from invoke.collection import Collection

from nimbus_tasks import doctor, init, upload, worker
from nimbus_tasks.batch import cancel, metrics, monitor, report, retry, status, verify, wait
from nimbus_tasks.batch import list as list_
from nimbus_tasks.cloud import deploy, dev
from nimbus_tasks.cloud import init as cloud_init
from nimbus_tasks.command import Namespace

__all__ = ["nimbus"]

nimbus = Namespace(
    "nimbus",
    init.init,
    doctor.doctor,
    upload.upload,
    worker.worker,
    Collection(
        "batch",
        list_.list_,
        status.status,
        monitor.monitor,
        wait.wait,
        report.report,
        metrics.metrics,
        retry.retry,
        cancel.cancel,
        verify.verify,
    ),
    Collection("cloud", cloud_init.init, dev.dev, deploy.deploy),
)

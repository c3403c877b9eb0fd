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

__all__ = ["nimbus"]

nimbus = Collection(
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
)
# Options that invoke.yaml or INVOKE_NIMBUS_… may set. None: the task's own default holds. They are
# texts or nothing, as those of the command line are, and checked by the same functions.
nimbus.configure(
    {
        "nimbus": {
            "upload": {"folder": None},
            "worker": {
                "processor": None,
                "command": None,
                "concurrency": None,
                "max_attempts": None,
                "timeout": None,
                "lease": None,
            },
            "monitor": {"interval": None},
        }
    }
)

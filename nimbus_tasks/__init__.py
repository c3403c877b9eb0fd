"""nimbus-tasks: batches of page work as Invoke tasks.

In a project's ``tasks.py``::

    from invoke import Collection
    from nimbus_tasks import nimbus

    ns = Collection(nimbus)
"""

from invoke.collection import Collection

from nimbus_tasks.batch.cancel import cancel
from nimbus_tasks.batch.list import list_
from nimbus_tasks.batch.metrics import metrics
from nimbus_tasks.batch.monitor import monitor
from nimbus_tasks.batch.report import report
from nimbus_tasks.batch.retry import retry
from nimbus_tasks.batch.status import status
from nimbus_tasks.batch.verify import verify
from nimbus_tasks.batch.wait import wait
from nimbus_tasks.doctor import doctor
from nimbus_tasks.init import init
from nimbus_tasks.upload import upload
from nimbus_tasks.worker import worker

__all__ = ["nimbus"]

nimbus = Collection(
    "nimbus",
    init,
    doctor,
    upload,
    worker,
    Collection("batch", list_, status, monitor, wait, report, metrics, retry, cancel, verify),
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

"""This repository's own tasks: the nimbus collection, and what its developers use."""

from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from nimbus_tasks import nimbus

HERE = Path(__file__).parent


@task
def catalogue(c: Context) -> None:
    """Write anew what listing and help tell of the tasks."""
    from nimbus_tasks.lazy import write_catalogue

    write_catalogue()


@task(
    help={
        "pages": "pages of the batch (default: 1000; 100000 takes 15 GB of disk)",
        "repeats": "measurements of which the median is taken",
        "to": "the file for the figures as JSON",
    }
)
def bench(
    c: Context, pages: int = 1000, repeats: int = 3, to: str = ".nimbus/reports/bench.json"
) -> None:
    """Measure every operation beside its floor."""
    from benchmarks.bench import main

    main(pages, repeats, HERE / to, print)


ns = Collection(nimbus, catalogue, bench)

"""Which version of a package is installed."""

from __future__ import annotations


def version_of(package: str = "nimbus-tasks") -> str:
    """The version; ``not-installed`` where the package runs from its source, or is not there."""
    from importlib import metadata  # takes as long to import as all of nimbus_tasks

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not-installed"

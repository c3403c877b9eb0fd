"""This repository's own tasks: the nimbus collection, and what its developers use."""

from invoke.collection import Collection

from nimbus_tasks import nimbus

ns = Collection(nimbus)

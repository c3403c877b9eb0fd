"""``nimbus.batch.*``: a module a task, each whole in its own file."""

"""What the tasks share, and no task: records, lifecycle, batches, queue, project, errors.

Nothing here knows Invoke or a terminal; ``tests/test_architecture.py`` holds that.
"""

"""What every operation costs, as a ratio to a floor that is measured in the same run.

``invoke bench`` runs them. The floor of an operation is the least that must happen for it: reading
the same files, one SQLite transaction of the same bytes, one listing, an empty Invoke task. Both
run as whole processes, one after the other, so that a slow machine slows both.
"""

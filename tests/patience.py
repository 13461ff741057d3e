"""The limit of wall time for a process or a server that a test waits for.

It ends a hang and proves nothing: a test that is about speed counts work or processor seconds. Whoever meets the limit
reads "slow machine or hang" in the report (tests/pool.py).
"""

from __future__ import annotations

#: Seconds; below the limit of a whole test in pyproject.toml, so that the process that hangs is named.
PATIENCE = 600

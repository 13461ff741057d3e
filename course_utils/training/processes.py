"""Run a module in several processes of this computer."""

from __future__ import annotations

import os
import subprocess
import sys

# --- several processes ----------------------------------------------------------------------------------------------


def launch(processes: int, *module_and_arguments: str) -> None:
    """Run a module in several processes of this computer, on its processor, as `torchrun` does.

    Raises:
        RuntimeError: a process failed; the message holds the end of what it printed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run([*command, "-m", *module_and_arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(module_and_arguments)} failed in {processes} processes:\n{done.stderr[-3000:]}")

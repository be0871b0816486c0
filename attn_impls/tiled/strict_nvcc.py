"""Run nvcc and fail where its output holds what a pattern forbids: ``strict_nvcc.py PATTERN NVCC ARGUMENT...``.

ptxas has no option that makes an error of what it says in passing, and ninja shows a caller nothing of a compile that
went well. Run as a script, by its path: importing the package would import torch once for every source.
"""

from __future__ import annotations

import re
import subprocess
import sys


def main(arguments: list[str]) -> int:
    """Run ``NVCC ARGUMENT...`` and print what it prints. Returns its exit status, or 1 for forbidden words."""
    pattern, *command = arguments
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    found = re.search(pattern, done.stdout)
    if found is not None and done.returncode == 0:
        print(f"error: refused, because nvcc said {found[0]!r}")
    sys.stdout.write(done.stdout)
    return done.returncode or int(found is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

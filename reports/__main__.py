"""``python reports run.json [-o DIR]``: the same as ``attn report run.json [-o DIR]``, also from a bare checkout."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run ``attn report`` with the arguments of this process."""
    # The folder is run as a script, so Python puts it, not the checkout that holds the packages, on the path.
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    from pytest_attn.cli import main as attn

    return attn(["report", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

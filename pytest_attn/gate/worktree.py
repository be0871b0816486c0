"""The two trees of a gate: a commit checked out in a worktree of its own, and the working tree as it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_attn.gate.process import GateError

_SOURCES = (".py", ".toml", ".ini", ".cfg", ".cu", ".cuh", ".c", ".cc", ".cpp", ".h", ".hpp")


@dataclass(frozen=True, slots=True)
class Repository:
    """A git repository: its top folder, and where in it the gate was started, relative to the top."""

    top: Path
    prefix: str


def repository(folder: Path) -> Repository:
    """Return the repository that ``folder`` lies in; :class:`GateError` where there is none."""
    try:
        top, prefix = _git(folder, "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    except GateError as error:
        raise GateError(f"{folder} is in no git repository: {error}") from None
    return Repository(Path(top), prefix)


def commit_of(top: Path, ref: str) -> str:
    """Return the id of the commit that ``ref`` names; :class:`GateError` where it names none."""
    try:
        return _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()
    except GateError:
        raise GateError(f"{ref!r} names no commit of {top}; in CI the checkout may be too shallow to have it") from None


def working_tree(top: Path) -> str:
    """Return what the working tree is: its commit, and after ``+`` a digest of what differs from it, if anything.

    Sources that git does not track count by name, size and time; what a build or a measurement leaves does not.
    """
    commit = _git(top, "rev-parse", "HEAD").strip()
    difference = _git(top, "diff", "HEAD", "--binary", "--no-ext-diff")
    others = _git(top, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    untracked = [name for name in others if name.endswith(_SOURCES)]
    if not difference and not untracked:
        return commit
    digest = hashlib.sha256(difference.encode("utf-8", "surrogateescape"))
    for name in sorted(untracked):
        stat = (top / name).lstat()
        digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return f"{commit}+{digest.hexdigest()[:12]}"


@contextmanager
def worktree(top: Path, commit: str, folder: Path) -> Iterator[Path]:
    """Check ``commit`` out in ``folder`` and remove it afterwards; Ctrl-C leaves it, for the run to be continued.

    A folder that an interrupted run left with this commit is taken as it is, with what was built in it.
    """
    if not _holds(folder, commit):
        _remove(top, folder)
        _git(top, "worktree", "add", "--detach", "--force", str(folder), commit)
    try:
        yield folder
    except KeyboardInterrupt:
        raise
    except BaseException:
        _remove(top, folder)
        raise
    else:
        _remove(top, folder)


def _holds(folder: Path, commit: str) -> bool:
    if not (folder / ".git").is_file():
        return False
    try:
        return _git(folder, "rev-parse", "HEAD").strip() == commit
    except GateError:
        return False


def _remove(top: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    _git(top, "worktree", "prune")


def _git(folder: Path, *arguments: str) -> str:
    """Run git in ``folder`` and return what it prints; :class:`GateError` with its first complaint when it fails."""
    # A hook's GIT_DIR and its like would point every call at the repository of that hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        raise GateError("git is not installed, or not on PATH") from None
    if done.returncode:
        complaint = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise GateError(f"git {arguments[0]}: {complaint}")
    return done.stdout

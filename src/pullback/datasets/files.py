"""Files by name, size and checksum: where they lie, and how they are downloaded."""

import hashlib
import logging
import os
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from pullback.io import write_atomically

_log = logging.getLogger("pullback")
_TIMEOUT = 30.0  # seconds without a byte before the next mirror is tried
_BLOCK = 1 << 16  # bytes read at once


@dataclass(frozen=True)
class RemoteFile:
    """A file with the size and the checksum that every copy of it has."""

    name: str
    size: int  # bytes
    sha256: str


def local(folder: str, file: RemoteFile, root: str | Path | None, remedy: str) -> Path | None:
    """Where a file lies: in `root` as it is, or intact in a folder of PULLBACK_DATA; None where it is in neither.

    Raises:
        FileNotFoundError: `root` is given and lacks the file.
        ValueError: The file in PULLBACK_DATA is not what its name says.
    """
    if root is not None:
        path = Path(root) / file.name
        if not path.is_file():
            raise FileNotFoundError(f"`root` {root} has no file {file.name}; {remedy}")
        return path
    data = os.environ.get("PULLBACK_DATA")
    if data and (path := Path(data) / folder / file.name).is_file():
        if flaw := flaw_of(path.read_bytes(), file):
            raise ValueError(f"{path} {flaw}: delete it and get it again, or give `root` to use it as it is")
        return path
    return None


def cache() -> Path:
    if folder := os.environ.get("PULLBACK_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pullback"


def flaw_of(content: bytes, file: RemoteFile) -> str | None:
    """What is wrong with the bytes of a file, if anything."""
    if len(content) != file.size:
        return f"has {len(content)} bytes, wanted {file.size} (truncated, or another file)"
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        return f"has SHA-256 {found}, wanted {file.sha256} (damaged, or another file)"
    return None


def download(file: RemoteFile, mirrors: Iterable[str], path: Path, *, progress: bool = False) -> None:
    """Get a file from the first mirror that gives an intact copy; whole or not at all.

    Args:
        file: Name, size and checksum.
        mirrors: Addresses that the name is appended to.
        path: Where to put it; the folder is made.
        progress: Show a bar.

    Raises:
        ConnectionError: No mirror gave an intact copy; the message has the reason of each.
        OSError: ``path`` cannot be written.
    """
    reasons = []
    for mirror in mirrors:
        url = mirror + file.name
        try:
            content = _fetched(url, file, progress)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is none
            reasons.append(f"{url}: {error}")
            continue
        if flaw := flaw_of(content, file):
            reasons.append(f"{url} {flaw}")
            continue
        _log.info("downloaded %s to %s", url, path)
        write_atomically(path, content)
        return
    raise ConnectionError(
        f"{file.name} could not be downloaded ({'; '.join(reasons)}): put it into {path.parent} by hand, or set "
        "PULLBACK_DATA to the folder that holds it"
    )


def _fetched(url: str, file: RemoteFile, progress: bool) -> bytes:
    """The bytes behind an address, in memory: an interruption leaves nothing behind. At most one block too many."""
    content = bytearray()
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name, disable=not progress) as bar,
    ):
        while len(content) <= file.size and (block := response.read(_BLOCK)):
            content += block
            bar.update(len(block))
    return bytes(content)

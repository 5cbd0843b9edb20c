"""Save and load: tensors with a JSON record in one safetensors file. Writes are atomic, and nothing is unpickled."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

_HEADER = "pullback"  # the one key of the safetensors header: one key keeps the bytes of a file reproducible


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then moved over it.

    Args:
        path: The file; its folder is made if it is missing.
        content: All bytes of the file.

    Raises:
        OSError: The folder cannot be made or written; the message names the path.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: {error.strerror or error}; choose a folder you can write to"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_json(path: str | Path, record: Mapping[str, Any], *, format: str, version: int) -> None:
    """Write a record as readable JSON, with the name and the version of its format in front.

    Args:
        path: The file, usually ``*.json``.
        record: Anything JSON can hold; numbers must be finite.
        format: Name of the format, such as ``"pullback.rbfvae"``.
        version: Version of the format, counted up when old readers could not read the file.

    Raises:
        OSError: The file cannot be written.
    """
    content = {"format": format, "version": version, **record}
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def load_json(path: str | Path, *, format: str, version: int) -> dict[str, Any]:
    """Read what :func:`save_json` wrote.

    Args:
        path: The file.
        format: The format that the caller can read.
        version: The newest version that the caller can read.

    Returns:
        The record, without the name and the version of its format.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or of another format, or newer than this package.
    """
    path = _existing(path)
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); it may be damaged: write it again") from error
    return _accept(path, record, format, version)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, format: str, version: int
) -> None:
    """Write tensors and a JSON record into one safetensors file, and the record once more as JSON beside it.

    The safetensors file alone is what :func:`load_tensors` reads: its header carries the record and a checksum, so the
    two can never belong to different states. The ``.json`` of the same name is for people and other programs.

    Args:
        path: The file, named ``*.safetensors``.
        tensors: Tensors by name, of any shape and dtype; they are copied to the CPU.
        record: Anything JSON can hold; numbers must be finite.
        format: Name of the format, such as ``"pullback.rbfvae"``.
        version: Version of the format.

    Raises:
        ValueError: ``path`` does not end in ``.safetensors``.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"`path` is {path}: name a file that ends in .safetensors")
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {"format": format, "version": version, "sha256": _checksum(copies), "record": dict(record)}
    write_atomically(path, serialize(copies, metadata={_HEADER: json.dumps(header, allow_nan=False)}))
    save_json(path.with_suffix(".json"), record, format=format, version=version)


def load_tensors(path: str | Path, *, format: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote. Cost: one pass over the file.

    Args:
        path: The file, named ``*.safetensors``.
        format: The format that the caller can read.
        version: The newest version that the caller can read.

    Returns:
        The tensors by name, on the CPU, and the record.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a safetensors file of this package, of another format, newer than this package, or
            its tensors are damaged.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); it may be damaged or foreign: write it again"
        ) from error
    if _HEADER not in metadata:
        raise ValueError(f"{path} was not written by pullback: its header has no record; wanted format '{format}'")
    try:
        header = json.loads(metadata[_HEADER])
    except ValueError as error:
        raise ValueError(f"{path} has a damaged record in its header ({error}); write it again") from error
    header = _accept(path, header, format, version)
    if header.get("sha256") != _checksum(tensors) or not isinstance(header.get("record"), dict):
        raise ValueError(f"{path} is damaged: its tensors do not match their checksum; write or download it again")
    return tensors, header["record"]


def format_of(path: str | Path) -> str | None:
    """The format of a file that :func:`save_tensors` wrote; None of any other file. Cost: reads its header."""
    try:
        with safe_open(_existing(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    except (SafetensorError, ValueError):
        return None
    found = header.get("format") if isinstance(header, dict) else None
    return found if isinstance(found, str) else None


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    return path


def _accept(path: Path, record: Any, format: str, version: int) -> dict[str, Any]:
    if not isinstance(record, dict) or "format" not in record:
        raise ValueError(f"{path} was not written by pullback: it names no format; wanted format '{format}'")
    if record["format"] != format:
        raise ValueError(f"{path} has format {record['format']!r}; wanted '{format}': it holds something else")
    found = record.get("version")
    if not isinstance(found, int) or found < 1:
        raise ValueError(
            f"{path} has version {found!r} of format '{format}'; wanted a whole number from 1 to {version}"
        )
    if found > version:
        raise ValueError(
            f"{path} has version {found} of format '{format}', this package reads up to {version}: update pullback"
        )
    return {key: value for key, value in record.items() if key not in ("format", "version")}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _umask() -> int:
    """The permissions that new files should not have; they can only be read by setting them."""
    current = os.umask(0)
    os.umask(current)
    return current

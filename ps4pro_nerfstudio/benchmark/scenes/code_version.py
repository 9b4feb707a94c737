# SPDX-License-Identifier: Apache-2.0
"""Which code a result comes from: a hash of this package as it lies on the disk, and versions.

The number of a version stands still while the code changes, above all in an editable install. The
hash is of the files' content and of their places in the package, so that a checkout, an editable
install and a wheel of the same code have the same one.

`python -m ps4pro_nerfstudio.benchmark.scenes.code_version` prints the hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from pathlib import Path

CODE = "ps4pro-nerfstudio code"
"""Name of the hash among the versions of a record."""
DECISIVE = (CODE, "nerfstudio", "torch", "gsplat")
"""Versions that can change a result; a new one makes a new job."""

_PACKAGE = Path(__file__).resolve().parents[2]
# Code, and the weights that the package ships.
_SUFFIXES = (".py", ".safetensors")


def package_digest(package: Path = _PACKAGE) -> str:
    """16 hexadecimal digits over the code and the weights of a package; read from the disk anew."""
    total = hashlib.blake2b(digest_size=8)
    for name, path in sorted(_decisive_files(package)):
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        total.update(f"{name} {content}\n".encode())
    return total.hexdigest()


def _decisive_files(package: Path) -> Iterator[tuple[str, Path]]:
    """Path inside the package and file; caches and what editors hide are none of it."""
    for path in package.rglob("*"):
        relative = path.relative_to(package)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            yield relative.as_posix(), path


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of the distributions that are installed, and the hash of this package."""
    versions = {}
    for name in names:
        if name == CODE:
            versions[name] = package_digest()
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


if __name__ == "__main__":
    print(package_digest())

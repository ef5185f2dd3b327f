"""Damage for stores on disk."""

import pathlib

from diffusion_policy.storage.checksums import CHECKSUMS


def without_checksums(path: pathlib.Path) -> pathlib.Path:
    """A store as other programs write it, such as the published ones."""
    (path / CHECKSUMS).unlink()
    return path


def flip_a_bit(path: pathlib.Path, at: int = -1, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def tree(path: pathlib.Path) -> dict[str, bytes]:
    """Every byte of a data set, directory or zip."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}

"""The gate through which every description of a store passes before zarr sees it.

A ``.zarray`` chooses a codec by its name, a type, and how much memory is needed. Codecs are looked
up in a registry that also holds ``pickle``, and an array of Python objects would be unpickled: so
codecs and types are allowed by list, and sizes are checked before anything is allocated.
"""

import json
import math
import re
from typing import Any

from diffusion_policy.storage.checksums import DamagedFileError

MAX_DOCUMENT_BYTES = 16_000_000  # of attributes; a .zarray has 400
MAX_DIMENSIONS = 32
#: What the codecs can decode at once.
MAX_CHUNK_BYTES = 2**31 - 1

#: They turn bytes into bytes or pictures, and reach nothing else.
COMPRESSORS = {
    *("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma"),
    *(
        f"imagecodecs_{name}"
        for name in ["avif", "jpeg", "jpeg2k", "jpegls", "jpegxl", "jpegxr", "png", "qoi", "webp"]
    ),
}
FILTERS = {"shuffle", "crc32", "crc32c", "adler32", "fletcher32"}
#: Format 3; we read such stores and write none.
CODECS_V3 = {"bytes", "transpose", "sharding_indexed", "blosc", "zstd", "gzip", "crc32c"}

#: Booleans, whole numbers, floats, complex numbers, text of a fixed length (type and length).
_TYPE = re.compile(r"[<>|]([biufc])([0-9]{1,2})|[<>|]([SU])([0-9]{1,6})")
_TYPE_V3 = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
_BYTES_PER_LETTER = {"S": 1, "U": 4}


def check_document(store: object, key: str, content: bytes) -> None:
    """Check a ``.zgroup``, ``.zarray``, ``.zattrs`` or ``zarr.json``.

    Args:
        store: its name, for messages.
        key: the file, relative to the store.
        content: what it holds.

    Raises:
        DamagedFileError: when it is damaged, or asks for something that is not allowed.
    """
    try:
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"it has {len(content):,} bytes")
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError("it is no table of names and values")
        name = key.rpartition("/")[2]
        if name == ".zgroup" and document.get("zarr_format") != 2:
            raise ValueError(f"zarr_format is {document.get('zarr_format')!r}, 2 was expected")
        if name == ".zarray":
            _check_array(document)
        if name == "zarr.json" and document.get("node_type") == "array":
            _check_array_v3(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DamagedFileError(store, key, f"is not readable ({reason})") from error


def _check_array(document: dict[str, Any]) -> None:
    if document["zarr_format"] != 2:
        raise ValueError(f"zarr_format is {document['zarr_format']!r}, 2 was expected")
    compressor, filters = document["compressor"], document["filters"]
    if compressor is not None:
        _check_codec(compressor, COMPRESSORS, "compressor")
    for codec in filters or ():
        _check_codec(codec, FILTERS, "filter")
    shape, chunks = _lengths(document, "shape", 0), _lengths(document, "chunks", 1)
    if len(shape) != len(chunks):
        raise ValueError(f"shape {shape} and chunks {chunks} have different numbers of axes")
    _check_size(chunks, _bytes_of(document["dtype"]))
    if document["order"] not in ("C", "F"):
        raise ValueError(f"order is {document['order']!r}, 'C' or 'F' was expected")
    if document.get("dimension_separator", ".") not in (".", "/"):
        raise ValueError(f"dimension_separator is {document['dimension_separator']!r}")
    fill = document["fill_value"]
    parts = fill if isinstance(fill, list) and len(fill) == 2 else [fill]  # of a complex number
    if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
        raise ValueError(f"fill_value is {fill!r}")


def _check_codec(codec: Any, allowed: set[str], what: str) -> None:
    if not isinstance(codec, dict) or not isinstance(codec.get("id"), str):
        raise ValueError(f"the {what} is {codec!r}")
    if codec["id"] not in allowed:
        raise ValueError(
            f"the {what} {codec['id']!r} is not allowed, only {', '.join(sorted(allowed))} are"
        )


def _lengths(document: dict[str, Any], name: str, least: int) -> list[int]:
    lengths = document[name]
    fits = isinstance(lengths, list) and all(type(n) is int and least <= n < 2**63 for n in lengths)
    if not fits or len(lengths) > MAX_DIMENSIONS:
        raise ValueError(
            f"{name} {lengths!r}: up to {MAX_DIMENSIONS} whole numbers of at least {least} were "
            f"expected"
        )
    return lengths


def _bytes_of(dtype: Any) -> int:
    match = _TYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    if match is None:
        raise ValueError(f"the type {dtype!r} is not allowed, only plain numbers and text are")
    if match[3]:
        return _BYTES_PER_LETTER[match[3]] * int(match[4])
    return int(match[2])


def _check_size(chunks: list[int], itemsize: int) -> None:
    if math.prod(chunks) * itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"chunks {chunks} of {itemsize} bytes per value are larger than 2 GB")


def _check_array_v3(document: dict[str, Any]) -> None:
    dtype = document["data_type"]
    match = _TYPE_V3.fullmatch(dtype) if isinstance(dtype, str) else None
    if match is None:
        raise ValueError(f"the type {dtype!r} is not allowed, only plain numbers are")
    _lengths(document, "shape", 0)
    grid = document["chunk_grid"]["configuration"]
    _check_size(_lengths(grid, "chunk_shape", 1), 16)
    if document.get("storage_transformers"):
        raise ValueError("storage_transformers are not allowed")
    _check_codecs_v3(document["codecs"])


def _check_codecs_v3(codecs: Any) -> None:
    """Shards hold codecs of their own."""
    for codec in codecs:
        name = codec if isinstance(codec, str) else codec["name"]
        if name not in CODECS_V3:
            raise ValueError(
                f"the codec {name!r} is not allowed, only {', '.join(sorted(CODECS_V3))} are"
            )
        if isinstance(codec, dict):
            inner = codec.get("configuration") or {}
            _check_codecs_v3([*inner.get("codecs", ()), *inner.get("index_codecs", ())])

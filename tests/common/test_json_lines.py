"""JSON of other people: what is no object is told, and nothing that is in it takes long."""

import io
import json
import math

import pytest

from diffusion_policy.common.json_lines import (
    BLOCK_LINES,
    MAX_LINE_BYTES,
    as_count,
    as_finite,
    as_float,
    iter_objects,
    parse_object,
)


def read(content: bytes):
    odd = {}
    rows = dict(iter_objects(io.BytesIO(content), odd.__setitem__))
    return rows, odd


@pytest.mark.parametrize("n", [0, 1, BLOCK_LINES - 1, BLOCK_LINES, 2 * BLOCK_LINES + 1])
def test_every_line_comes_with_its_number(n):
    content = b"".join(b'{"i": %d}\n' % i for i in range(n))
    rows, odd = read(content + b'{"i": ')
    assert rows == {i + 1: {"i": i} for i in range(n)}
    assert odd == {}


def test_odd_lines_are_told_and_empty_ones_are_not():
    rows, odd = read(b'\n{"a": 1}\n \t\r\n[1]\n{"b": 2}\nnull\n{"c": 3}, {"d": 4}\n')
    assert rows == {2: {"a": 1}, 5: {"b": 2}}
    assert set(odd) == {4, 6, 7}
    assert odd[4] == r"is not a JSON object but starts with b'[1]\n'"


@pytest.mark.parametrize("length", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, 3 * MAX_LINE_BYTES])
@pytest.mark.parametrize("end", [b"\n", b'\n{"b": 1}\n', b""])
def test_a_line_too_long_is_skipped(length, end):
    long = b'{"a": "' + b"x" * (length - 9) + b'"}'
    rows, odd = read(b'{"a": 1}\n' + long + end)
    expected = {1: {"a": 1}} | ({3: {"b": 1}} if b"b" in end else {})
    if length < MAX_LINE_BYTES:
        expected |= {2: json.loads(long)} if end else {}
        assert odd == {}
    else:
        assert odd == {2: "is longer than 4 MB"}
    assert rows == expected


@pytest.mark.parametrize(
    "text", [b"", b"[" * 10**6, b"1" * 5000, b"\xff", b"[]", b'"a"', b"null", b"{} {}", b'{"a": 1']
)
def test_what_is_no_object_is_none(text):
    assert parse_object(text) is None


def test_numbers_of_a_log():
    values = [1, 1.5, True, math.nan, math.inf, -1, 10**400, 2**53, "1", None, [1], {}]
    assert [as_float(value) for value in values[:3]] == [1.0, 1.5, 1.0]
    assert [as_float(value) for value in values[6:]] == [None, 2.0**53, None, None, None, None]
    assert [as_finite(value) for value in values[:6]] == [1.0, 1.5, 1.0, None, None, -1.0]
    assert [as_count(value) for value in values] == [1] + [None] * 11
    assert [as_count(value) for value in (0, 3.0, 2**53 - 1)] == [0, 3, 2**53 - 1]

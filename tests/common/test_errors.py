"""Texts that are not ours are shortened, in one place."""

import pytest

from diffusion_policy.common.errors import message_of, shorten


def test_a_short_text_is_left_alone():
    assert shorten("abc") == "abc"
    assert shorten("a" * 4000) == "a" * 4000


@pytest.mark.parametrize("most", [10, 100, 4000])
def test_head_and_tail_of_a_long_one_and_how_much_is_missing(most):
    text = "".join(chr(33 + i % 90) for i in range(10_000_000))
    short = shorten(text, most)
    head, _, rest = short.partition(" [... ")
    missing, _, tail = rest.partition(" characters left out ...] ")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) + int(missing.replace(",", "")) == len(text)
    assert len(short) < most + 50


def test_an_exception_that_cannot_say_anything():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    assert message_of(ValueError("x" * 9000)).count("x") == 4000
    assert message_of(Mute()) == "<its text raised RuntimeError>"

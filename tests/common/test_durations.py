import pytest

from diffusion_policy.common.durations import describe_duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0.2 s"),
        (12.3, "12 s"),
        (89, "89 s"),
        (91, "2 min"),
        (3600 * 3 + 300, "3 h 05 min"),
        (3600 * 100, "4 d 4 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert describe_duration(seconds) == words

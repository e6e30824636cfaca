"""napo.study.markdown: numbers as text."""

import pytest

from napo.study import markdown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.4, 0.35, 0.456), "0.40 [0.35, 0.46]"),
        ((-0.4, float("nan"), float("nan")), "−0.40"),
        ((-0.0, None, None), "0.00"),
        ((None,), "–"),
        ((float("nan"), 0, 1), "–"),
        ((7.25, 7.0, 7.5, 1), "7.2 [7.0, 7.5]"),
    ],
)
def test_numbers_as_text(arguments, text):
    assert markdown.number(*arguments) == text

"""napo.study.markdown: numbers and foreign texts."""

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>a & b</script>", "&lt;script&gt;a &amp; b&lt;/script&gt;"),
        ("![x](http://h/y.png)", r"\!\[x\](http\://h/y.png)"),
        ("*a* _b_ c_d `e` ~f~ # g", r"\*a\* \_b\_ c_d \`e\` \~f\~ \# g"),
        ("$x^{$ @me www.h.org", "&#36;x^{&#36; &#64;me www\\.h.org"),
        ("a\n\n# b\x1b[31mred\u202e", r"a \# b\\x1b\[31mred\\u202e"),
        ("grüne 猫 👩\u200d👧", "grüne 猫 👩\u200d👧"),
    ],
)
def test_a_foreign_text_is_shown_as_it_is(text, shown):
    assert markdown.plain(text) == shown


def test_a_cell_keeps_to_its_place_in_a_table():
    lines = markdown.table(["a"], [["b | c\nd\x1b"], [markdown.plain("e\\|f")]]).split("\n")
    assert lines == ["| a |", "| --- |", r"| b \| c d\x1b |", r"| e\\\|f |"]

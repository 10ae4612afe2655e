import pytest

from lenstrain.pages.page import markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a & <script>", "a &amp; &lt;script>"),
        ("one | two\nthree", "one \\| two three"),
        ("rows `theta >= 1 & x < 2`, seed <0>", "rows `theta >= 1 & x < 2`, seed &lt;0>"),
        (0.5, "0.5"),
    ],
)
def test_markdown_holds_no_markup_of_a_value_but_shows_code_as_it_is(value, text):
    assert markdown(value) == text

"""Tables as HTML, their text escaped."""

from upvit_core.tables import html_table


def test_a_table_has_headings_a_caption_and_escaped_cells() -> None:
    html = html_table([("a<b", "1"), ("c", "2")], ("name", "x"), caption="a & b", row_heads=True, bold=1, css="plain")
    assert html == (
        '<table class="plain"><caption>a &amp; b</caption>'
        '<tr><th scope="col">name</th><th scope="col">x</th></tr>'
        '<tr><th scope="row">a&lt;b</th><td>1</td></tr>'
        '<tr><th scope="row">c</th><td><b>2</b></td></tr></table>'
    )


def test_a_table_of_cells_alone() -> None:
    assert html_table([("a", "b")]) == "<table><tr><td>a</td><td>b</td></tr></table>"

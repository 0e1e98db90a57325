"""The SVG charts are well-formed, escape their text and draw every point."""

import re
from xml.etree import ElementTree

from tunesmith.train.curves import MAXIMUM_POINTS, Series, chart


def drawn(**changes: object) -> str:
    series = [Series(name="training", points=[(0, 3.0), (1, 2.0), (2, 1.5)], colour="#123456")]
    return chart(series, **{"title": "Loss", "x_label": "epoch", "y_label": "nats", **changes})  # type: ignore[arg-type]


def test_it_is_xml_with_a_dot_for_each_point_inside_the_picture() -> None:
    root = ElementTree.fromstring(drawn())
    dots = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(dots) == 3
    assert all(0 <= float(dot.get("cx", -1)) <= 720 and 0 <= float(dot.get("cy", -1)) <= 360 for dot in dots)
    heights = [float(dot.get("cy", -1)) for dot in dots]
    assert heights == sorted(heights)  # falling loss goes down the picture


def test_titles_are_escaped() -> None:
    text = drawn(title="<script>alert(1)</script>")
    assert "<script" not in text
    ElementTree.fromstring(text)


def test_empty_and_single_points_are_drawn_without_a_fault() -> None:
    ElementTree.fromstring(chart([], title="a", x_label="b", y_label="c"))
    one = [Series(name="x", points=[(1, 2.0)], colour="red")]
    assert "circle" in chart(one, title="a", x_label="b", y_label="c")


def test_long_series_are_thinned_and_keep_their_last_point() -> None:
    points = [(float(x), float(x % 7)) for x in range(100_000)]
    text = chart([Series(name="s", points=points, colour="red", has_dots=False)], title="a", x_label="b", y_label="c")
    line = re.search(r'points="([^"]+)"', text)
    assert line is not None
    assert len(line[1].split()) <= MAXIMUM_POINTS + 1
    assert line[1].split()[-1].startswith("700")  # the right edge

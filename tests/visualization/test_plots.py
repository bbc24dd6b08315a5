import re
from xml.etree import ElementTree

import pytest

from metalad.visualization.plots import Curve, bar_plot, curve_plot, curve_plots

SVG = "{http://www.w3.org/2000/svg}"
STEPS = Curve("calibrated", (0.0, 0.1, 1.0), (0.0, 0.9, 1.0), 0.9321)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_curve_plot_is_valid_svg_with_labels_and_areas() -> None:
    svg = curve_plot([STEPS, Curve("raw", (0.0, 1.0), (0.0, 1.0))], "Pixel ROC", "false alarms", "found", 0.3)
    labels = texts(svg)
    assert "false alarms" in labels
    assert "found" in labels
    assert any("calibrated" in text and "93.21" in text for text in labels)
    assert "raw" in labels
    assert ElementTree.fromstring(svg).get("aria-label") == "Pixel ROC"


def test_the_limit_is_drawn_if_given() -> None:
    assert curve_plot([STEPS], "t", "x", "y", 0.3).count("<path") > curve_plot([STEPS], "t", "x", "y").count("<path")


def test_plots_are_reproducible_and_have_different_ids() -> None:
    first, second = curve_plot([STEPS], "A", "x", "y"), curve_plot([STEPS], "B", "x", "y")
    assert first == curve_plot([STEPS], "A", "x", "y")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= own


def test_a_plot_has_no_style_sheet_and_uses_the_colors_of_the_page() -> None:
    svg = curve_plot([STEPS], "A", "x", "y")
    assert "<style" not in svg
    assert "var(--plot-1, #" in svg
    assert "#0102" not in svg


def test_names_are_not_interpreted_as_markup_or_formulas() -> None:
    curve = Curve("</svg><script>$x^2$", (0.0, 1.0), (0.0, 1.0))
    svg = curve_plot([curve], '"><script>', "$a$", "y")
    assert "<script" not in svg
    assert "$a$" in texts(svg)
    assert "</svg><script>$x^2$" in texts(svg)


def test_sixteen_curves_have_different_line_styles() -> None:
    many = [Curve(str(index), (0.0, 1.0), (0.0, 1.0)) for index in range(16)]
    lines = [group for group in curve_plot(many, "t", "x", "y").split("<g ") if "line2d" in group]
    styles = re.findall(
        r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"|style="(fill: none; stroke[^"]*)"', "".join(lines)
    )
    line_styles = {style for pair in styles for style in pair if "stroke-width: 1.8" in style}
    assert len(line_styles) == 16


def test_curves_of_one_kind_share_a_plot_and_groups_have_different_titles_and_ids() -> None:
    curves = [("a", Curve("pixel_roc", (0.0, 1.0), (0.0, 1.0), 0.5)), ("b", Curve("mine", (0.0, 1.0), (1.0, 1.0)))]
    curves.append(("c", curves[0][1]))
    assert [plot.title for plot in curve_plots(curves)] == ["Pixel ROC", "mine"]
    raw, calibrated = (next(curve_plots(curves, group)) for group in ("raw", "calibrated"))
    assert (raw.title, calibrated.title) == ("Pixel ROC, raw", "Pixel ROC, calibrated")
    assert {"a  50.00 %", "c  50.00 %"} <= {" ".join(text.split(" ")) for text in texts(raw.svg)}
    ids = [set(re.findall(r'\bid="([^"]+)"', plot.svg)) for plot in (raw, calibrated)]
    assert not ids[0] & ids[1]


def test_bar_lengths_are_proportional_to_values_and_none_has_no_bar() -> None:
    svg = bar_plot(
        ["dark", "blurred", "rotated"], {"calibrated": [0.1, -0.05, None], "raw": [0.2, 0.0, 0.1]}, "t", "lost"
    )
    assert {"dark", "blurred", "rotated", "calibrated", "raw", "lost"} <= set(texts(svg))
    one, two = (
        [signed_width(path) for path in re.findall(rf'<path d="(M[^"]+?L[^"]+)"[^>]*fill: var\(--plot-{number}', svg)]
        for number in (1, 2)
    )
    dark, blurred, *swatch = one
    assert len(swatch) == 1  # the one in the legend; "rotated" has no bar
    assert blurred == pytest.approx(-dark / 2, rel=1e-3)
    assert two[:3] == pytest.approx([2 * dark, 0, dark], rel=1e-3)


def signed_width(path: str) -> float:
    across = [float(x) for x in re.findall(r"[ML] ([-\d.]+) ", path)]
    return across[1] - across[0]

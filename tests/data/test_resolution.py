import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.data.framing import Framing
from metalad.data.resolution import DEFECT_PIXELS, MAX_AREAS, ChosenSize, choose_size
from metalad.runtime.errors import ConfigError

sides = st.integers(min_value=16, max_value=6000)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((256, 256), (256, 256)),
        ((900, 900), (256, 256)),
        ((256, 629), (256, 640)),  # wide
        ((512, 256), (512, 256)),  # tall
        ((103, 103), (256, 256)),  # small images are enlarged
        ((1334, 2000), (384, 576)),  # large ones are reduced by 3.5
        ((2000, 1334), (576, 384)),
    ],
)
def test_aspect_ratio_is_kept_and_large_images_keep_more_pixels(
    own: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert choose_size([own], 256, 32).size == expected


@settings(deadline=None)
@given(height=sides, width=sides, resolution=st.sampled_from(["fast", "balanced", "fine"]))
def test_size_is_bounded_and_turns_with_the_image(height: int, width: int, resolution: str) -> None:
    chosen = choose_size([(height, width)], 256, 32, resolution)  # type: ignore[arg-type]
    turned = choose_size([(width, height)], 256, 32, resolution)  # type: ignore[arg-type]
    assert chosen.size == turned.size[::-1]
    assert all(side % 32 == 0 and side >= 32 for side in chosen.size)
    # Rounding both sides up to multiples of 32 can exceed the area.
    limit = MAX_AREAS[resolution] * 256**2  # type: ignore[index]
    assert (chosen.size[0] - 32) * (chosen.size[1] - 32) <= limit


@settings(deadline=None)
@given(ratio=st.floats(min_value=0.4, max_value=2.5))
def test_distortion_is_at_most_the_rounding_to_multiples(ratio: float) -> None:
    height, width = round(1000 * ratio), 1000
    down, across = choose_size([(height, width)], 256, 32).size
    assert abs(math.log((down / across) / (height / width))) < math.log((256 + 16) / (256 - 16)) * 2


def test_median_shape_decides_and_different_shapes_are_reported() -> None:
    chosen = choose_size([(256, 512)] * 5 + [(256, 256)] * 4, 256, 32)
    assert chosen.size == (256, 512)
    assert chosen.distortion == pytest.approx(2)
    assert "factor of 2.0" in chosen.lines()[1]
    assert "--set image_size=256,512 --set image_scale=1, which keep the shape" in chosen.lines()[1]
    assert len(choose_size([(256, 512)], 256, 32).lines()) == 1


def test_one_scale_for_all_shapes_has_at_most_the_area_of_the_resolution() -> None:
    shapes = [(300, 900), (900, 300), (600, 600)]
    small, large = choose_size(shapes, 256, 32, "fast").one_scale, choose_size(shapes, 256, 32, "fine").one_scale
    for area, framing in ((MAX_AREAS["fast"], small), (MAX_AREAS["fine"], large)):
        height, width = framing.size
        assert (height - 32) * (width - 32) <= area * 256**2
        rows, columns = framing.inside((600, 600))
        assert rows.stop - rows.start == columns.stop - columns.start == round(600 * framing.scale)
    assert small.scale < large.scale


def test_resolutions_are_ordered() -> None:
    areas = [math.prod(choose_size([(1334, 2000)], 256, 32, name).size) for name in ("fast", "balanced", "fine")]
    assert areas[0] < areas[1] < areas[2]


def test_smallest_defect_sets_the_scale() -> None:
    chosen = choose_size([(1024, 1024)], 256, 32, smallest_defect=16.0)
    assert chosen.size == (512, 512)
    assert 16 * chosen.scale == DEFECT_PIXELS
    assert choose_size([(1024, 1024)], 256, 32, smallest_defect=2.0).size == (1024, 1024)  # never enlarged
    assert choose_size([(1024, 1024)], 256, 32, smallest_defect=500.0).size == (192, 192)


def test_line_states_size_scale_and_smallest_defect() -> None:
    (line,) = ChosenSize((256, 384), 0.25, (1024, 1536), 1.0, Framing((256, 384), 0.25)).lines()
    assert "1024x1536" in line
    assert "256x384, 25%" in line
    assert "32 or more" in line


@pytest.mark.parametrize(
    ("size", "wanted", "end"),
    [
        ((1024, 1024), 16.0, "a defect should be 16 or more of their pixels across"),
        ((300, 400), 3.0, "8 or more of their pixels across, 3 as wanted cannot be reached: images are not enlarged"),
        ((4000, 6000), 8.0, "8 as wanted cannot be reached: a larger size would take too much time and memory"),
    ],
)
def test_a_line_states_whether_the_wanted_defect_is_reached(size: tuple[int, int], wanted: float, end: str) -> None:
    (line,) = choose_size([size], 256, 32, smallest_defect=wanted).lines()
    assert line.endswith(end)


def test_a_line_states_that_the_size_of_various_images_is_a_median() -> None:
    lines = choose_size([(300, 300)] * 5 + [(300, 400)] * 4, 256, 32).lines()
    assert "images of various sizes, in the median 300x300 (height x width), are resized to 256x256" in lines[0]


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf, math.nan])
def test_impossible_smallest_defect_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="smallest_defect"):
        choose_size([(64, 64)], 256, 32, smallest_defect=value)


def test_unknown_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match="fine"):
        choose_size.__wrapped__([(64, 64)], 256, 32, "finest")  # type: ignore[attr-defined]

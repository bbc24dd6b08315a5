"""The demo: the images that ship with the package are complete and licensed, and the demo trains and evaluates."""

from pathlib import Path
from unittest import mock

from metalad.data import read_category
from metalad.data.images import image_size
from metalad.pipelines import demo as module

DATA = module.DATA


def test_the_cookies_are_a_category_with_masks() -> None:
    category = read_category(DATA)
    assert (category.name, category.layout) == ("cookie", "mvtec")
    assert (len(category.train), len(category.test)) == (31, 46)
    assert all(sample.mask is not None for sample in category.test if sample.abnormal)
    assert {image_size(sample.path) for sample in (*category.train, *category.test)} == {(341, 256)}


def test_the_license_of_the_images_is_complete() -> None:
    license = (DATA / "LICENSE.txt").read_text(encoding="utf-8")
    for text in (
        "© Amazon.com, Inc. or its affiliates",
        "github.com/aws-samples/amazon-lookout-for-vision",
        "computer-vision-defect-detection/cookie-dataset",
        "CC BY-SA 4.0",
        "creativecommons.org/licenses/by-sa/4.0",
        "Changes made",
        "as-is",
    ):
        assert text in license


def test_the_demo_trains_or_resumes_and_evaluates_in_one_folder(tmp_path: Path) -> None:
    with mock.patch.object(module, "train") as train, mock.patch.object(module, "evaluate") as evaluate:
        report = evaluate.return_value
        # The return value of the mock is not a Report, so the check of types must be bypassed.
        undecorated = getattr(module.demo, "__wrapped__", module.demo)
        assert undecorated(tmp_path, method="metal", minutes=1.0, device="cpu") is report
    assert train.call_args == mock.call(
        DATA, tmp_path, method="metal", minutes=1.0, false_alarms=0.05, resume=True, device="cpu", progress=False
    )
    assert evaluate.call_args == mock.call(train.return_value, DATA, out=tmp_path / "evaluation", progress=False)

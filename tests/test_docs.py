"""README and docs: links lead somewhere, commands parse, options are all told, Python runs."""

import argparse
import dataclasses
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from metalad import methods as register
from metalad.cli.main import VERBS, build_parser
from metalad.data.images import find_images, read_image, resize_image, write_image
from metalad.detectors.base import FittedDetector
from metalad.methods import Method
from metalad.methods.metal import MetalConfig
from metalad.pipelines import demo
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.runtime.settings import from_texts
from metalad.storage.model_file import read_model

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINE = 120

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"^\| `(--[\w-]+)", re.MULTILINE)
SHELL_ENDS = {"|", ">", ">>", "&&", ";"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [code for word, code in FENCED.findall(page.read_text(encoding="utf-8")) if word == language]


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


# Links


def slugs(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def local_links(page: Path) -> Iterator[tuple[Path, str]]:
    for target in LINK.findall(prose(page)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in local_links(page):
        assert target.exists(), f"{target} does not exist"
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in slugs(target), f"{target} has no heading {anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = {README}, [README]
    while todo:
        new = {path for path, _ in local_links(todo.pop()) if path.suffix == ".md"} - reached
        reached |= new
        todo += new
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", [README, *(ROOT / "docs").rglob("*.md")], ids=name_of)
def test_lines_fit(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    # A table's row cannot be broken, nor an address.
    assert [line for line in lines if len(line) > MAX_LINE and "](http" not in line and line[:1] != "|"] == []


# Commands


def commands(page: Path) -> list[list[str]]:
    """The words of each line in a code block that calls metalad, up to where the shell takes over."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^    (metalad .+)$", FENCED.sub("", text), re.MULTILINE)
    fenced = [re.findall(r"^(?:\$ )?(metalad .+)$", code, re.MULTILINE) for _, code in FENCED.findall(text)]
    found = []
    for line in chain(indented, *fenced):
        words = shlex.split(line, comments=True)[1:]
        ends = [place for place, word in enumerate(words) if word in SHELL_ENDS]
        found.append(words[: min(ends, default=len(words))])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        options = build_parser().parse_args(words)  # exits where a word is wrong
        assert options.verb in VERBS
        if getattr(options, "set", None):
            from_texts(register.method_named(options.method).load_config(), options.set)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_verbs_and_options_named_in_passing_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.split()
        if words[0] == "metalad" and len(words) > 1 and not words[1].isupper():
            assert words[1] in VERBS or words[1].startswith("--"), code
    settings = re.findall(r"`--set (\w+)=", prose(page)) + re.findall(r"--set (\w+)=", " ".join(blocks(page, "")))
    known = {name for method in register.methods().values() for name in method.load_config().__dataclass_fields__}
    assert {name for name in settings if name not in ("NAME", "robust")} <= known  # robust is the example's


def test_there_are_commands_at_all() -> None:
    verbs = {words[0] for page in PAGES for words in commands(page) if words}
    assert set(VERBS) == verbs
    assert {"python3 dev.py demo", "python3 dev.py test"} <= {line.strip() for line in prose(README).splitlines()}


def options_of(verb: str) -> set[str]:
    actions = build_parser()._subparsers._group_actions[0].choices[verb]._actions  # type: ignore[union-attr,index]
    assert all(isinstance(action, argparse.Action) for action in actions)
    return {action.option_strings[-1] for action in actions if action.option_strings} - {"--help"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_page_tells_all_its_options(verb: str) -> None:
    broadcast = OPTION.findall(prose(ROOT / "docs" / f"{verb}.md"))
    assert len(broadcast) == len(set(broadcast))
    assert set(broadcast) == options_of(verb)


# Python


@dataclass(frozen=True, kw_only=True)
class SmallConfig(MetalConfig):
    """MeTAL with few parameters, to stand in for its defaults."""

    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 8
    width: int = 16
    hidden_width: int = 32
    smoothing_sigma: float = 1.0


def put_bottles(folder: Path) -> Path:
    """A category of a few cookies, small."""
    for part, count in (("train/good", 4), ("test/good", 2), ("test/anomaly", 2), ("ground_truth/anomaly", 2)):
        for path in find_images(demo.DATA / part)[:count]:
            small = resize_image(read_image(path), (64, 48))
            small = np.where(small > 127, 255, 0).astype(np.uint8) if "ground_truth" in part else small
            write_image(folder / part / path.with_suffix(".png").name, small)
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    train(
        put_bottles(folder / "bottle"),
        folder / "run",
        method=MetalConfig(**dataclasses.asdict(SmallConfig())),
        epochs=1,
        device="cpu",
    )
    return folder / "run"


@pytest.fixture
def shop_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples think they are in."""
    put_bottles(tmp_path / "bottle")
    shutil.copytree(tmp_path / "bottle" / "test", tmp_path / "new-images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DATA", tmp_path / "bottle")
    monkeypatch.setattr("metalad.methods.metal.MetalConfig", SmallConfig)
    return tmp_path


def with_python(pages: list[Path]) -> list[Path]:
    return [page for page in pages if page.name != "architecture.md" and blocks(page, "python")]


@pytest.mark.parametrize("page", with_python(PAGES), ids=name_of)
def test_python_runs(page: Path, shop_floor: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(page, "python"))
    if "train(" not in code:
        shutil.copytree(finished_run, shop_floor / "runs" / "bottle")
    # All that is changed is how long it trains, and how large the default model is.
    exec(compile(re.sub(r"minutes=\d+", "minutes=0.0001", code), name_of(page), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_readmes_example_is_short() -> None:
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line]) <= 10


def test_the_example_of_a_method_is_a_method(shop_floor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_text, line = blocks(ROOT / "docs" / "architecture.md", "python")
    (entry,) = eval(line, {"Method": Method})
    file = shop_floor / "mean_image.py"
    file.write_text(file_text, encoding="utf-8")
    place = entry.detector.partition(":")[0]
    spec = importlib.util.spec_from_file_location(place, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, place, module)
    spec.loader.exec_module(module)
    register.methods.cache_clear()
    monkeypatch.setattr(register, "OWN", (*register.OWN, entry))
    try:
        train_and_judge(entry, shop_floor)
    finally:
        register.methods.cache_clear()


def train_and_judge(entry: Method, folder: Path) -> None:
    config = from_texts(entry.load_config(), ["robust=true", "image_size=32", "smoothing_sigma=1"])
    model = train(folder / "bottle", folder / "runs" / entry.name, method=config, device="cpu")
    assert isinstance(model.detector, FittedDetector)
    assert model.header.method == entry.name
    again = read_model(model.path)
    fitted = again.detector.get_buffer("mean")
    assert 0 < float(fitted.mean()) < 1
    assert bool((fitted == model.detector.get_buffer("mean")).all())
    report = evaluate(model.path, folder / "bottle", device="cpu")
    assert len(report.verdicts) == 4
    assert report.chosen.metrics_model.pixel_auroc is not None

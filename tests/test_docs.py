"""README and docs: links resolve, commands parse, all options are documented, Python runs, words are plain."""

import argparse
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalad
from metalad import methods as register
from metalad.cli.main import COMMANDS, build_parser
from metalad.data.images import find_images, read_image, resize_image, write_image
from metalad.methods import Method
from metalad.pipelines import demo
from metalad.runtime.settings import from_texts
from tests.tiny import tiny_category

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
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def local_links(page: Path) -> Iterator[tuple[Path, str]]:
    for target in LINK.findall(prose(page)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
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
    # A table's row cannot be broken, nor a link.
    assert [line for line in lines if len(line) > MAX_LINE and "](http" not in line and line[:1] != "|"] == []


# Commands


def commands(page: Path) -> list[list[str]]:
    """The arguments of each line in a code block that calls metalad, up to a shell operator."""
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
        options = build_parser().parse_args(words)  # exits if an argument is wrong
        assert options.command in COMMANDS
        if getattr(options, "set", None):
            from_texts(register.method_named(options.method).load_config(), options.set)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_settings_in_prose_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.split()
        if words[0] == "metalad" and len(words) > 1 and not words[1].isupper():
            assert words[1] in COMMANDS or words[1].startswith("--"), code
    settings = re.findall(r"`--set (\w+)=", prose(page)) + re.findall(r"--set (\w+)=", " ".join(blocks(page, "")))
    known = {name for method in register.methods().values() for name in method.load_config().__dataclass_fields__}
    assert {name for name in settings if name not in ("NAME", "robust")} <= known  # robust is the example's


def test_every_command_is_shown() -> None:
    shown = {words[0] for page in PAGES for words in commands(page) if words}
    assert set(COMMANDS) == shown
    assert {"python3 dev.py demo", "python3 dev.py test"} <= {line.strip() for line in prose(README).splitlines()}


def options_of(command: str) -> set[str]:
    actions = build_parser()._subparsers._group_actions[0].choices[command]._actions  # type: ignore[union-attr,index]
    assert all(isinstance(action, argparse.Action) for action in actions)
    shown = (action for action in actions if action.help != argparse.SUPPRESS)
    return {action.option_strings[-1] for action in shown if action.option_strings} - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_all_its_options(command: str) -> None:
    documented = OPTION.findall(prose(ROOT / "docs" / f"{command}.md"))
    assert len(documented) == len(set(documented))
    assert set(documented) == options_of(command)


# Python


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
    metalad.train(put_bottles(folder / "bottle"), folder / "run", method="variation_model", image_size=32, device="cpu")
    return folder / "run"


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples expect: a category, and new images."""
    put_bottles(tmp_path / "bottle")
    shutil.copytree(tmp_path / "bottle" / "test", tmp_path / "new-images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DATA", tmp_path / "bottle")
    return tmp_path


WITH_PYTHON = [page for page in PAGES if page.name not in ("architecture.md", "api.md", "README.md")]


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if blocks(page, "python")], ids=name_of)
def test_python_runs(page: Path, working_folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks(page, "python"))
    if "train(" not in code:
        shutil.copytree(finished_run, working_folder / "runs" / "bottle")
    # Only what determines the training time is changed.
    code = re.sub(r"minutes=\d+", "epochs=1, image_size=64, width=16, hidden_width=32", code)
    code = code.replace('demo("demo-run")', 'demo("demo-run", method="variation_model")')
    exec(compile(code, name_of(page), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_api_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other, on a few of the photographs that ship with the package."""
    monkeypatch.setattr("metalad.pipelines.demo_images.DATA", tiny_category(tmp_path / "cookie", train=8))
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "docs" / "api.md", "python"))
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "example"})
    assert "floats must be in [0, 1]" in capsys.readouterr().out
    assert (tmp_path / "out" / "overlays" / "000.jpg").exists()


def test_the_api_page_documents_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in metalad.__all__ if name != "__version__" and name not in text] == []
    functions = {name for name in metalad.__all__ if name.islower() and not name.startswith("_")}
    assert functions <= set(re.findall(r"^::: metalad\.(\w+)$", text, re.MULTILINE))


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line]) <= 11
    compile(code, "README.md", "exec")


def test_the_example_of_a_method_is_a_method(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_text, line = blocks(ROOT / "docs" / "architecture.md", "python")
    (entry,) = eval(line, {"Method": Method})
    file = working_folder / "mean_image.py"
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
        train_and_evaluate(entry, working_folder)
    finally:
        register.methods.cache_clear()


def train_and_evaluate(entry: Method, folder: Path) -> None:
    settings: dict[str, Any] = {"robust": "true", "image_size": 32, "smoothing_sigma": 1}
    model = metalad.train(folder / "bottle", folder / "run", method=entry.name, device="cpu", **settings)
    again = metalad.load(folder / "run", device="cpu")
    fitted = again.stored.detector.get_buffer("mean")
    assert 0 < float(fitted.mean()) < 1
    assert bool((fitted == model.stored.detector.get_buffer("mean")).all())
    report = metalad.evaluate(again, folder / "bottle")
    assert len(report.images) == 4
    assert report.metrics.pixel_auroc is not None


# Words

MIGRATION = ROOT / "src" / "metalad" / "storage" / "migration.py"
"""Quotes the names of the format before."""
TEXTS = sorted(
    [
        *({*(ROOT / "src").rglob("*.py")} - {MIGRATION}),
        *(ROOT / "src").rglob("*.html"),
        *(ROOT / "src").rglob("*.js"),
        *PAGES,
    ]
)
"""Not the changelog, which quotes."""

HOME_MADE = re.compile(
    r"""
      \blaws?\sof\s(the\s)?places? | \bnormal\slaws? | \b(normal|gaussian)\s+laws?
    | \b(has|have|had|having|its|their|half|full|own|equal|even|same|every|a|no|the)\ssay\b
    | \bforet(old|ell) | \bsurpris | \btail\sunits? | \bpartners?\b
    | \bevidences?\b | \bas\s(if\s)?new\b | \bas_new\b | \bjudg | \bpaint | \bTeam\b | \bteam\b
    | \btold\b | \bdrawn\sto(wards)?\b | \bnuisance | \bthe\shouse\b | \b(by|learnt\sby)\sheart\b
    | \busual[\s_]light\b | \bLight\( | \b(codebook|typical)\swords?\b | \bwords=
    """,
    re.VERBOSE | re.IGNORECASE,
)
QUOTED = ("judge_network", "per_nuisance", '"nuisance"')
"""A submodule of piade, whose name is in model files, and keys of reports of version 0.1."""


@pytest.mark.parametrize("file", TEXTS, ids=name_of)
def test_home_made_words_are_gone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for quoted in QUOTED:
        text = text.replace(quoted, "")
    found = [(text.count("\n", 0, match.start()) + 1, match.group()) for match in HOME_MADE.finditer(text)]
    assert found == []


def test_the_words_are_found_where_they_stand() -> None:
    for text in (
        "the law of places has a say",
        "foretold",
        "in tail units",
        "an image is judged",
        "evidence",
        "as new",
    ):
        assert HOME_MADE.search(text), text
    assert not HOME_MADE.search("the Gaussian is weighted; new images are scored; predicted")

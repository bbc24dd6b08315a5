"""Read a folder of good images without a known layout, and refuse one whose folder names tell images apart."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from metalad.data.annotations import find_annotations
from metalad.data.images import inspect_mask
from metalad.data.masks import is_in_mask_folder, masks_beside
from metalad.data.names import Role, hints, role
from metalad.data.text import number_of
from metalad.runtime.errors import DataError

Folder = tuple[str, ...]
"""A folder relative to the root: the names on the way to it."""
MAX_NAMED = 10
"""Subfolders that are named in a note."""
_OPPOSITES = (
    ("positive", "negative"),
    ("pos", "neg"),
    ("positiv", "negativ"),
    ("positivo", "negativo"),
    ("true", "false"),
    ("yes", "no"),
    ("clean", "dirty"),
    ("class_0", "class_1"),
    ("class0", "class1"),
    ("label_0", "label_1"),
    ("陽性", "陰性"),
)
_OVERRIDE = "if all images are good, add --all-good (in Python all_good=True)"


def separate_masks(root: Path, paths: Sequence[Path], *, all_good: bool) -> tuple[list[Path], int]:
    """Return the images of a folder without the masks among them, and the number of these.

    Raises:
        DataError: a mask beside an image is not empty, so that the image is not good; not if `all_good`.
    """
    beside = masks_beside(paths)
    for image, mask in () if all_good else beside.items():
        if inspect_mask(mask).pixels.any():
            raise DataError(
                f"{mask} marks an anomaly in {image.name}, so the images in {root} are not all good; "
                f"give a folder with good images only; {_OVERRIDE}"
            )
    masks = set(beside.values())
    images = [path for path in paths if path not in masks and not is_in_mask_folder(root, path)]
    return images, len(paths) - len(images)


def refuse_several_kinds(root: Path, paths: Iterable[Path]) -> None:
    """Refuse a folder in which the names of subfolders or files tell good images, defects, masks or parts apart.

    Raises:
        DataError: the names do; the text states the folder to give instead.
    """
    paths = list(paths)
    kinds = {folder: _kinds(folder) for folder in {path.parent.relative_to(root).parts for path in paths}}
    union = frozenset[Role]().union(*kinds.values())
    if not union or _have_one_kind(kinds, union):
        _refuse_names_of_files(root, paths)
        _refuse_opposites(root, kinds)
        return
    names = _names(sorted(kinds, key=lambda folder: (not kinds[folder], folder)))
    kind = "that are not all good, by the name of their folder" if len(set(kinds.values())) == 1 else "of several kinds"
    raise DataError(
        f"{root} contains images {kind} ({names}); {_remedy(root, kinds)}; {_OVERRIDE}; "
        "to evaluate, put the folders into one named test, and give its parent"
    )


def _refuse_names_of_files(root: Path, paths: Iterable[Path]) -> None:
    """Refuse files whose names are those of anomalous images, such as 2_NG.png beside 1_OK.png or 1.png."""
    ordered = sorted(paths)
    bad = [path for path in ordered if "bad" in (found := hints(path.stem)) and "good" not in found]
    if bad:
        other = next((path for path in ordered if "bad" not in hints(path.stem)), None)
        others = "only anomalous" if other is None else "good and anomalous"
        named = bad[0].name if other is None else f"{other.name}, {bad[0].name}"
        raise DataError(
            f"{root} contains {others} images by their file names ({named}); "
            f"give a folder with good images only, or a file labels.csv; {_OVERRIDE}"
        )


def _refuse_opposites(root: Path, folders: Iterable[Folder]) -> None:
    """Refuse folders named as opposites, such as positive and negative, of which one may hold anomalous images."""
    by_name = {name.casefold(): name for folder in folders for name in folder}
    for pair in _OPPOSITES:
        if all(name in by_name for name in pair):
            names = " and ".join(by_name[name] for name in pair)
            raise DataError(
                f"{root} contains folders named {names}, which may tell good images from anomalous ones; "
                f"give the one with good images only; {_OVERRIDE}"
            )


def refuse_some_marked(root: Path, images: Sequence[Path]) -> None:
    """Refuse a folder in which annotation files mark some of the images: these are not all good.

    Raises:
        DataError: they do; not if they mark all images, because the marks may be of the parts themselves.
    """
    found = find_annotations(root, images)
    if found is not None and 0 < len(found.marked) < len(images):
        image, file = next(iter(found.marked.items()))
        raise DataError(
            f"annotation files mark {len(found.marked)} of {number_of(len(images), 'image')} in {root}, such as "
            f"{image.name} in {file}, so the images are not all good; give a folder with good images only; {_OVERRIDE}"
        )


def copies_note(paths: Iterable[Path]) -> str | None:
    """Describe the images that differ from another one of their folder in the suffix alone; None without any."""
    stems = Counter(path.with_suffix("") for path in paths)
    twice = sorted(stem for stem, count in stems.items() if count > 1)
    if not twice:
        return None
    return (
        f"{number_of(len(twice), 'image')} with several suffixes, probably copies of each other, such as {twice[0]}.*"
    )


def subfolder_counts(root: Path, paths: Iterable[Path]) -> str | None:
    """Return the number of images from each subfolder, at most `MAX_NAMED` of them, as a line; None without any."""
    counts = Counter(path.parent.relative_to(root).as_posix() for path in paths)
    if set(counts) <= {"."}:
        return None
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count} in {root if name == '.' else name}" for name, count in ordered[:MAX_NAMED])
    others = ordered[MAX_NAMED:]
    rest = f", {sum(count for _, count in others)} in {number_of(len(others), 'other subfolder')}" if others else ""
    return f"{number_of(counts.total(), 'image')} below {root}, all taken as good: {named}{rest}"


def categories_below(root: Path, paths: Iterable[Path], is_category: Callable[[Path], bool]) -> list[str]:
    """Return the folders of categories below `root`, as relative paths: a data set was given instead of a category."""
    folders = {path.parent.relative_to(root).parts for path in paths}
    candidates = {folder[:1] for folder in folders if folder}
    for folder in folders:
        if _kinds(folder):
            candidates.update(accumulate(((name,) for name in folder), lambda left, right: left + right))
    found: list[Folder] = []
    for folder in sorted(candidates, key=lambda folder: (len(folder), folder)):
        inside = any(folder[: len(other)] == other for other in found)
        if not inside and is_category(root.joinpath(*folder)):
            found.append(folder)
    return ["/".join(folder) for folder in found]


def _kinds(folder: Folder) -> frozenset[Role]:
    return frozenset[Role]().union(*map(hints, folder))


def _have_one_kind(kinds: dict[Folder, frozenset[Role]], union: frozenset[Role]) -> bool:
    """Return whether the names do not tell images apart: all are good, or all have the same word, such as "test"."""
    if len(set(kinds.values())) > 1:
        return False
    if union <= {"good", "train"}:
        return True
    # "test_bench_3" alone is the name of a place, but "test" is a part.
    return "bad" not in union and not any(role(name) for folder in kinds for name in folder)


def _remedy(root: Path, kinds: dict[Folder, frozenset[Role]]) -> str:
    good = _folders_to(kinds, "good")
    if good:
        return f"to train, give {_choice(root, good)}"
    train = _folders_to(kinds, "train") or sorted(
        {folder[:1] for folder, found in kinds.items() if not found and folder}
    )
    if train:
        return f"to train, give {_choice(root, train)} if all images there are good"
    return "to train, give a folder with good images only"


def _folders_to(kinds: dict[Folder, frozenset[Role]], wanted: Role) -> list[Folder]:
    """Return the paths to the folders with a role, those of training images first."""
    found: dict[Folder, bool] = {}
    for folder, roles in kinds.items():
        if wanted in roles and roles <= {"good", "train"}:
            last = max(index for index, name in enumerate(folder) if wanted in hints(name))
            found[folder[: last + 1]] = "train" in roles
    return sorted(found, key=lambda folder: (not found[folder], folder))


def _choice(root: Path, folders: Sequence[Folder]) -> str:
    first = root.joinpath(*folders[0])
    return str(first) if len(folders) == 1 else f"{first} (or {number_of(len(folders) - 1, 'other folder')} like it)"


def _names(folders: Iterable[Folder]) -> str:
    names = ["/".join(folder) or "no subfolder" for folder in folders]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from metalad.data import data_hash, read_category
from metalad.data.content import content_keys
from metalad.runtime.errors import ImageError
from tests.data.folders import put_image, put_mask, put_samples


def test_the_hash_does_not_depend_on_the_location_or_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(tmp_path / "here/test/good/1.png", 1)
    put_image(tmp_path / "here/test/crack/1.png", 2)
    put_mask(tmp_path / "here/ground_truth/crack/1_mask.png")
    shutil.copytree(tmp_path / "here", tmp_path / "far/away")
    here = read_category(tmp_path / "here").test
    assert data_hash(here) == data_hash(read_category(tmp_path / "far/away").test)
    assert data_hash(here) == data_hash(here[::-1])
    monkeypatch.chdir(tmp_path / "far")
    assert data_hash(here) == data_hash(read_category(Path("away")).test)


def test_the_hash_depends_on_contents_names_labels_and_masks(tmp_path: Path) -> None:
    samples = put_samples(tmp_path, [1, 2, 3])
    masked = [replace(samples[0], abnormal=True, defect="crack", mask=put_mask(tmp_path / "m.png"))]
    hashes = [data_hash(()), data_hash(samples), data_hash(samples[:2]), data_hash(masked + samples[1:])]
    put_mask(tmp_path / "m.png", (13, 10))
    hashes.append(data_hash(masked + samples[1:]))
    samples[0].path.rename(tmp_path / "x.png")
    hashes.append(data_hash([replace(samples[0], path=tmp_path / "x.png"), *samples[1:]]))
    put_image(samples[1].path, 9)
    hashes.append(data_hash(samples[1:]))
    assert len(set(hashes)) == 7
    with pytest.raises(ImageError, match=r"cannot read .*000\.png: No such file"):
        data_hash(samples)


def test_file_names_that_are_not_unicode_are_accepted(tmp_path: Path) -> None:
    samples = put_samples(tmp_path, [1])
    path = tmp_path / "\udcff\n.png"
    samples[0].path.rename(path)
    assert data_hash([replace(samples[0], path=path)]) != data_hash(put_samples(tmp_path, [1]))


def test_keys_are_equal_only_for_equal_files(tmp_path: Path) -> None:
    contents = [b"aa", b"ab", b"aa", b"a", b"", b"", b"aaa"]
    paths = [tmp_path / str(index) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    keys = content_keys([*paths, tmp_path / "gone", tmp_path / "lost"])
    for i, first in enumerate(contents):
        for j, second in enumerate(contents):
            assert (keys[i] == keys[j]) == (first == second)
    assert keys[-1] != keys[-2]

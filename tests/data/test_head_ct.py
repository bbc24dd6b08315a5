from pathlib import Path

import pytest

from metalad.data import read_category
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_mask, put_text


def put_labelled(root: Path, good: int = 10, anomalous: int = 3) -> None:
    """Write different images 000.png, 001.png, ..., the anomalous ones first."""
    for number in range(good + anomalous):
        put_image(root / "images" / f"{number:03}.png", number)
    rows = [f"{number},{int(number < anomalous)}" for number in range(good + anomalous)]
    put_text(root / "labels.csv", "\n".join(["id, bleeding", *rows, "", " "]))


def test_a_fifth_of_the_good_and_all_anomalous_images_are_test_images(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    category = read_category(tmp_path)
    assert category.layout == "head-ct"
    assert len(category.train) == 8
    assert [sample.path.stem for sample in category.test if sample.abnormal] == ["000", "001", "002"]
    assert {sample.defect for sample in category.test} == {"good", "bleeding"}
    assert not {sample.path for sample in category.train} & {sample.path for sample in category.test}


@pytest.mark.parametrize(
    "name", ["7", "007", "007.png", "images/007.png", "images/007", r"images\007.png", r"C:\a\007.png", "/mnt/007.png"]
)
def test_images_are_identified_by_number_name_or_path(tmp_path: Path, name: str) -> None:
    put_labelled(tmp_path)
    put_text(tmp_path / "labels.csv", f"id,label\n{name},1\n8,0\n9,0\n")
    anomalous = [sample for sample in read_category(tmp_path).test if sample.abnormal]
    assert [(sample.path, sample.defect) for sample in anomalous] == [(tmp_path / "images/007.png", "abnormal")]


def test_images_can_be_in_the_folder_of_the_list(tmp_path: Path) -> None:
    for number in range(4):
        put_image(tmp_path / f"x{number}.png", number)
    put_text(tmp_path / "labels.csv", "\ufefffile,bad\nx0,0\nx1,0\nx2.png,1\n")
    category = read_category(tmp_path)
    assert len(category.train) + len(category.test) == 3


@pytest.mark.parametrize("seed", range(8))
def test_copies_are_in_the_same_part(tmp_path: Path, seed: int) -> None:
    put_labelled(tmp_path)
    for copy, original in (("005", "004"), ("012", "004"), ("009", "000")):
        content = (tmp_path / f"images/{original}.png").read_bytes()
        (tmp_path / f"images/{copy}.png").write_bytes(content)
    category = read_category(tmp_path, seed=seed)
    train = {sample.path.read_bytes() for sample in category.train}
    test = {sample.path.read_bytes() for sample in category.test}
    assert not train & test
    assert len(category.train) == 8


VALUES = r"needs an image and 0 \(good\) or 1 \(anomalous\), or words such as OK and NG"
HEADER = "needs a header of two columns separated by a comma"
MALFORMED = {
    "": "lists no images; it needs a header",
    "id,abnormal\n": "lists no images; it needs a header",
    "0,1\n1,0\n": f"line 1: {HEADER}, such as id,abnormal; found 0,1",
    "id\n0\n": f"line 1: {HEADER}",
    "000.png,OK\n001.png,NG\n": f"line 1: {HEADER}",
    "id,abnormal\n0,1\n\n1,2\n": rf"line 4: {VALUES}; found 1,2",
    "id,abnormal\n0,-1\n": rf"line 2: {VALUES}; found 0,-1",
    "id,abnormal\n0,0\n1,red\n": rf"line 3: {VALUES}; found 1,red",
    "id,abnormal\n0,good\n1,unknown\n": rf"line 3: {VALUES}; found 1,unknown",
    "id,abnormal\n0,good\n1,OK or NG\n": rf"line 3: {VALUES}; found 1,OK or NG",
    "id,abnormal\n0,good\n1,test\n": rf"line 3: {VALUES}; found 1,test",
    "id,abnormal\n0\n": rf"line 2: {VALUES}; found 0$",
    "id,abnormal\n98,1\n99,0\n": "line 2: no image named '98' in the folder images or in the folder of the list",
    "id,abnormal\n0,1\n99,0\n3,0\n": r"labels 1 images as good, but .* \(1 row of .* without an image",
    "id,abnormal\n0,1\n000,0\n": r"line 3: 000\.png is listed twice; remove one of the two lines",
    "id,abnormal\n0,1\n3,0\n": r"labels 1 images as good, but at least 2 are needed",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_the_error_for_a_malformed_list_names_the_line(tmp_path: Path, text: str) -> None:
    put_labelled(tmp_path)
    put_text(tmp_path / "labels.csv", text)
    with pytest.raises(DataError, match=r"labels\.csv.*" + MALFORMED[text]):
        read_category(tmp_path)


GOOD_HEADINGS = [
    "good",
    "Good",
    "ok",
    "OK",
    "normal",
    "crack-free",
    "is_good",
    "pass",
    "良品",
    "defect_free",
    "not_defective",
]
BAD_HEADINGS = [
    "bad",
    "NG",
    "abnormal",
    "anomaly",
    "hemorrhage",
    "defect",
    "is_defect",
    "not_ok",
    "不良",
    "label",
    "class",
]
AMBIGUOUS = """
    ok_ng good/bad pass_fail quality Status result verdict valid good_side 判定 合否 Ergebnis Urteil Qualität
    Resultado 状態 品質 decision camera operator split value score Bewertung Prüfergebnis
"""


@pytest.mark.parametrize("heading", GOOD_HEADINGS)
def test_under_a_heading_of_good_images_1_is_good(tmp_path: Path, heading: str) -> None:
    put_labelled(tmp_path)
    rows = [f"{number},{int(number >= 3)}" for number in range(13)]
    put_text(tmp_path / "labels.csv", "\n".join([f"id,{heading}", *rows]))
    category = read_category(tmp_path)
    assert [sample.path.stem for sample in category.test if sample.abnormal] == ["000", "001", "002"]
    assert {sample.defect for sample in category.test} == {"good", "abnormal"}
    assert len(category.train) == 8


@pytest.mark.parametrize("heading", BAD_HEADINGS)
def test_under_any_other_clear_heading_1_is_anomalous(tmp_path: Path, heading: str) -> None:
    put_labelled(tmp_path)
    listing = tmp_path / "labels.csv"
    put_text(listing, listing.read_text(encoding="utf-8").replace("id, bleeding", f"id,{heading}"))
    category = read_category(tmp_path)
    assert [sample.path.stem for sample in category.test if sample.abnormal] == ["000", "001", "002"]


@pytest.mark.parametrize(
    ("heading", "values"),
    [*((heading, "1 0 0") for heading in AMBIGUOUS.split())]
    + [("Ergebnis", values) for values in ("yes no no", "True False False", "OK 0 0", "無 有 有")]
    + [("label", "yes no no")],
)
def test_a_heading_that_does_not_state_the_meaning_of_1_is_refused(tmp_path: Path, heading: str, values: str) -> None:
    put_labelled(tmp_path)
    put_text(
        tmp_path / "labels.csv", "\n".join([f"id,{heading}", *map(",".join, zip("034", values.split(), strict=True))])
    )
    with pytest.raises(DataError, match=f"line 1: the header {heading} does not state .*; name the column good or abn"):
        read_category(tmp_path)


WORDS = {
    "OK NG": "NG",
    "good bad": "bad",
    "pass FAIL": "FAIL",
    "gut schlecht": "schlecht",
    "Gutteil Ausschuss": "Ausschuss",
    "i.O. n.i.O.": "n.i.O.",
    "IO NIO": "NIO",
    "conforme não_conforme": "não_conforme",
    "aprovado reprovado": "reprovado",
    "apto no_apto": "no_apto",
    "良品 不良品": "不良品",
    "合格 不合格": "不合格",
    "良 否": "否",
    "○ ×": "×",
    "ＯＫ ＮＧ": "ＮＧ",
    "good scratch": "scratch",
    "OK Kratzer": "Kratzer",
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("heading", ["Ergebnis", "verdict", "label", "OK/NG"])
def test_values_that_state_it_themselves_are_read_below_any_heading(tmp_path: Path, heading: str, words: str) -> None:
    put_labelled(tmp_path)
    good, bad = words.split()
    rows = [f"{number},{bad if number < 3 else good}" for number in range(13)]
    put_text(tmp_path / "labels.csv", "\n".join([f"id,{heading}", *rows]))
    category = read_category(tmp_path)
    anomalous = [(sample.path.stem, sample.defect) for sample in category.test if sample.abnormal]
    assert anomalous == [(stem, WORDS[words]) for stem in ("000", "001", "002")]
    assert len(category.train) == 8
    assert category.train_notes[0].endswith(f"labels.csv is read as 10 good and 3 anomalous images: 3 {WORDS[words]}")


@pytest.mark.parametrize(
    ("heading", "good", "bad"),
    [
        ("defect", "no", "yes"),
        ("defect", "False", "True"),
        ("good", "TRUE", "FALSE"),
        ("OK", "yes", "no"),
        ("OK", "wahr", "falsch"),
        ("abnormal", "0.0", "1.0"),
        ("Fehler", "nein", "ja"),
        ("defeito", "não", "sim"),
        ("不良", "無", "有"),
        ("defect", "none", "yes"),
    ],
)
def test_yes_and_no_have_the_meaning_of_1_and_0(tmp_path: Path, heading: str, good: str, bad: str) -> None:
    put_labelled(tmp_path)
    rows = [f"{number},{bad if number < 3 else good}" for number in range(13)]
    put_text(tmp_path / "labels.csv", "\n".join([f"id,{heading}", *rows]))
    category = read_category(tmp_path)
    assert [sample.path.stem for sample in category.test if sample.abnormal] == ["000", "001", "002"]


def test_a_heading_without_a_name_notes_how_it_is_read(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    listing = tmp_path / "labels.csv"
    put_text(listing, listing.read_text(encoding="utf-8").replace("id, bleeding", "id,label"))
    note = f"{listing} is read as 10 good and 3 anomalous images: 3 abnormal"
    assert read_category(tmp_path).train_notes == read_category(tmp_path).test_notes == (note,)


def test_a_heading_without_a_name_and_few_good_images_notes_the_remedy(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    rows = [f"{number},{int(number >= 3)}" for number in range(13)]
    put_text(tmp_path / "labels.csv", "\n".join(["id,label", *rows]))
    (note,) = read_category(tmp_path).train_notes
    assert note.endswith(
        "is read as 3 good and 10 anomalous images: 10 abnormal; if 1 means good, name the column good"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n"])
def test_lists_of_spreadsheet_programs_are_read(tmp_path: Path, delimiter: str, encoding: str, first: str) -> None:
    put_labelled(tmp_path)
    rows = ["Prüfteil,Fehler", *(f"{number},{int(number < 3)}" for number in range(13))]
    text = first.format(delimiter) + "\r\n".join(rows).replace(",", delimiter)
    (tmp_path / "Labels.CSV").write_bytes(text.encode(encoding))
    (tmp_path / "labels.csv").unlink()
    category = read_category(tmp_path)
    assert category.layout == "head-ct"
    assert [sample.path.stem for sample in category.test if sample.abnormal] == ["000", "001", "002"]


def test_a_comma_in_a_name_does_not_split_a_list_of_semicolons(tmp_path: Path) -> None:
    for number in range(4):
        put_image(tmp_path / f"a,{number}.png", number)
    put_text(tmp_path / "labels.csv", "file;bad\n" + "".join(f"a,{number}.png;{number // 3}\n" for number in range(4)))
    assert [sample.path.name for sample in read_category(tmp_path).test if sample.abnormal] == ["a,3.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Prüfteil,bad\n0,1\n".encode("cp1252"), "line 1 is not in UTF-8"),
        ("id,bad\n良,1\n".encode("cp932"), "line 2 is not in UTF-8"),
        ("id,bad\n0,1\n".encode("utf-16-le"), "it has zero bytes"),
        (b"PK\x03\x04\x00\x00", "it has zero bytes"),
    ],
)
def test_another_encoding_is_refused_with_what_to_do(tmp_path: Path, content: bytes, reason: str) -> None:
    put_labelled(tmp_path)
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*labels\.csv: {reason}.*CSV file in UTF-8 \(in Excel: Save As"):
        read_category(tmp_path)


def test_rows_without_an_image_and_images_without_a_row_are_counted(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    put_text(tmp_path / "labels.csv", "id,abnormal\n0,1\n3,0\n4,0\n98,0\n99,1\n")
    category = read_category(tmp_path)
    listing = tmp_path / "labels.csv"
    expected = (
        f"2 rows of {listing} without an image",
        f"10 images not listed in {listing} and not used, such as {tmp_path / 'images/001.png'}",
    )
    assert category.train_notes == category.test_notes == expected
    put_labelled(tmp_path)
    assert read_category(tmp_path).train_notes == ()


def test_masks_beside_listed_images_are_left_out(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    put_mask(tmp_path / "images/000_mask.png")
    assert read_category(tmp_path).test_notes == (f"1 mask left out, such as {tmp_path / 'images/000_mask.png'}",)


def test_ambiguous_names_are_rejected(tmp_path: Path) -> None:
    put_labelled(tmp_path)
    put_image(tmp_path / "images/deep/007.png")
    put_text(tmp_path / "labels.csv", "id,abnormal\n7,1\n")
    with pytest.raises(DataError, match=r"line 2: '7' matches .*; list the paths"):
        read_category(tmp_path)


def test_only_copies_cannot_be_split(tmp_path: Path) -> None:
    for number in range(4):
        put_image(tmp_path / f"{number}.png")
    put_text(tmp_path / "labels.csv", "id,abnormal\n0,0\n1,0\n2,0\n3,0\n")
    with pytest.raises(DataError, match="copies of one another or of anomalous images"):
        read_category(tmp_path)


def test_head_ct_is_split_by_the_seed_and_duplicates_stay_together(shared_data: Path) -> None:
    splits = set()
    for seed in range(12):
        category = read_category(shared_data / "headct", seed=seed)
        good = [sample for sample in category.test if not sample.abnormal]
        assert (len(category.train), len(good), len(category.test)) == (80, 20, 120)
        assert {sample.defect for sample in category.test} == {"good", "hemorrhage"}
        train = frozenset(sample.path.stem for sample in category.train)
        assert ("188" in train) == ("189" in train)
        splits.add(train)
    assert len(splits) == 12
    assert read_category(shared_data / "headct", seed=3) == read_category(shared_data / "headct", seed=3)

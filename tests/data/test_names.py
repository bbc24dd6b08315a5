import unicodedata

import pytest

from metalad.data.names import Role, hints, is_good, role, same_name

ROLES: dict[Role, str] = {
    "good": "good GOOD Good ok OK okay normal pass passed bon bonnes gut gute buono bueno buenos bom 良品 合格 正常 "
    "양품 OK_1 good-images Images_OK is_good defect-free no_defect NoDefect OK品 異常なし годные i.O.",
    "bad": "bad NG ng NOK fail failed Failure defect defects Defective defekt défaut DEFAUT difettoso difetti reject "
    "rejected anomaly anomalies anomalous abnormal anormal faulty schlecht mauvais Ausschuss not_good NotGood notok "
    "non-conforming nonconforming 不良 不良品 不合格 欠陥 異常 缺陷 불량 ng2 n.i.O. не_годен брак",
    "mask": "mask masks Masks label Labels labels_1 ground_truth GroundTruth ground-truth GT gt annotations マスク",
    "train": "train Train TRAINING train_images 学習",
    "test": "test Test TESTING tests テスト",
    "validation": "val validation Validation 検証",
}
WITHOUT = (
    "images camera1 tower good_side_scratch label_printer broken_large goodyear oks passat 画像 2024-01-31 hemorrhage"
)


@pytest.mark.parametrize("expected", ROLES)
def test_a_name_has_the_role_of_its_words_in_any_case_and_language(expected: Role) -> None:
    found = {name: role(name) for name in ROLES[expected].split()}
    assert found == dict.fromkeys(found, expected)


def test_a_name_with_other_words_has_no_role() -> None:
    found = {name: role(name) for name in WITHOUT.split()}
    assert found == dict.fromkeys(found)


def test_the_words_of_a_name_are_hints() -> None:
    assert hints("camera 1 OK") == {"good"}
    assert hints("OK_or_NG") == {"good", "bad"}
    assert hints("station_7_fail") == {"bad"}
    assert hints("train_masks") == {"train", "mask"}
    assert hints("camera1") == frozenset()


def test_names_are_compared_in_one_unicode_form() -> None:
    decomposed = unicodedata.normalize("NFD", "défaut")
    assert decomposed != "défaut"
    assert role(decomposed) == "bad"
    assert same_name(decomposed) == same_name("défaut")
    assert not is_good(decomposed)


NEGATED = {
    "good": "sem_defeito ohne_Fehler キズなし crack-free 無欠陥 异常无 without-defects unbeschädigt Teil_i._O.",
    "bad": "não_conforme nao_aprovado non_conforme no_apto nicht_in_Ordnung n._i._O. N_OK n-ok com_defeito mit_Fehler "
    "不適合 không_đạt Kratzer Reklamation con_fallo mit_Befund Fehlteile pecas_ruins beschädigt con_defectos",
}


@pytest.mark.parametrize("expected", NEGATED)
def test_negated_names_have_the_opposite_role(expected: Role) -> None:
    found = {name: role(name) for name in NEGATED[expected].split()}
    assert found == dict.fromkeys(found, expected)

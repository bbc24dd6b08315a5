"""The roles of folder names and column names: good or anomalous images, masks, and the parts of a data set.

Names are compared without case, in several languages. A name has a role if all of its words have it, apart from
neutral words and numbers: "OK_images_2" is good, "good_side_scratch" has no role. The words of the name also count
alone, see `hints`.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

Role = Literal["good", "bad", "mask", "train", "test", "validation"]

_NEGATIONS = frozenset(
    {"no", "not", "non", "nicht", "pas", "sin", "sem", "sans", "ohne", "without", "kein", "keine", "не", "nao", "nie"}
    | {"niet", "ikke", "inte", "senza", "khong"}
)
_NEUTRAL = (
    "image images img imgs picture pictures photo photos sample samples part parts piece pieces product products set "
    "data dataset folder all is the with bild bilder teil teile mit pièce pièces avec pieza piezas foto fotos con peça "
    "peças com imagen imagenes imagem imagens immagine immagini pezzo pezzi 品 画像 写真 图片 圖片 图像"
)
_WORDS: Mapping[Role, str] = {
    "good": "good goods ok okay normal pass passed accept accepted approved conforming golden healthy io intact "
    "bon bons bonne bonnes conforme conformes gut gute guter gutteil gutteile gutbilder fehlerfrei fehlerfreie "
    "bestanden einwandfrei unbeschädigt undamaged unscratched nondefective goodparts goodimages intakt "
    "buono buoni buona buone integro bueno buenos buena buenas aprobado aprobados aprobada aprobadas apto aptos apta "
    "aptas correcto correctos correcta correctas bom bons boa boas aprovado aprovados aprovada aprovadas perfeito "
    "goed goede dobry dobre dobra dobrý dobré tốt đạt "
    "норма годен годные хороший хорошие iyi sağlam 良 可 好 優 优",
    "bad": "bad ng nok ko nio faulty fault faults flaw flaws flawed invalid nogood notok notgood "
    "crack cracks cracked scratch scratches scratched dent dents dented stained corroded contaminated contamination "
    "kratzer verkratzt riss risse delle dellen befund mangel mängel makel riscado riscados riscada riscadas trinca "
    "trincas trincado rayado rayados rayada rayadas arañazo arañazos grieta grietas fallo fallos falla fallas "
    "falha falhas rayure rayures fissure fissures graffio graffi graffiato crepa crepe "
    "reklamation reklamationen beanstandet complaint complaints reclamação reclamo "
    "damaged broken scrap scrapped badparts badimages ngs anom anoms unapproved unaccepted incorrect "
    "schlecht schlechte schlechter schlechtteil schlechtteile schlechtbilder fehlteil fehlteile fehlerteile ausschuss "
    "ausschussteil ausschussteile fehler fehlerhaft fehlerhafte fehlerhaftes mangelhaft schrott beschädigt beschädigte "
    "mauvais mauvaise mauvaises rebut rebuts défaut défauts scarto scarti guasto guasti cattivo cattivi "
    "malo malos mala malas incorrecto incorrectos dañado dañados averiado chatarra ruim ruins refugo refugos sucata "
    "danificado danificados quebrado quebrados slecht afgekeurd zły złe wadliwy wadliwe vadný vadné špatný lỗi "
    "брак бракованный bozuk hatalı 否 坏 壞",
    "mask": "mask masks masken masque masques maschera maschere máscara máscaras label labels groundtruth gt truth "
    "annotation annotations seg segmentation segmentations",
    "train": "train training trainset trainingsdaten trainingsbilder treino treinamento entrenamiento entraînement "
    "apprentissage addestramento обучение eğitim",
    "test": "test tests testing testset eval evaluation testdaten testbilder prüfung teste testes prueba pruebas essai "
    "essais prova prove тест",
    "validation": "val valid validation validate valset validierung validação validación convalida",
}
_BAD_BEGINNINGS = (
    "anomal abnormal anormal fail defect defec defeit defekt difett reject rechaz rejeit reprov unacceptable "
    "nonconform дефект аномал"
)
# In this order: 不良品 contains 良品. Chinese, Japanese and Korean names have no spaces between words.
_CJK: tuple[tuple[Role, str], ...] = (
    (
        "bad",
        "不良 不合格 不正常 不適合 不适合 不可 非良品 欠陥 欠点 缺陷 異常 异常 瑕疵 次品 废品 廢品 キズ きず 傷 打痕",
    ),
    (
        "bad",
        "汚れ 割れ 欠け 划痕 裂纹",
    ),
    ("bad", "불량 결함 비정상 이상 불합격"),
    ("mask", "マスク 掩膜 掩码 标注 標注 ラベル 마스크"),
    ("train", "訓練 训练 学習 훈련 학습"),
    ("test", "テスト 测试 測試 評価 테스트"),
    ("validation", "検証 验证 驗證 검증"),
    ("good", "良品 合格 正常 良好 適合 完好 양품 정상 합격"),
)
_CJK_NEGATIONS = ("なし", "無", "无", "沒有", "没有", "없음")
"""With one of these, the name of a defect means that there is none: 異常なし, 欠陥無し."""
_ABBREVIATIONS = tuple(
    (re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", re.IGNORECASE), short)
    for pattern, short in (
        (r"n\.[\s_]?i\.[\s_]?O|nicht[\W_]?in[\W_]?Ordnung", "nio"),
        (r"i\.[\s_]?O|in[\W_]?Ordnung", "io"),
        (r"N[\W_]?OK", "nok"),
    )
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[\u3000-\u9fff\uac00-\ud7a3])")
_ACCENTS = re.compile("[\u0300-\u036f]")
_SEPARATORS = re.compile(r"[\W_\d]+")


def role(name: str) -> Role | None:
    """Return the role of a name if all of its words have the same one, apart from neutral words; else None."""
    found = _roles(name)
    (only, *others) = set(found) or {None}
    return None if others else only


def hints(name: str) -> frozenset[Role]:
    """Return the roles of the single words of a name: "camera 1 OK" has the word of good images."""
    return frozenset(found for found in _roles(name) if found is not None)


def is_good(name: str) -> bool:
    """Return whether a name stands for good images, such as "good", "OK" or "defect free"."""
    return role(name) == "good"


def same_name(name: str) -> str:
    """Return a name in the Unicode normal form in which names are compared; file systems use different ones."""
    return unicodedata.normalize("NFC", name)


def _roles(name: str) -> list[Role | None]:
    words = _words(name)
    roles: list[Role | None] = []
    negated = False
    for word in words:
        if word in _NEGATIONS:
            negated = True
            continue
        if word == "free" and roles and roles[-1] == "bad":  # "defect free"
            roles[-1] = "good"
            continue
        found = _role_of_word(word)
        if negated and found in ("good", "bad"):
            found = "bad" if found == "good" else "good"
        roles.append(found)
        negated = False
    return roles


def _words(name: str) -> list[str]:
    text = unicodedata.normalize("NFKC", name)
    for pattern, short in _ABBREVIATIONS:
        text = pattern.sub(short, text)
    text = _CAMEL.sub(" ", text)
    words = _SEPARATORS.sub(" ", _folded(text)).replace("ground truth", "groundtruth")
    return [word for word in words.split() if word not in _NEUTRAL_WORDS]


def _folded(text: str) -> str:
    """Return a text without case and accents: "défaut" and "DEFAUT" are the same word."""
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)).casefold()


def _role_of_word(word: str) -> Role | None:
    for found, parts in _CJK:
        if any(part in word for part in parts.split()):
            is_negated = found == "bad" and any(part in word for part in _CJK_NEGATIONS)
            return "good" if is_negated else found
    return _ROLES.get(word) or ("bad" if word.startswith(_BAD) else None)


_NEUTRAL_WORDS = frozenset(_folded(_NEUTRAL).split())
_ROLES: Mapping[str, Role] = {word: found for found, words in _WORDS.items() for word in _folded(words).split()}
_BAD = tuple(_folded(_BAD_BEGINNINGS).split())

"""The meaning of the second column of a list of images: which of its values are good, and which are anomalous."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metalad.data.names import hints, role
from metalad.data.sample import GOOD, Sample
from metalad.runtime.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABNORMAL = "abnormal"
MAX_KINDS = 10
"""Kinds of defects that a note names."""
_LABELS = frozenset({"", "class", "label", "target"})
"""Headers under which 1 is anomalous by convention, and that are no names of defects."""
_DEFECTS = _words("hemorrhage haemorrhage bleeding blutung tumor lesion fracture blowhole pitting corrosion rust 出血")
"""Further headers that name a defect: 1 is anomalous."""
_NUMBERS = _words("0 0.0 1 1.0")
_TRUE = _words("1 1.0 true yes y t ja wahr oui vrai si sí verdadero sim verdadeiro vero tak да はい 是 예 有 あり")
_FALSE = _words("0 0.0 false no n f nein falsch non faux falso não nao nie нет いいえ 否 아니요 無 无 なし")
_NOTHING = _words("none nothing keine keiner kein aucun nessuno ninguno nenhum なし 無 无 没有")
"""Values that stand for no defect in a column of defects."""
_GOOD_SIGNS, _BAD_SIGNS = frozenset("○〇◯◎✓✔☑"), frozenset("×✕✖✗✘☒")
_UNCLEAR = _words(
    "unknown unclear unsure pending todo maybe unlabeled unlabelled skip skipped ignore recheck retest na n/a nan null "
    "unbekannt unklar offen inconnu desconocido desconhecido 不明 保留 要確認 未検査 待定"
)
_NUMBER = re.compile(r"[\W\d_]+")


@dataclass(frozen=True)
class LabelColumn:
    """The second column of a list.

    stated: what 1, true and yes mean by the header; None if it does not state it. has_good_words: whether some value
    is a word for good, so that other words are names of defects.
    """

    header: str
    stated: Literal["good", "bad"] | None
    has_good_words: bool

    @classmethod
    def of(cls, header: str, values: Iterable[str]) -> "LabelColumn":
        """Return the column with a header and values."""
        stated = _stated_meaning(header)
        return cls(header, stated, any(_word(value, stated) == GOOD for value in set(values)))

    @property
    def expected(self) -> str:
        """The values that the column may have, for an error message."""
        numbers = "0 (anomalous) or 1 (good)" if self.stated == "good" else "0 (good) or 1 (anomalous)"
        return f"{numbers}, or words such as OK and NG" if self._booleans else "words such as OK and NG"

    def defect(self, value: str) -> str | None:
        """Return `GOOD` or the name of the defect that a value stands for; None if its meaning is not clear."""
        plain = _plain(value)
        if plain in self._booleans:
            is_good = (plain in _TRUE) == (self.stated == "good")
            return GOOD if is_good else self._name
        word = _word(value, self.stated)
        if word is not None:
            return word
        is_clear = plain not in _UNCLEAR | _TRUE | _FALSE and not _NUMBER.fullmatch(plain) and not hints(value)
        return value if self.has_good_words and is_clear else None

    @property
    def _booleans(self) -> frozenset[str]:
        if self.stated is not None:
            return _TRUE | _FALSE
        return _NUMBERS if _plain(self.header) in _LABELS else frozenset()

    @property
    def _name(self) -> str:
        return self.header if self.stated == "bad" else ABNORMAL

    def tells_apart(self, values: Iterable[str]) -> bool:
        """Return whether each value states in itself, or by the header, if an image is good, and they differ."""
        stated = [
            self.defect(value) if _plain(value) in self._booleans else _word(value, self.stated)
            for value in {value for value in values if value}
        ]
        return None not in stated and GOOD in stated and len(set(stated)) > 1

    def require_meaning(self, listing: Path, values: Iterable[str]) -> None:
        """Check that the header states what 1, true and yes mean, if such values occur.

        Raises:
            DataError: it does not.
        """
        unclear = (_TRUE | _FALSE) - self._booleans
        if any(_plain(value) in unclear and _word(value, self.stated) is None for value in values):
            raise DataError(
                f"{listing}, line 1: the header {self.header} does not state whether 1 means good or anomalous; "
                "name the column good or abnormal, or write OK and NG for each image"
            )

    def note(self, listing: Path, values: Sequence[str], samples: Sequence[Sample]) -> str | None:
        """State how the values were read; None if 0 and 1 are below a header that states it."""
        if self.stated is not None and all(_plain(value) in self._booleans for value in values):
            return None
        kinds = Counter(sample.defect for sample in samples if sample.abnormal)
        ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count} {name}" for name, count in ordered[:MAX_KINDS])
        named += ", ..." if len(ordered) > MAX_KINDS else ""
        good = sum(not sample.abnormal for sample in samples)
        text = f"{listing} is read as {good} good and {kinds.total()} anomalous images{f': {named}' if named else ''}"
        is_doubtful = self.stated is None and self._booleans and kinds.total() > good
        return f"{text}; if 1 means good, name the column good" if is_doubtful else text


def _stated_meaning(header: str) -> Literal["good", "bad"] | None:
    if role(header) == "good":
        return "good"
    found = hints(header)
    if "good" in found:
        return None
    words = set(re.split(r"[\W_]+", _plain(header)))
    is_defect = "bad" in found or bool(words & _DEFECTS and not words & {"free", "no", "ohne"})
    return "bad" if is_defect else None


def _word(value: str, stated: str | None) -> str | None:
    """Return `GOOD` or the name of a defect for a word that has this meaning in itself; None for another value."""
    plain = _plain(value)
    found = role(value)
    if found == "good" or (stated == "bad" and plain in _NOTHING) or (stated != "bad" and plain in _GOOD_SIGNS):
        return GOOD
    is_bad = (found == "bad" and plain not in _UNCLEAR) or (stated != "bad" and plain in _BAD_SIGNS)
    return value if is_bad else None


def _plain(value: str) -> str:
    return unicodedata.normalize("NFKC", value).strip().casefold()

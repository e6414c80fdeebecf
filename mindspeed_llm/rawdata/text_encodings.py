"""Recognise the encoding of text that is not UTF-8, for error messages. Nothing is ever read in a guessed encoding."""

from __future__ import annotations

import codecs
import re

MIN_BROKEN = 8  # bytes that are not UTF-8; fewer may be damage of any kind
# Share of the characters beyond ASCII that must be usual ones, so that an encoding fits.
USUAL_SHARE = 0.9
BROKEN = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as decoded with surrogateescape
BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
# iconv's name of an encoding → the characters that its texts usually consist of. Chinese text can also be decoded as
# EUC-KR and the reverse, but then to unusual characters.
USUAL = {
    "EUC-KR": re.compile("[\uac00-\ud7a3\u3000-\u303f]"),
    "GBK": re.compile("[\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e“”‘’…—·]"),
    "CP1252": re.compile("[À-ÖØ-öø-ÿŒœŠšŽžŸ“”‘’‚„–—…•€«»°§©®´·¿¡\xa0]"),
}


def fitting_encoding(text: bytes) -> str | None:
    """Return iconv's name of the encoding that text fits which is not UTF-8; None if none fits, or if it is UTF-8.

    Args:
        text: the beginning of a file; it may end inside a character.
    """
    decoded = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(text)
    broken = len(BROKEN.findall(decoded))
    # Text in UTF-8 with some damaged bytes is still UTF-8.
    if broken < MIN_BROKEN or broken <= sum(map(len, BEYOND_ASCII.findall(decoded))) - broken:
        return None
    return next((name for name, usual in USUAL.items() if _fits(text, name, usual)), None)


def _fits(text: bytes, encoding: str, usual: re.Pattern[str]) -> bool:
    runs = BEYOND_ASCII.findall(codecs.getincrementaldecoder(encoding)("replace").decode(text))
    found = "".join(runs)
    if encoding == "GBK":  # the hanzi that GBK adds to GB 2312 are rare
        usual_text = found.encode("gb2312", "ignore").decode("gb2312")
    # Between the letters of a western language accented ones stand alone. Longer runs are another alphabet.
    elif encoding == "CP1252" and len(found) >= 2 * len(runs):
        return False
    else:
        usual_text = found
    return len(usual.findall(usual_text)) >= USUAL_SHARE * len(found) > 0

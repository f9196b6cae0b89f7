"""When two spellings of a username count as one account.

They do if they differ only in case, form, accents and other marks, blanks, or characters that nobody sees.
"""

import re
import unicodedata
from typing import Final

__all__ = ["fold_username"]

# Characters that Unicode asks programs to show as nothing (Default_Ignorable_Code_Point, the same in 14.0 to 16.0).
# `unicodedata` does not know this property. Most of them are control, format or mark characters; the Hangul fillers are
# letters. Unicode has reserved ranges for future ones, so this table hardly ever changes; a test compares it with a
# regular expression engine that has the property.
_DEFAULT_IGNORABLE: Final = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)

# Symbols and letters that fonts draw as nothing although Unicode does not ask for it.
_BLANK: Final = (
    "\u2800"  # BRAILLE PATTERN BLANK
    "\ufffc"  # OBJECT REPLACEMENT CHARACTER
    "\U00013441"  # EGYPTIAN HIEROGLYPH FULL BLANK
    "\U00013442"  # EGYPTIAN HIEROGLYPH HALF BLANK
    "\U0001d159"  # MUSICAL SYMBOL NULL NOTEHEAD
)

_UNSEEN: Final = re.compile(f"[{_BLANK}{''.join(f'{chr(first)}-{chr(last)}' for first, last in _DEFAULT_IGNORABLE)}]")
_CONTROL_MARK_OR_SEPARATOR: Final = "CMZ"
"""First letters of general categories (Unicode, UAX 44); C includes lone surrogates, private use and unassigned."""


def fold_username(username: str) -> str:
    """Reduce a name to its letters, digits and signs, without marks, in one form and case; look-alikes stay different.

    Names that show nothing at all fold to the empty string, and so they are one account. To fold twice changes nothing:
    without marks, each character is folded by itself, whatever stands beside it.
    """
    decomposed = unicodedata.normalize("NFKD", username)
    seen = [
        each for each in _UNSEEN.sub("", decomposed) if unicodedata.category(each)[0] not in _CONTROL_MARK_OR_SEPARATOR
    ]
    # Case goes last: it would make a letter of one mark (U+0345). Some utilities compare names in upper case, where a
    # dotless i is an i.
    return "".join(seen).upper().casefold()

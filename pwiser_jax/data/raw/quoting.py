"""Checks a CSV file's quotation marks and counts its rows, independently of Polars.

Polars guesses what a misplaced quotation mark means: between two values such as
`"5" tv"` all line ends count as text, so that the rows in between vanish. Here a file
either follows RFC 4180 or is refused: a quotation mark opens a value right after a
separator or a line end, closes it right before one, and is doubled inside. The rows
counted on the way must be the rows that Polars returns. Only quotation marks and line
ends are examined, so this costs little compared to parsing.
"""

from pathlib import Path

import numpy as np

BLOCK_BYTES = 16 << 20
QUOTE, LINE_FEED, RETURN = b'"\n\r'
BAD_QUOTE = (
    "a quotation mark is not closed or stands inside a value (there it is written "
    "twice, and the value in quotation marks)"
)
BAD_RETURN = "a carriage return without a line feed"


class LayoutError(Exception):
    """The first misplaced character: its 1-based line and what is wrong there."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line, self.reason = line, reason


def count_rows(path: Path, separator: str, quoted: bool) -> int:
    """The rows of a CSV file, its header included; line ends inside quotes are text.

    Raises:
        LayoutError: a misplaced quotation mark, or a carriage return that no line feed
            follows.
    """
    opens, closes = np.zeros(256, bool), np.zeros(256, bool)
    opens[[ord(separator), LINE_FEED, QUOTE]] = True
    closes[[ord(separator), LINE_FEED, RETURN, QUOTE]] = True
    quotes = rows = start = 0
    last_opened, last = 0, LINE_FEED
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        start = file.tell()
        block = file.read(BLOCK_BYTES)
        while block:
            following = file.read(BLOCK_BYTES)
            edge = following[:1] or b"\n"
            bad: list[tuple[int, str]] = []
            marks = np.empty(0, np.int64)
            if quoted and b'"' in block:
                text = np.frombuffer(bytes([last]) + block + edge, np.uint8)
                marks = np.flatnonzero(text[1:-1] == QUOTE)
                opening, closing = marks[quotes % 2 :: 2], marks[1 - quotes % 2 :: 2]
                for at, fits in (
                    (opening, opens[text[opening]]),
                    (closing, closes[text[closing + 2]]),
                ):
                    if not fits.all():
                        bad.append((int(at[fits.argmin()]), BAD_QUOTE))
                if len(opening):
                    last_opened = start + int(opening[-1])
            if b"\r" in block and block.count(b"\r") != (block + edge).count(b"\r\n"):
                text = np.frombuffer(block + edge, np.uint8)
                at = np.flatnonzero((text[:-1] == RETURN) & (text[1:] != LINE_FEED))
                at = at[(quotes + np.searchsorted(marks, at)) % 2 == 0]
                bad += [(int(at[0]), BAD_RETURN)] if len(at) else []
            if bad:
                at, reason = min(bad)
                raise LayoutError(_line(path, start + at), reason)
            if len(marks):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == LINE_FEED)
                outside = (quotes + np.searchsorted(marks, ends)) % 2 == 0
                rows += int(np.count_nonzero(outside))
            elif quotes % 2 == 0:
                rows += block.count(b"\n")
            quotes += len(marks)
            start += len(block)
            last, block = block[-1], following
    if quotes % 2:
        raise LayoutError(_line(path, last_opened), BAD_QUOTE)
    return rows + (last != LINE_FEED)


def count_separators(path: Path, separator: str, quoted: bool) -> int:
    """Separators outside of quotes, in a CSV file that `count_rows` accepts."""
    count, inside = 0, False
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            if not quoted or (b'"' not in block and not inside):
                count += block.count(separator.encode())
                continue
            text = np.frombuffer(block, np.uint8)
            outside = np.logical_xor.accumulate(text == QUOTE) == inside
            count += int(np.count_nonzero(outside & (text == ord(separator))))
            inside = not outside[-1]
    return count


def _line(path: Path, position: int) -> int:
    """The 1-based line of a byte."""
    line = 1
    with path.open("rb") as file:
        while position > 0:
            block = file.read(min(position, BLOCK_BYTES))
            line += block.count(b"\n")
            position -= len(block)
    return line

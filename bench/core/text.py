"""Text files: UTF-8, of a limited size, without characters that no text has."""

from __future__ import annotations

from pathlib import Path

from bench.core.errors import BenchError
from bench.core.limits import PROMPT_LIST_BYTES


def read_text(path: Path | str, what: str, fix: str, limit: int, name: Path | str | None = None) -> str:
    """The text of a UTF-8 file, with line ends as newlines and without a byte-order mark.

    A file that cannot be read, has more than `limit` bytes, is not UTF-8 or holds a NUL character is a `BenchError`; a
    file that is too large is not read. `what` is the kind of file, `name` its name in messages (None: the path), and
    `fix` the end of a message.
    """
    return decode_text(read_bytes(path, what, fix, limit, name), f"{what} {shown(path if name is None else name)}")


def read_list(path: Path, what: str, fix: str) -> str:
    """The text of a list of prompts; a byte-order mark in the middle, as of files that were joined, is refused too."""
    text = read_text(path, what, fix, PROMPT_LIST_BYTES)
    if "\ufeff" in text:
        line = text.count("\n", 0, text.index("\ufeff")) + 1
        raise BenchError(f"{what} {shown(path)} holds a byte-order mark inside (line {line}): remove it.")
    return text


def read_bytes(path: Path | str, what: str, fix: str, limit: int, name: Path | str | None = None) -> bytes:
    """The content of a file of at most `limit` bytes; see `read_text`."""
    where = f"{what} {shown(path if name is None else name)}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as cause:
        raise BenchError(f"{where} cannot be read ({cause.strerror}): {fix}.") from cause
    except ValueError as cause:  # a NUL or half a surrogate pair in the name
        raise BenchError(f"{where} is not the name of a file: {fix}.") from cause
    if len(content) > limit:
        raise BenchError(f"{where} is too large: the limit is {limit:,} bytes, so make it shorter or split it.")
    return content


def decode_text(content: bytes, where: str) -> str:
    """The text of a file's content; messages start with `where`. See `read_text`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise BenchError(f"{where} is not UTF-8 text (line {line}): save it as UTF-8.") from cause
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BenchError(f"{where} holds a NUL character (line {line}): save it as UTF-8 text.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def bad_character(text: str) -> str | None:
    """The kind of character in this text that cannot be stored; None if there is none."""
    if "\0" in text:
        return "a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "half a surrogate pair"
    return None


def shown(value: object, length: int = 200) -> str:
    """A value of the user in one line of a message: unprintable characters escaped, the middle of a long one cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[: 4 * length])
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"

"""Bad input, found before any long work starts and told all at once."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["InputProblems", "one_line"]

LONGEST = 1000  # characters of a message: a value may be a megabyte


class InputProblems(ValueError):
    """What is wrong with the input: every message says what was given, what was expected and what to try.

    `messages` holds them one by one; `str()` is one text with all of them, fit for a user's screen.
    """

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages = [one_line(text) for text in messages]
        count = len(self.messages)
        head = "1 problem with the input:" if count == 1 else f"{count} problems with the input:"
        super().__init__("\n".join([head, *(f"  {number}. {text}" for number, text in enumerate(self.messages, 1))]))

    def __reduce__(self) -> tuple[type[InputProblems], tuple[list[str]]]:
        return InputProblems, (self.messages,)  # pickled between the ranks of a job


def one_line(text: object) -> str:
    """`text`, which may quote what files hold, in one line of moderate length that no terminal takes for commands."""
    whole = str(text)
    if len(whole) > LONGEST:
        whole = f"{whole[: LONGEST * 2 // 3]} ... {whole[-LONGEST // 3 :]}"
    words = " ".join(whole.split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)

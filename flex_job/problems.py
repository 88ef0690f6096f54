"""Bad input, found before any long work starts and told all at once."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["InputProblems"]


class InputProblems(ValueError):
    """What is wrong with the input: every message says what was given, what was expected and what to try.

    `messages` holds them one by one; `str()` is one text with all of them, fit for a user's screen.
    """

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages = list(messages)
        count = len(self.messages)
        head = "1 problem with the input:" if count == 1 else f"{count} problems with the input:"
        super().__init__("\n".join([head, *(f"  {number}. {text}" for number, text in enumerate(self.messages, 1))]))

    def __reduce__(self) -> tuple[type[InputProblems], tuple[list[str]]]:
        return InputProblems, (self.messages,)  # pickled between the ranks of a job

"""How a parameter is declared: one dataclass field that carries its help, unit, bounds, choices and tier.

Everything that names a parameter to a user (command line, RELION rows, docs table, error text) reads it from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

__all__ = ["AUTO", "Parameter", "as_written", "check", "parameter", "parameters_of", "parse", "settled"]

Group = TypeVar("Group")
Value = int | float | bool | str
Tier = Literal["main", "advanced"]

AUTO = "auto"
YES = frozenset({"yes", "true", "on", "1"})
NO = frozenset({"no", "false", "off", "0"})
KIND_NAMES: dict[type, str] = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}


@dataclass(frozen=True)
class Parameter:
    """One declared parameter.

    `bounds` are inclusive, None is open. `tier` main is what most users look at; RELION's ten rows come from it.
    `cryosparc` is what cryoSPARC's forms call the same quantity, empty when there is none. `file` says that the text
    names a file that has to exist. Where the data may choose, users write auto and the value is 0; `auto` is what is
    taken where they cannot.
    """

    name: str
    default: Value
    help: str
    unit: str = ""
    bounds: tuple[float | None, float | None] = (None, None)
    choices: tuple[str, ...] = ()
    tier: Tier = "advanced"
    cryosparc: str = ""
    file: bool = False
    auto: float | None = None

    @property
    def kind(self) -> type:
        """int, float, bool or str: the type of the default."""
        return type(self.default)

    def is_auto(self, value: object) -> bool:
        """Whether the data are to choose."""
        return self.auto is not None and value == 0

    @property
    def default_text(self) -> str:
        """The default as a user writes it."""
        if self.kind is bool:
            return "yes" if self.default else "no"
        return AUTO if self.is_auto(self.default) else str(self.default)

    @property
    def expected(self) -> str:
        """What a value has to be, in words: "a whole number from 1 to 16"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        low, high = self.bounds
        limits = {
            (False, False): "",
            (True, False): f" of at least {low:g}" if low is not None else "",
            (False, True): f" of at most {high:g}" if high is not None else "",
            (True, True): f" from {low:g} to {high:g}" if low is not None and high is not None else "",
        }[(low is not None, high is not None)]
        unit = f" ({self.unit})" if self.unit else ""
        return (f"{AUTO} or " if self.auto is not None else "") + KIND_NAMES[self.kind] + limits + unit

    def problem(self, value: object) -> str | None:
        """What is wrong with a typed value, with what to try; None when nothing is."""
        if isinstance(value, bool) is not (self.kind is bool) or not isinstance(value, self._accepted):
            return self._complaint(value)
        if self.choices and value not in self.choices:
            return self._complaint(value)
        if isinstance(value, (int, float)) and self.kind is not bool:
            low, high = self.bounds
            inside = math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
            if not inside and not self.is_auto(value):
                return self._complaint(value)
        return None

    @property
    def _accepted(self) -> tuple[type, ...]:
        return (int, float) if self.kind is float else (self.kind,)

    def _complaint(self, value: object) -> str:
        given = repr(value) if isinstance(value, str) else value
        default = f"{self.default!r}" if isinstance(self.default, str) else self.default_text
        return f"{self.name}: {given} was given; expected {self.expected}; the default is {default}"


def parameter(
    default: Any,
    *,
    help: str,
    unit: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
    choices: Sequence[str] = (),
    tier: Tier = "advanced",
    cryosparc: str = "",
    file: bool = False,
    auto: float | None = None,
) -> Any:
    """Declare a parameter as a field of a frozen dataclass; see `Parameter` for the arguments."""
    declaration = {
        "help": help,
        "unit": unit,
        "bounds": bounds,
        "choices": tuple(choices),
        "tier": tier,
        "cryosparc": cryosparc,
        "file": file,
        "auto": auto,
    }
    return field(default=default, metadata={"declaration": declaration})


def parameters_of(group: Any) -> tuple[Parameter, ...]:
    """The parameters that a dataclass (or an instance of it) declares, in order."""
    return tuple(
        Parameter(name=entry.name, default=cast(Value, entry.default), **entry.metadata["declaration"])
        for entry in fields(group)
        if "declaration" in entry.metadata
    )


def settled(group: Group) -> Group:
    """`group` with the usual values where the data were to choose."""
    usual = {
        declared.name: declared.kind(declared.auto)
        for declared in parameters_of(group)
        if declared.is_auto(getattr(group, declared.name))
    }
    return replace(group, **usual)  # type: ignore[type-var]


def as_written(group: Any) -> dict[str, Value]:
    """The values of `group` by name, as a user writes them: auto where the data are to choose."""
    return {
        declared.name: AUTO if declared.is_auto(getattr(group, declared.name)) else getattr(group, declared.name)
        for declared in parameters_of(group)
    }


def check(instance: Any) -> list[str]:
    """All values of `instance` that break their declaration, one line each; empty when all is well."""
    found = (declared.problem(getattr(instance, declared.name)) for declared in parameters_of(instance))
    return [problem for problem in found if problem is not None]


def parse(declared: Parameter, given: object) -> Value:
    """The typed value for what a command line or a YAML file gave.

    Text is converted, a list becomes comma-separated text where text is expected, a whole float becomes an int.
    Raises ValueError with what was given and what was expected.
    """
    is_auto = declared.auto is not None and str(given).strip().lower() == AUTO
    value = declared.kind(0) if is_auto else _convert(declared.kind, given)
    problem = declared.problem(value)
    if problem is not None:
        raise ValueError(problem)
    return value  # type: ignore[return-value]


def _convert(kind: type, given: object) -> object:
    """`given` as `kind` where that is possible without loss, else unchanged (and then a problem)."""
    if kind is str:
        if isinstance(given, (list, tuple)):
            return ",".join(str(item) for item in given)
        return str(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else given
    text = str(given).strip().lower()
    if kind is bool:
        return True if text in YES else False if text in NO else given
    if isinstance(given, bool):
        return given
    try:
        number = float(text)
    except ValueError:
        return given
    if kind is float:
        return number
    return int(number) if math.isfinite(number) and number == int(number) else given

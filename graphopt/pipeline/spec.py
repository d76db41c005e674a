"""Pass lists as text: ``fold,fuse{disable=[gelu,silu]},my-pass{threshold=0.5}``.

Grammar::

    list    = item {"," item}
    item    = (name | place ":" name) ["{" [option {"," option}] "}"]
    option  = key "=" value
    place   = FILE.py | MODULE
    value   = "[" [value {"," value}] "]" | JSON number, string, true, false, null | bare word
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.errors import SpecError, UnknownNameError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_OWN = re.compile(r"[^,{}\[\]=\s\"]+:[A-Za-z_]\w*")
_BARE = re.compile(r"[^,\[\]{}=\s\"]+")


@dataclass(frozen=True)
class PassSpec:
    """A name and its options, as written. A name with a colon is that of a pass in a file or a module."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        inner = ",".join(f"{key}={written(value)}" for key, value in self.options.items())
        return f"{self.name}{{{inner}}}"


def parse(text: str) -> tuple[PassSpec, ...]:
    """Parse a pass list.

    Raises:
        SpecError: Names the position and what was expected there.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> tuple[PassSpec, ...]:
        items: list[PassSpec] = []
        self._space()
        while self.at < len(self.text):
            items.append(self._item())
            if self.at < len(self.text):
                self._take(",")
                if self.at >= len(self.text):
                    raise self._error("a pass name after the comma")
        if not items:
            raise SpecError("the pass list is empty", hint="for no passes write O0")
        return tuple(items)

    def _item(self) -> PassSpec:
        own = _OWN.match(self.text, self.at)
        name = self._match(_OWN if own else _NAME, "a pass name")
        options: dict[str, Any] = {}
        if self._peek() == "{":
            self._take("{")
            while self._peek() != "}":
                key = self._match(_NAME, "an option name or '}'")
                self._take("=")
                if key in options:
                    raise SpecError(f"option {key!r} of pass {name!r} is given twice in {self.text!r}")
                options[key] = self._value()
                if self._peek() != "}":
                    self._take(",")
            self._take("}")
        return PassSpec(name, options)

    def _value(self) -> Any:
        if self._peek() == "[":
            self._take("[")
            values: list[Any] = []
            while self._peek() != "]":
                values.append(self._value())
                if self._peek() != "]":
                    self._take(",")
            self._take("]")
            return values
        if self._peek() == '"':
            try:
                value, length = json.JSONDecoder().raw_decode(self.text[self.at :])
            except json.JSONDecodeError as error:
                raise self._error("a string") from error
            self.at += length
            self._space()
            return value
        word = self._match(_BARE, "a value")
        try:
            return json.loads(word)
        except json.JSONDecodeError:
            return word

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise self._error(f"{character!r}")
        self.at += 1
        self._space()

    def _match(self, pattern: re.Pattern[str], wanted: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self._error(wanted)
        self.at = found.end()
        self._space()
        return found.group()

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _error(self, wanted: str) -> SpecError:
        found = repr(self._peek()) if self._peek() else "the end"
        return SpecError(
            f"cannot read the pass list {self.text!r}: expected {wanted} at position {self.at}, found {found}",
            hint="for example: --passes 'fold,fuse{disable=[gelu]}'",
        )


def written(value: Any) -> str:
    """The value of an option as a list of passes has it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(written(element) for element in value) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    return json.dumps(value)


def make_options(options_class: type[Any], given: Mapping[str, Any], owner: str) -> Any:
    """An options dataclass from written options, with each value's type checked.

    Raises:
        UnknownNameError: No such option.
        SpecError: A value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    hints = typing.get_type_hints(options_class)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in fields:
            hint = "write NAME{option=value}" if fields else "leave it out"
            raise UnknownNameError(f"option of {owner}", key, fields, hint=hint)
        values[name] = _convert(value, hints[name], f"option {key!r} of {owner}")
    return options_class(**values)


def _convert(value: Any, hint: Any, what: str) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            try:
                return _convert(value, choice, what)
            except SpecError:
                continue
        raise SpecError(f"{what} cannot be {value!r}")
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise UnknownNameError(f"value for {what}", str(value), [str(choice) for choice in arguments])
    if origin in (tuple, list, frozenset):
        elements = value if isinstance(value, list | tuple) else [value]
        inner = arguments[0] if arguments else str
        return origin(_convert(element, inner, what) for element in elements)
    if hint is Any or (hint is type(None) and value is None):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and not isinstance(value, str | list | dict):
        return str(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise SpecError(f"{what} must be of type {wanted}, not {value!r}")

"""English text that every Python brings: the docstrings of its standard library.

Read from the source files, not by importing the modules. Another version of Python has slightly different texts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
from pathlib import Path

_SKIPPED = {
    "test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "pydoc_data",
    "ensurepip",
}


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Every docstring of the standard library, once, with its paragraphs (separated by an empty line) kept."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED & set(parts) or "tests" in parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text.isascii():
                    found[text] = None
    return tuple(found)


def is_calibration(text: str) -> bool:
    """Which half of all texts a text belongs to: one fixed half is for calibration, the other for evaluation."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[0] % 2 == 0


@functools.cache
def sentences(calibration: bool) -> tuple[tuple[str, ...], ...]:
    """Sentences of one half, each as its plain words (letters, hyphens and a closing punctuation mark)."""
    word = re.compile(r"[A-Za-z]+(-[A-Za-z]+)*[.,:;?!]?")
    found: dict[tuple[str, ...], None] = {}
    for text in docstrings():
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
            words = tuple(sentence.split())
            if len(words) >= 4 and all(word.fullmatch(part) for part in words):
                found[words] = None
    # Split by sentence, not by docstring: one sentence stands in many docstrings.
    return tuple(words for words in found if is_calibration(" ".join(words)) == calibration)


@functools.cache
def summaries(calibration: bool) -> tuple[tuple[str, str], ...]:
    """Pairs of a docstring's first sentence and the prose of the rest, of one half."""
    found: dict[str, str] = {}
    for text in docstrings():
        head, separator, rest = text.partition("\n\n")
        head, rest = " ".join(head.split()), " ".join(rest.split())
        if not separator or not 6 <= len(head.split()) <= 25 or len(rest.split()) < 25:
            continue
        # Tables, doctests and lists of names are no documents to search in.
        if not _is_prose(rest, 0.93):
            continue
        found.setdefault(head, rest)
    documents: dict[str, str] = {}
    for head, rest in found.items():
        documents.setdefault(rest, head)
    return tuple((head, rest) for rest, head in documents.items() if is_calibration(head) == calibration)


@functools.cache
def passages(calibration: bool) -> tuple[str, ...]:
    """Paragraphs of prose of one half, that have no part in the pairs of :func:`summaries`."""
    pairs = {text for half in (True, False) for pair in summaries(half) for text in pair}
    found: dict[str, None] = {}
    for text in docstrings():
        for part in text.split("\n\n"):
            prose = " ".join(part.split())
            if len(prose.split()) >= 6 and _is_prose(prose, 0.85):
                found[prose] = None
    mine = [prose for prose in found if is_calibration(prose) == calibration]
    return tuple(prose for prose in mine if not any(prose in text or text in prose for text in pairs))


def _is_prose(text: str, share: float) -> bool:
    """Whether at least so much of a text is letters, spaces and plain punctuation, and it is no doctest."""
    letters = sum(char.isalpha() or char in " .,'" for char in text)
    return ">>>" not in text and letters >= share * len(text)

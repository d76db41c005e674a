"""Children that are asked and answer in lines of JSON."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt.processes import Child, SilentError, last_words, run_once

ECHO = """
import json, os, sys, time
from graphopt.processes import answers
answer_to = answers()
print("a library says something")
os.write(1, b"and so does native code")
for line in sys.stdin:
    request = json.loads(line)
    if "sleep" in request:
        time.sleep(request["sleep"])
    if "half" in request:
        answer_to.write('{"half": ')
        answer_to.flush()
        os._exit(3)
    print(json.dumps({"got": request}), file=answer_to, flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "echoes.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    made = Child("echoes")
    yield made
    made.close()
    assert not made.alive


def test_answers_come_in_order_and_alone(child: Child) -> None:
    requests = [{"n": n, "text": "ä\n" * n} for n in range(50)]
    for request in requests:
        child.send(request)
    assert [child.receive(30)["got"] for _ in requests] == requests


def test_one_that_takes_long_may_still_answer(child: Child) -> None:
    child.send({"n": 0})
    child.receive(30)
    child.send({"sleep": 1.0})
    with pytest.raises(SilentError, match="too long") as silent:
        child.receive(0.1)
    assert not silent.value.ended and child.alive
    assert child.receive(30) == {"got": {"sleep": 1.0}}


def test_one_that_ends_in_the_middle_of_a_line(child: Child) -> None:
    child.send({"half": True})
    for _ in range(2):
        with pytest.raises(SilentError, match="it ended") as silent:
            child.receive(30)
        assert silent.value.ended
    assert child.wait() == 3
    child.send({"n": 0})  # Gone: nothing happens


def test_one_that_is_killed(child: Child) -> None:
    child.send({"sleep": 60})
    child.signal(signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(SilentError) as silent:
        child.receive(30)
    assert silent.value.ended and time.monotonic() - started < 20
    assert last_words(child.wait(), "words") == "it crashed (SIGKILL)"


def test_one_that_is_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "once.py").write_text(
        "import json, os, sys, time\n"
        "request = json.load(sys.stdin)\n"
        "time.sleep(request['sleep'])\n"
        "print(request['text'], sys.argv[1:], os.environ['COLOUR'])\n"
        "sys.exit('for a reason')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    environment = {"COLOUR": "blue"}
    request = {"sleep": 0, "text": "ä"}
    ended = run_once("once", "a", "b", request=request, seconds=60, environment=environment)
    assert (ended.code, ended.output, ended.last_words) == (1, "ä ['a', 'b'] blue\n", "for a reason")
    started = time.monotonic()
    with pytest.raises(SilentError, match="too long"):
        run_once("once", request={"sleep": 60}, seconds=0.5)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (1, "Traceback\n  line\nValueError: x\n\n", "ValueError: x"),
        (7, " \n", "exit code 7"),
        (-11, "text", "it crashed (SIGSEGV)"),
        (-4000, "text", "text"),
    ],
)
def test_last_words(code: int, errors: str, expected: str) -> None:
    assert last_words(code, errors) == expected

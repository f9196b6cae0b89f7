"""The client's types say what its source says. A TypeScript compiler would need Node; names are compared instead."""

import json
import re
from importlib import resources

_WEB = resources.files("service") / "web"
_SOURCE = (_WEB / "client.js").read_text("utf-8")
_TYPES = (_WEB / "omniconnect.d.ts").read_text("utf-8")
_OPTION = re.compile(r"^  (\w+)\?: ", re.MULTILINE)


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def test_every_sentence_can_be_replaced_and_no_other() -> None:
    sentences = re.findall(r"^  (\w+): ", _between(_SOURCE, "const STRINGS = {\n", "\n};"), re.MULTILINE)
    assert re.findall(r'"(\w+)"', _between(_TYPES, "type StringKey =", ";")) == sentences


def test_every_sentence_is_used() -> None:
    code = _SOURCE.partition("\n};\n\nconst STYLE")[2]
    for sentence in re.findall(r'"(\w+)"', _between(_TYPES, "type StringKey =", ";")):
        assert re.search(rf'["\'(. ]{sentence.removesuffix("One")}\b', code), sentence


def test_every_option_is_declared_and_read() -> None:
    declared = {*_OPTION.findall(_between(_TYPES, "interface Common {", "\n}")), "clientId", "token"}
    read = set(re.findall(r"\boptions\??\.(\w+)", _SOURCE))
    [taken] = re.findall(r"const \{ (.*) \} = options;", _SOURCE)
    # What is read of a request's own options is none of the host's; a secret is read to warn of it.
    assert (read | set(taken.split(", "))) - {"signal", "secret"} == declared
    documented = _between(_SOURCE, "@param {{", "}} options")
    assert set(re.findall(r"(\w+)\?: ", documented)) == declared


def test_the_outcomes_are_declared_word_for_word() -> None:
    settled = re.findall(r'message: (".*?"), status: (".*?")', _between(_SOURCE, "const SETTLED", "};"))
    declared = re.findall(r'status: (".*?"); message: (".*?")', _between(_TYPES, "type Rejected", "\n\n"))
    assert len(settled) == 3
    assert sorted((json.loads(status), json.loads(message)) for message, status in settled) == sorted(
        (json.loads(status), json.loads(message)) for status, message in declared
    )


def test_the_public_methods_are_declared() -> None:
    body = _between(_SOURCE, "\nclass Omniconnect {", "\n}\n")
    methods = re.findall(r"^  (?:async )?(\w+)\(.*\) \{$", body, re.MULTILINE)
    declared = re.findall(r"^  (\w+)\(", _between(_TYPES, "export class Omniconnect {", "\n}"), re.MULTILINE)
    assert methods == declared == ["constructor", "open", "close"]

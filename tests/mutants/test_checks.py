"""The list of checks keeps up with the code that it removes them from."""

from pathlib import Path

import pytest

from tests.mutants.checks import CHECKS, Check

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.what)
def test_each_check_stands_once_and_its_tests_exist(check: Check) -> None:
    for path, code, _ in ((check.path, check.code, check.without), *filter(None, [check.second])):
        assert (_ROOT / path).read_text(encoding="utf-8").count(code) == 1
    for test in check.tests:
        path, _, name = test.partition("::")
        text = (_ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text

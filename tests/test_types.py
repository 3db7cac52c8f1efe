"""Whoever uses the package has types for all that is public, as a type checker that knows only the package sees it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.long
def test_everything_public_has_a_known_type():
    command = [sys.executable, "-m", "pyright", "--verifytypes", "flatstore", "--ignoreexternal", "--outputjson"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in told["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert not unknown
    assert told["completenessScore"] == 1 and told["exportedSymbolCounts"]["withKnownType"] > 1000

"""Node, which may be of another version, or broken."""

import pytest

from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.export.web import javascript
from rllib_kd.export.web.javascript import PageStudent
from tests.conftest import states
from tests.export.web.test_web import network, page_of


def test_what_ends_node_is_shown(tmp_path, monkeypatch):
    program = tmp_path / "node"
    program.write_text("#!/bin/sh\necho 'SyntaxError: of an old version' >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(javascript, "node", lambda: str(program))
    with PageStudent(page_of(network())) as found:
        found._process.wait()
        with pytest.raises(ProgramFailedError, match="node failed: SyntaxError: of an old version"):
            found(states(1))

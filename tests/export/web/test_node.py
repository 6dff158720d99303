"""Node, which may be of another version, or broken."""

import subprocess

import numpy as np
import pytest
import torch

from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.export.loading_code import loading_code
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


@pytest.mark.skipif(javascript.node() is None, reason="there is no node")
def test_node_without_atob_runs_the_page_and_the_code_of_its_card(tmp_path, monkeypatch):
    before_16 = "delete globalThis.atob;"
    monkeypatch.setattr(javascript, "_DRIVER", before_16 + javascript._DRIVER)
    student, obs = network(), states(3)
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    (tmp_path / "page.html").write_text(page_of(student), encoding="utf-8")
    with PageStudent((tmp_path / "page.html").read_text(encoding="utf-8")) as found:
        np.testing.assert_allclose(found(obs), expected, atol=1e-5)
    ((_, code),) = loading_code(str(tmp_path / "page.html"), "web", (4,), num_masked=None, state={})
    command = [javascript.node(), "-e", before_16 + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.stdout.count("[") == 1, done.stderr

"""`rllib serve`: refused before Ray starts, and once for real."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from rllib_kd.cli.main import main
from rllib_kd.export.serve import deployment
from tests.conftest import make_q_module

HAS_SERVE = pytest.mark.skipif(
    any(deployment.find_spec(package) is None for package in ("fastapi", "uvicorn", "grpc", "aiohttp")),
    reason="needs the extra serve",
)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", *arguments])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_the_extra_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(deployment, "find_spec", lambda package: None if package == "fastapi" else object())
    line = refused(capsys, "cartpole")
    assert "needs Ray Serve" in line
    assert "pip install 'rllib-kd[serve]'" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cartpole", "--port", "0"], "--port must be from 1 to 65535, got 0"),
        (["cartpole", "--port", "65536"], "--port must be"),
        (["cartpole", "--replicas", "0"], "--replicas must be at least 1"),
        (["cartpole", "--host", ""], "empty"),
        (["cartpole", "--host", "256.1.1.1"], "Nothing can listen on '256.1.1.1', port 8000"),
        (["no-such-checkpoint"], "no-such-checkpoint"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(deployment, "find_spec", lambda package: object())
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    assert message in refused(capsys, *arguments)


def test_a_port_that_is_taken_is_named(capsys, monkeypatch):
    monkeypatch.setattr(deployment, "find_spec", lambda package: object())
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Nothing can listen on '127.0.0.1', port {port}" in refused(capsys, "cartpole", "--port", str(port))


def test_help_imports_neither_ray_nor_fastapi():
    code = (
        "import sys\nfrom rllib_kd.cli.main import main\ntry:\n    main(['serve', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print({'ray', 'fastapi', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done


def post(url: str, body: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@HAS_SERVE
@pytest.mark.slow
def test_a_checkpoint_is_served_until_ctrl_c(tmp_path):
    checkpoint = make_q_module().save_to_path(str(tmp_path / "student"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rllib_kd", "serve", checkpoint, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            line = server.stdout.readline()
            (url,) = re.findall(r"http://127.0.0.1:\d+", line)
            good, bad = b'{"observations": [[0, 0, 0.1, 0]]}', b'{"observations": [[NaN]]}'
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda body: post(f"{url}/act", body), [good, bad] * 50))
            assert [status for status, _ in answers] == [200, 422] * 50
            assert len({json.dumps(answer["actions"]) for _, answer in answers[::2]}) == 1
            with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
                assert json.load(answer) == {"status": "ok"}
            server.send_signal(signal.SIGINT)
            _, error = server.communicate(timeout=120)
        finally:
            server.kill()
    assert server.returncode == 0
    assert error == ""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("host", ["no\0host", "a" * 5000, "\udcff", "no\nhost", "a..b"])
def test_a_host_that_is_none(capsys, monkeypatch, host):
    monkeypatch.setattr(deployment, "find_spec", lambda package: object())
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    assert "Nothing can listen on" in refused(capsys, "cartpole", "--host", host)

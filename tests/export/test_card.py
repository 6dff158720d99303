"""README.md beside an exported file: true, harmless, and never in place of somebody's own."""

import json
import math
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rllib_kd.cli.main import main
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.artifact import FORMATS, DeploymentCost
from rllib_kd.export.card import Card
from rllib_kd.export.card_files import write_card
from rllib_kd.export.certificate_card import write_certificate_card
from rllib_kd.export.deployment import Deployment, deploy
from rllib_kd.export.export import Exported, export, format_of_ending
from rllib_kd.export.formats import observation_parts
from rllib_kd.export.loading_code import loading_code
from rllib_kd.export.markdown import code, code_block
from rllib_kd.export.origin import Origin, origin_of
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline
from rllib_kd.observations.spaces import input_space
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, states
from tests.export.students import ROOT, linear_student, network
from tests.formats import actor_critic_weights, mlp, sb3_zip
from tests.networks.trees.trees import tree_module

STUDENT = ROOT / "tests" / "checkpoints" / "rllib_kd-0.2" / "student"
HOSTILE = "`` --> <script>alert(1)</script> | ](http://x) \n# title \u202e ```"


def run(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert not exit_.value.code


# --- Names from outside -----------------------------------------------------------------------------------------------


def code_spans(line):
    """As CommonMark reads them: the text between two runs of equally many backticks."""
    return [match[2] for match in re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", line)]


@given(st.text(alphabet="`ab <>&|\n\\", max_size=12))
def test_a_code_span_has_all_of_the_text(text):
    span = code(text)
    assert "\n" not in span
    (inside,) = code_spans(span)
    assert inside.strip(" ") == " ".join(text.split())


@given(st.text(alphabet="`a\n ", max_size=12))
def test_no_line_ends_a_code_block(text):
    first, *lines, last = code_block("bash", text).split("\n")
    fence = first.removesuffix("bash")
    assert last == fence
    assert not any(line.strip().startswith(fence) for line in lines)


# --- Where it is written ----------------------------------------------------------------------------------------------


def test_each_file_has_a_part_of_its_own(tmp_path):
    names = ("a.onnx", "b.h", "--> <script>.onnx")
    for name in names:
        (tmp_path / name).touch()
        assert write_card(tmp_path / name, f"about {name.strip('<>- ')}\n") == tmp_path / "README.md"
    write_card(tmp_path / "a.onnx", "about a once more")
    text = (tmp_path / "README.md").read_text()
    assert re.sub("<!-- rllib_kd model card [0-9a-f]{16} -->\n", "* ", text) == (
        "* about a once more\n\n* about b.h\n\n* about script>.onnx\n"
    )


def test_exports_that_end_at_the_same_time_keep_each_others_parts(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_card(tmp_path / f"{number}.onnx", f"about {number}"), range(24)))
    text = (tmp_path / "README.md").read_text()
    assert sorted(re.findall(r"about (\d+)", text), key=int) == list(map(str, range(24)))
    assert os.listdir(tmp_path) == ["README.md"]


@pytest.mark.parametrize("content", ["# My project\n", "", b"\xff\xfe", "text, then\n<!-- rllib_kd model card 0 -->"])
def test_a_readme_of_others_stays(content, tmp_path):
    readme, file = tmp_path / "README.md", tmp_path / "student.onnx"
    file.touch()
    readme.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = readme.read_bytes()
    assert write_card(file, "a card") == tmp_path / "student.onnx.md"
    assert readme.read_bytes() == before
    (tmp_path / "student.onnx.md").write_text("my notes")
    assert write_card(file, "a card") is None
    assert (tmp_path / "student.onnx.md").read_text() == "my notes"


def test_a_link_or_a_folder_named_readme_stays(tmp_path):
    file = tmp_path / "student.onnx"
    file.touch()
    (tmp_path / "README.md").symlink_to(tmp_path / "elsewhere")
    assert write_card(file, "a card") == tmp_path / "student.onnx.md"
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert write_card(file, "another card") == tmp_path / "student.onnx.md"


# --- What it states ---------------------------------------------------------------------------------------------------


def test_the_command_writes_a_card(tmp_path, capsys):
    out = tmp_path / "student.safetensors"
    run("export", STUDENT, "--out", out, "--episodes", "2", "--teacher", "cartpole")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    for fact in (
        "# `student.safetensors`",
        "Environment: `CartPole-v1`",
        "Teacher: `cartpole`",
        f"Checkpoint: `{STUDENT}`",
        "Algorithm: `DistillDQN`",
        "loss kl",
        "95 % CI of 2 episodes",
        "Return of the teacher, same episodes: 500.0 ± 0.0",
        "Agreement with PyTorch: 100.00 %",
        "Parameters: 30 (the teacher: 67,",
        f"`student.safetensors`: {out.stat().st_size:,}",
        "load('student.safetensors')",
    ):
        assert fact in text
    assert "Trained by" not in text  # nothing records it


def test_figures_of_a_teacher_that_cannot_be_exported_are_left_out(tmp_path, capsys):
    teacher = sb3_zip(tmp_path / "ppo.zip", actor_critic_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    run("export", STUDENT, "--out", tmp_path / "student.safetensors", "--episodes", "1", "--teacher", teacher)
    printed = capsys.readouterr()
    assert "The teacher's figures are left out" in printed.err
    assert "ppo.zip' is an actor-critic" in printed.err
    assert "return in PyTorch" in printed.out
    text = (tmp_path / "README.md").read_text()
    assert f"Teacher: `{teacher}`" in text
    assert "Parameters: 30\n" in text
    assert "of the teacher" not in text


def test_all_parts_of_an_observation_are_described(tmp_path):
    space = gym.spaces.Dict({f"```  `</pre> joint {i}": gym.spaces.Box(-1, 1, (2,)) for i in range(100)})
    student = Teacher(network(input_space(space)).module, pipeline=ObservationPipeline(space, (Flatten(space),)))
    (tmp_path / "s.safetensors").touch()
    exported = Exported(str(tmp_path / "s.safetensors"), "safetensors", False, 3, 0.0, 1e-4, 1.0)
    deployment = Deployment("s", exported, None, math.nan, math.nan, math.nan, "nowhere", student)
    card = str(Card(deployment, Origin(), 0))
    (described,) = re.findall(r"(?ms)^(?:`{4,})json\n(.*?)\n`{4,}$", card)
    assert json.loads(described) == observation_parts(student)


def test_torchscript_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rllib_kd.export.deployment.deployment_cost", lambda path: DeploymentCost(1, 1, 1.0))
    for name, warned in (("s.pt", True), ("s.pt2", False)):
        caplog.clear()
        format = format_of_ending(name)
        deploy(linear_student(), tmp_path / name, "CartPole-v1", format=format, num_episodes=1)
        assert ("deprecated TorchScript" in caplog.text) == warned


def test_an_origin_has_the_command_of_the_certificate_beside_it(tmp_path):
    shutil.copytree(STUDENT, tmp_path / "student")
    source = open_source(tmp_path / "student")
    assert origin_of(source).settings == {
        "loss": "kl", "rollout_policy": "mixture", "kd_coeff": 1.0, "td_coeff": 0.0, "lr": 0.003, "seed": 0
    }  # fmt: skip
    certificate = {"checkpoint": "student", "command": f"rllib shrink {HOSTILE}", "verdict": "Certified."}
    for content, command in (
        (certificate, certificate["command"]),
        (certificate | {"checkpoint": "other"}, None),
        (certificate | {"command": ["no", "text"]}, None),
        ([certificate], None),
    ):
        (tmp_path / "certificate.json").write_text(json.dumps(content))
        assert origin_of(source).command == command
    (tmp_path / "certificate.json").write_text("{")
    assert origin_of(source) == Origin(str(tmp_path / "student"), "DistillDQN", origin_of(source).settings, None, None)
    assert origin_of(open_source(network())) == Origin()


@pytest.mark.parametrize(
    ("int8", "played_in", "limits"),
    [
        (False, 'Lake {"depth": 2, "size": 4}', []),
        (
            True,
            'Lake {"depth": 2, "size": 4}',
            ["This file rounds weights or activations of the student to integers, and is not certified."],
        ),
        (
            False,
            'Lake {"depth": 2, "size": 8}',
            ['about another environment or config: `Lake {"depth": 2, "size": 4}`'],
        ),
    ],
)
def test_what_a_certificate_is_not_about(int8, played_in, limits, tmp_path):
    env_config = {"size": 4, "depth": 2}
    content = {"checkpoint": "student", "verdict": "Certified.", "env": "Lake", "env_config": env_config}
    (tmp_path / "certificate.json").write_text(json.dumps(content))
    shutil.copytree(STUDENT, tmp_path / "student")
    (tmp_path / "s.onnx").touch()
    exported = Exported(str(tmp_path / "s.onnx"), "onnx", int8, 3, 0.0, 1e-4, 1.0)
    deployment = Deployment("s", exported, None, 1.0, 1.0, 0.0, played_in, network())
    card = str(Card(deployment, origin_of(open_source(tmp_path / "student")), 1))
    assert "Certificate beside the checkpoint: `Certified.`" in card
    for limit in ("is not certified", "about another environment or config"):
        assert (limit in card) == any(limit in each for each in limits)
    assert all(each in card for each in limits)


def test_certificates_of_environments_of_envpool_are_of_gymnasiums_own(tmp_path):
    shutil.copytree(STUDENT, tmp_path / "student")
    for in_pool, name in ((False, "LunarLander-v3"), (True, "envpool/LunarLander-v3")):
        content = {"checkpoint": "student", "env": "envpool/LunarLander-v3", "certify_in_pool": in_pool}
        (tmp_path / "certificate.json").write_text(json.dumps(content))
        assert origin_of(open_source(tmp_path / "student")).certified_in == name


def test_names_from_outside_stay_in_code(tmp_path):
    content = {"env": HOSTILE, "env_config": {HOSTILE: HOSTILE}, "teacher": HOSTILE, "verdict": HOSTILE}
    write_certificate_card(tmp_path, content | {"command": HOSTILE, "checkpoint": HOSTILE})
    text = (tmp_path / "README.md").read_text()
    outside = re.sub(r"(?ms)^(````+)\w*\n.*?^\1$", "", text)  # without blocks, whose fences have at least four here
    outside = "\n".join(re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", line) for line in outside.splitlines())
    assert "script" not in outside
    assert "title" not in outside
    assert text.count("<!--") == 1
    assert "\u202e" not in text
    compile(re.findall(r"python\n(.*?)\n````", text, re.DOTALL)[0], "lines", "exec")


# --- The lines that load ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    endings = {"c": ".h", "torchscript": ".pt"}
    export(Teacher(tree_module(4)), folder / "tree.py", format="python", obs=states(3)[:, :3])
    for name in set(FORMATS) - {"python"}:
        export(network(), folder / f"student{endings.get(name, f'.{name}')}", format=name, obs=states(3))
    return folder


@pytest.mark.parametrize("file", ["student.h", "student.onnx", "student.pt2", "student.safetensors", "student.pt"])
def test_the_lines_run_as_written(file, folder, monkeypatch, tmp_path):
    format = {"h": "c", "pt": "torchscript"}.get(file.split(".")[1], file.split(".")[1])
    expected = network().q_values(torch.zeros(1, 4)).numpy()
    monkeypatch.chdir(folder)
    languages = []
    for language, text in loading_code(folder / file, format, (4,)):
        languages.append(language)
        if language == "python":
            names: dict = {}
            exec(compile(text, file, "exec"), names)
            assert names["q_values"].shape == (1, 3)
            assert abs(expected - np.asarray(names["q_values"])).max() < 1e-5
            assert int(names["action"]) == expected.argmax()
        elif language == "bash":
            done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, cwd=folder)
            action, *q_values = done.stdout.split()
            assert int(action) == expected.argmax()
            assert [float(value) for value in q_values] == pytest.approx(expected[0].tolist(), abs=1e-5)
        else:
            (tmp_path / "own.c").write_text(text + "\nint main(void) { return choose(); }\n")
            words = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I.", "-o", str(tmp_path / "own")]
            subprocess.run([*words, "-Wno-unused-function", str(tmp_path / "own.c"), "-lm"], check=True)
            assert subprocess.run([str(tmp_path / "own")]).returncode == expected.argmax()
        assert len(text.splitlines()) <= 8
    assert languages == (["c", "bash", "python"] if format == "c" else ["python"])


def test_the_lines_of_a_tree_in_python_run_as_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    ((language, text),) = loading_code(folder / "tree.py", "python", (3,))
    names: dict = {}
    exec(compile(text, "tree.py", "exec"), names)
    expected = Teacher(tree_module(4)).q_values(torch.zeros(1, 3))[0]
    assert language == "python"
    assert list(names["q_values"]) == expected.tolist()
    assert names["action"] == int(expected.argmax())


@pytest.mark.parametrize("name", FORMATS)
def test_the_lines_of_a_file_with_masks_give_it_one(name, monkeypatch, tmp_path):
    student = Teacher(tree_module(4)) if name == "python" else network()
    obs = states(3)[:, : student.observation_space.shape[0]]
    path = tmp_path / {"c": "s.h", "torchscript": "s.pt"}.get(name, f"s.{name}")
    exported = export(student, path, format=name, obs=obs, action_masks=np.eye(3))
    assert exported.takes_mask
    monkeypatch.chdir(tmp_path)
    for language, text in loading_code(str(path), name, obs.shape[1:], num_masked=3):
        if language == "python":
            names: dict = {}
            exec(compile(text, name, "exec"), names)
            assert 0 <= int(names["action"]) < 3
            assert name == "python" or "ones(" in text
        elif language == "c":
            (tmp_path / "own.c").write_text(text + "\nint main(void) { return choose(); }\n")
            words = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I.", "-o", "own"]
            subprocess.run([*words, "-Wno-unused-function", "own.c", "-lm"], check=True)
            assert subprocess.run(["./own"]).returncode == 0  # the first action, which alone is legal


def test_the_lines_of_a_certificate_run(tmp_path, monkeypatch):
    shutil.copytree(STUDENT, tmp_path / "student")
    content = {"env": "CartPole-v1", "teacher": "cartpole", "verdict": "Certified.", "checkpoint": "student"}
    card = write_certificate_card(tmp_path, content)
    assert card == tmp_path / "README.md"
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(lines, "lines", "exec"), names)
    assert names["action"] in (0, 1)

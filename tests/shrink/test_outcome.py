"""What is printed and written."""

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import load_teacher
from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.shrink.outcome import Shrunk, ShrunkStudent, why_not
from rllib_kd.shrink.pictures import Strip, strip_of
from rllib_kd.shrink.report import write, write_page


def played(ratio, episodes=400):
    test = RatioTest(0.97, 0.025, seen=[0.0, 500.0], max_episodes=5_000)
    returns = {"student": [500.0 * ratio] * episodes, "teacher": [500.0] * episodes, "random": [0.0] * episodes}
    test.update(**returns)
    return {"certificate": test.certificate(), "returns": returns}


def student(name, size, ratio, **test):
    config = {"fcnet_hiddens": [size]}
    return ShrunkStudent(name, f"{name} label", size, config, 4_000, ratio, {0: 500.0, 7: 499.0}, **test)


def shrunk(*students, reason="", folder="/tmp/results"):
    facts = {"command": "rllib shrink", "seed": 0, "seeds": {"training": 0}, "versions": {"ray": "2"}}
    return Shrunk(
        env="CartPole-v1",
        env_config={"x": 1},
        teacher="cartpole",
        teacher_parameters=67_843,
        teacher_return=500.0,
        random_return=20.0,
        keep=0.97,
        confidence=0.95,
        students=list(students),
        copies=[(one.name, value) for one in students for value in (0.4, -9.0, 1.0)],
        reason=reason,
        folder=folder,
        facts=facts,
    )


def test_a_result_can_be_pickled():
    result = shrunk(reason="There was no time.")
    assert pickle.loads(pickle.dumps(result)) == result


FOUND = shrunk(student("a", 10, 0.5), student("b", 16, 0.98, **played(0.5)), student("c", 30, 1.0, **played(1.0)))
NOT_FOUND = shrunk(student("a", 10, 0.5), student("b", 16, 0.98, **played(0.5)), reason="Why.")


def test_a_certificate_in_envpool_says_so(tmp_path):
    in_pool = replace(FOUND, facts=FOUND.facts | {"certify_in_pool": True})
    where = "fresh episodes of envpool's environment is 1.000"
    assert where in in_pool.verdict
    assert where not in FOUND.verdict
    pages = {}
    for name, result in (("pool", in_pool), ("gymnasium", FOUND)):
        (tmp_path / name).mkdir()
        write(result, tmp_path / name)
        pages[name] = (tmp_path / name / "shrink.html").read_text()
    assert "say nothing of gymnasium" in pages["pool"]
    assert "say nothing of gymnasium" not in pages["gymnasium"]


def test_a_student_that_is_larger_than_its_teacher():
    text = " ".join(str(shrunk(student("d", 210_000, 1.0, **played(1.0)))).split())
    assert "with 210,000 parameters (310 % of the teacher's)" in text


def test_one_screen():
    lines = str(FOUND).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    text = " ".join(str(FOUND).split())
    assert "Certified: the c label student, with 30 parameters (0.044 % of the teacher's)" in text
    assert "certified: 1.000 in" in text
    assert "given up: 0.500 in" in text
    assert "not tested" in text
    assert "\n/tmp/results/student\nrllib export /tmp/results/student --out /tmp/results/student.onnx\n" in str(FOUND)


def test_larger_ones_than_the_certified_one_were_not_needed():
    result = replace(FOUND, students=[*FOUND.students, student("d", 58, 0.1)])
    rows = {line.split()[1]: line for line in str(result).splitlines() if "label" in line and "│" in line}
    assert "not tested" in rows["a"]
    assert "not needed" in rows["d"]


def test_without_a_certificate_the_best_one_is_named_but_not_as_certified():
    assert NOT_FOUND.certified is None
    assert NOT_FOUND.best.name == "b"
    assert NOT_FOUND.checkpoint == "/tmp/results/uncertified"
    assert "Not certified. Why." in str(NOT_FOUND)
    assert "rllib export" not in str(NOT_FOUND)
    assert shrunk(reason="Why.").checkpoint is None


def test_json_has_everything(tmp_path):
    write(replace(FOUND, folder=str(tmp_path)), tmp_path)
    read = json.loads((tmp_path / "certificate.json").read_text(), parse_constant=pytest.fail)
    assert (read["format"], read["certified"], read["checkpoint"]) == (1, "c", "student")
    assert [one["name"] for one in read["candidates"]] == ["a", "b", "c"]
    last = read["candidates"][-1]
    assert last["validation_returns"] == {"0": 500.0, "7": 499.0}
    assert last["certificate"] == FOUND.students[-1].certificate.as_dict()
    assert last["certificate_returns"]["teacher"] == [500.0] * 400
    assert read["seeds"]
    assert read["versions"]
    assert read["command"]
    card = (tmp_path / "README.md").read_text()
    assert read["verdict"] in " ".join(card.split())
    assert read["command"] in card
    assert "load_teacher('student')" in card


def test_numbers_that_json_lacks_are_none():
    odd = student("a", 10, math.nan)
    assert shrunk(odd, reason="Why.").to_dict()["candidates"][0]["validation_ratio"] is None


def test_widths_of_numpy_are_written_as_numbers(tmp_path):
    write(replace(shrunk(student("a", np.int64(10), 0.5), reason="Why."), folder=str(tmp_path)), tmp_path)
    (one,) = json.loads((tmp_path / "certificate.json").read_text())["candidates"]
    assert one["model_config"] == {"fcnet_hiddens": [10]}


def test_the_page_requests_nothing_and_says_what_it_means(tmp_path):
    for result in (NOT_FOUND, shrunk(reason="Why."), FOUND):
        write(replace(result, folder=str(tmp_path)), tmp_path)
        text = Path(tmp_path / "shrink.html").read_text()
        assert not re.search(r"(src|href)=\"(?!#|data:)", text)
        assert "http" not in text.replace("http-equiv", "")
        assert result.verdict.split(":")[0] in text
    assert text.count("<svg") == 2
    assert "at most 5 %" in text
    assert "no return is outside of" in text


def test_the_page_shows_an_episode_or_says_why_not(tmp_path):
    strip = Strip(7, 500.0, [(0, "data:image/png;base64,AA"), (250, "data:image/png;base64,AB")], "")
    write_page(FOUND, tmp_path, strip)
    text = (tmp_path / "shrink.html").read_text()
    assert "The c label student in the episode with seed 7: return 500" in text
    assert text.count('<img src="data:image/png;base64,A') == 2
    write_page(FOUND, tmp_path, Strip(7, math.nan, [], "There are no pictures: <no> screen"))
    text = (tmp_path / "shrink.html").read_text()
    assert "There are no pictures: &lt;no&gt; screen" in text
    assert "<img" not in text


def test_pictures_are_spread_over_the_episode():
    strip = strip_of(load_teacher("cartpole"), PlayedEnvironment("CartPole-v1", {"max_episode_steps": 40}), 3)
    steps = [step for step, _ in strip.frames]
    assert (len(steps), steps[0], strip.episode_return) == (8, 0, 40.0)
    assert steps == sorted(set(steps))
    assert steps[-1] == 39
    assert all(src.startswith("data:image/") for _, src in strip.frames)
    for env in (Unseen, Breaks):
        assert strip_of(load_teacher("cartpole"), PlayedEnvironment(env, {}), 3).missing


class Unseen(gym.Wrapper):
    """CartPole that cannot be rendered."""

    def __init__(self, config):
        super().__init__(gym.make("CartPole-v1"))


class Breaks(gym.Wrapper):
    """CartPole whose screen breaks."""

    def __init__(self, config):
        super().__init__(gym.make("CartPole-v1", render_mode="rgb_array"))
        self.num_rendered = 0

    def render(self):
        self.num_rendered += 1
        if self.num_rendered > 3:
            raise RuntimeError("broken")
        return super().render()


def test_why_there_is_no_certificate():
    def why(*students, **more):
        return why_not(list(students), keep=0.97, more="--minutes 20", **more)

    assert "Train longer: --minutes 20" in why()
    far = why(student("a", 10, 0.5), student("b", 16, 0.7))
    assert "the best one, b label, has a return ratio of 0.700" in far
    assert "--keep" in far
    assert "b label: Given up after 400 episodes" in why(student("b", 16, 0.98, **played(0.5)))
    undecided = why(student("b", 16, 0.98, **played(0.975, episodes=50)))
    assert "Not decided" in undecided
    short = RatioTest(0.97, 0.025, seen=[0.0, 500.0], max_episodes=60)
    short.update(student=[495.0] * 50, teacher=[500.0] * 50, random=[0.0] * 50)
    last = student("b", 16, 0.98, certificate=replace(short.certificate(), reason="Given up."))  # in any words
    assert "More time may decide: --minutes 20." in why(last)
    assert "More episodes may decide (--episodes), or" in why(last, needs_episodes=True)


def costly(name, size, ratio, **test):
    costs = {"num_bytes": 4 * size, "latency_ms": 0.0123, "multiply_adds": 7 * size, "num_int8_bytes": 2 * size}
    return replace(student(name, size, ratio, **test), **costs)


def test_what_is_minimized_is_in_table_sentence_and_json(tmp_path):
    for minimize, shown, words in (
        ("bytes", "120", "and 120 bytes"),
        ("int8_bytes", "60", "and 60 bytes as integers"),
        ("multiply_adds", "210", "and 210 multiply-adds"),
        ("latency", "12.3", "and 12.3 µs per decision"),
    ):
        result = replace(shrunk(costly("a", 10, 0.5), costly("c", 30, 1.0, **played(1.0))), minimize=minimize)
        assert f"{shown} │ certified" in str(result)
        assert max(map(len, str(result).splitlines())) <= 80
        assert f"30 parameters (0.044 % of the teacher's) {words}, keeps" in result.verdict
        assert result.to_dict()["minimize"] == minimize
        if minimize not in ("int8_bytes", "latency"):
            continue
        write(replace(result, folder=str(tmp_path)), tmp_path)
        read = json.loads((tmp_path / "certificate.json").read_text())
        assert read["candidates"][1]["latency_ms"] == 0.0123
        assert read["copies"][0] == {"size": "a", "validation_ratio": 0.4}
        page = (tmp_path / "shrink.html").read_text()
        assert f"by their {minimize.replace('_', ' ')}" in page
        assert f"<td>{shown}</td>" in page


def test_a_tree_that_multiplies_nothing_is_drawn(tmp_path):
    """It stands at 0, where a logarithmic axis has no place."""
    tree, net = student("tree", 24, 1.0, multiply_adds=0, **played(1.0)), student("net", 12, 1.0, multiply_adds=8)
    for students in ((tree, net), (tree,)):
        write(replace(shrunk(*students), minimize="multiply_adds"), tmp_path)
        assert "with 24 parameters" in json.loads((tmp_path / "certificate.json").read_text())["verdict"]


def test_a_teacher_whose_parameters_are_not_known(tmp_path):
    result = replace(FOUND, teacher_parameters=math.nan, folder=str(tmp_path))
    write(result, tmp_path)
    for text in (str(result), result.verdict, (tmp_path / "shrink.html").read_text()):
        assert not re.search(r"\bnan\b", text)
    assert json.loads((tmp_path / "certificate.json").read_text())["teacher_parameters"] is None


def test_an_interrupted_run_names_no_files():
    result = replace(NOT_FOUND, is_complete=False)
    assert result.checkpoint is None
    assert "certificate.json" not in str(result)
    assert result.to_dict()["checkpoint"] is None

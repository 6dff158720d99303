"""A web page equals PyTorch and gymnasium, and shows names from outside as text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.export.export import compared
from rllib_kd.export.loading_code import loading_code
from rllib_kd.export.web import javascript
from rllib_kd.export.web.cartpole import physics_of
from rllib_kd.export.web.javascript import PageStudent
from rllib_kd.export.web.network import KNOWN, decoded, web_network
from rllib_kd.export.web.page import asset, data_of, page, student_code_of
from rllib_kd.export.web.publish import publish
from rllib_kd.export.web.recording import Recording, _Filmed, picture
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.export.students import LINEAR, MLPS, OTHERS, PIPELINES, ROOT, linear_student, network
from tests.networks.trees.trees import near_ties, tree_module
from tests.observations.masked import NUMBERS, InDict

needs_node = pytest.mark.skipif(javascript.node() is None, reason="there is no node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
HOSTILE = "</script><script>document.body.id='pwned'</script><b id=pwned>&amp; \u2028 <!--<script> DATA STUDENT ${1} `"
STUDENT = ROOT / "tests" / "checkpoints" / "rllib_kd-0.2" / "student"

TREES = {
    "leaf": tree_module(),
    "tree": tree_module(9),
    "oblique tree": tree_module(30, oblique=True),
}


def page_of(student: Teacher) -> str:
    return page("title", "lead", {"network": web_network(student)})


def students():
    yield "linear", linear_student(LINEAR["linear"])
    for name, config in (MLPS | OTHERS).items():
        if "cnn" not in name:
            yield name, network(**config)
    for name, (space, inputs, stages) in PIPELINES.items():
        yield name, Teacher(make_q_module(inputs), pipeline=ObservationPipeline(space, stages))
    for name, module in TREES.items():
        yield name, Teacher(module)


def observations(space: gym.Space) -> np.ndarray:
    if isinstance(space, gym.spaces.Box):
        return 3 * states(300, space)
    space.seed(0)
    return np.stack([space.sample() for _ in range(300)])


# --- JavaScript equals PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [pytest.param("node", marks=needs_node), "numpy"])
def test_every_network_equals_pytorch(engine, monkeypatch):
    if engine == "numpy":
        monkeypatch.setattr(javascript, "node", lambda: None)
    ops = set()
    for name, student in students():
        with PageStudent(page_of(student)) as found:
            assert found.runs_javascript == (engine == "node")
            obs = observations(student.observation_space)
            result = compared(student, found, np.asarray(obs), "s.html", format="web")
            assert result.max_difference < 2e-5, name
            assert result.agreement == 1.0, name
        ops |= set(re.findall(r'"op": "(\w+)"', json.dumps(web_network(student))))
    assert ops == KNOWN


@needs_node
@pytest.mark.parametrize("name", TREES)
def test_a_tree_takes_the_same_way_at_its_thresholds(name):
    student = Teacher(TREES[name])
    obs = near_ties(TREES[name], 2_000)
    with PageStudent(page_of(student)) as found:
        np.testing.assert_array_equal(found(obs), student.q_values(torch.from_numpy(obs)).numpy())


@pytest.mark.parametrize("engine", [pytest.param("node", marks=needs_node), "numpy"])
def test_illegal_actions_are_never_the_best(engine, monkeypatch):
    if engine == "numpy":
        monkeypatch.setattr(javascript, "node", lambda: None)
    student, obs = network(), states(60)
    masks = np.random.default_rng(1).random((60, 3)) < 0.5
    masks[:, 2] |= ~masks.any(-1)
    with PageStudent(page_of(student)) as found:
        got = found(obs, masks)
        compared(student, found, obs, "s.html", format="web", masks=masks)
    expected = student.q_values(torch.from_numpy(obs), torch.from_numpy(masks)).numpy()
    np.testing.assert_array_equal(np.isneginf(got), ~masks)
    np.testing.assert_allclose(got[masks], expected[masks], atol=1e-5)


@needs_node
def test_a_wrong_weight_is_noticed():
    student, other = network(), network()
    with torch.no_grad():
        next(other.module.parameters()).add_(1e-2)
    with (
        PageStudent(page_of(other)) as found,
        pytest.raises(ValueError, match="The web artifact differs from PyTorch by"),
    ):
        compared(student, found, states(50), "s.html", format="web")


@needs_node
def test_the_action_is_the_first_of_the_best():
    code = (
        asset("student.js")
        + """
      const { best } = makeStudent({ layers: [], arrays: {} });
      console.log(JSON.stringify([[1, 3, 3], [-1, -2], [NaN, 1], [-Infinity, -Infinity]].map(best)));"""
    )
    assert json.loads(subprocess.run(["node", "-e", code], capture_output=True, check=True).stdout) == [1, 0, -1, -1]


def test_images_and_long_observations_are_refused():
    with pytest.raises(ValueError, match=r"cannot hold the layer 'conv2d'.*onnx"):
        web_network(network(**OTHERS["cnn"]))
    with pytest.raises(ValueError, match="at most 1000 numbers, got 1001"):
        web_network(network(gym.spaces.Box(-1, 1, (1001,))))


# --- CartPole ---------------------------------------------------------------------------------------------------------


@needs_node
@pytest.mark.parametrize("integrator", ["euler", "semi-implicit"])
def test_cartpole_equals_gymnasium(integrator):
    env, rng = gym.make("CartPole-v1"), np.random.default_rng(0)
    env.unwrapped.kinematics_integrator = integrator
    teacher, runs = load_teacher("cartpole"), []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        run, ended = {"states": [env.unwrapped.state.tolist()], "actions": [], "fallen": []}, False
        while not ended:
            greedy = int(teacher.q_values(torch.as_tensor(obs)[None]).argmax())
            action = 1 - greedy if seed == 0 and rng.random() < 0.3 else greedy  # one of them falls
            obs, _, terminated, truncated, _ = env.step(action)
            run["states"].append(env.unwrapped.state.tolist())
            run["actions"].append(action)
            run["fallen"].append(terminated)
            ended = terminated or truncated
        runs.append(run)
    code = (
        asset("cartpole.js")
        + """
      const { physics, runs } = JSON.parse(require("fs").readFileSync(0));
      const far = (a, b) => Math.max(...a.map((v, i) => Math.abs(v - b[i])));
      console.log(JSON.stringify(runs.map(({ states, actions, fallen }) => {
        let free = states[0], step = 0, early = 0, fell = true;
        actions.forEach((action, i) => {
          const next = cartPoleStep(physics, states[i], action);
          step = Math.max(step, far(next, states[i + 1]));
          fell = fell && cartPoleHasFallen(physics, next) === fallen[i];
          free = cartPoleStep(physics, free, action);
          if (i < 200) early = Math.max(early, far(free, states[i + 1]));
        });
        return [step, early, fell, far(free, states.at(-1))];
      })));"""
    )
    asked = json.dumps({"physics": physics_of(env), "runs": runs})
    found = json.loads(subprocess.run(["node", "-e", code], input=asked, capture_output=True, text=True).stdout)
    assert {len(run["actions"]) >= 200 for run in runs} == {True, False}
    assert any(run["fallen"][-1] for run in runs)
    for step, run_of_200, fell, _ in found:
        assert step < 1e-12
        assert run_of_200 < 1e-6  # errors double every 9 steps, whoever computes
        assert fell


def test_only_gymnasiums_own_cartpole_is_simulated():
    env = gym.make("CartPole-v1")
    assert physics_of(env)["force_mag"] == 10.0
    assert physics_of(gym.wrappers.TransformObservation(env, lambda obs: -obs, env.observation_space)) is None
    assert physics_of(gym.make("Acrobot-v1")) is None


# --- The page ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def hostile_page() -> str:
    obs = states(3)
    episode = {"seed": 0, "return": 3.0, "obs": base64.b64encode(obs.tobytes()).decode(), "actions": [0, 1, 0]}
    episode |= {"rewards": base64.b64encode(np.ones(3, "<f4").tobytes()).decode(), "frames": []}
    data = {
        "network": web_network(network()),
        "inputs": [{"name": HOSTILE, "low": -1.0, "high": 1.0, "step": "any"}] * 4,
        "maxSliders": 32,
        "actions": [HOSTILE] * 3,
        "episodes": [episode | {"regret": None, "teacherActions": None}],
        "noFrames": HOSTILE,
        "regretUnit": HOSTILE,
        "cartpole": None,
    }
    return page(HOSTILE, HOSTILE, data)


def test_names_from_outside_are_text():
    text = hostile_page()
    elements = Elements()
    elements.feed(text)
    assert [tag for tag, _ in elements.found].count("script") == 3
    assert not any(attributes.get("id") == "pwned" for _, attributes in elements.found)
    assert data_of(text)["noFrames"] == HOSTILE
    assert text.encode().isascii() or "\u2028" not in text
    (policy,) = (a["content"] for t, a in elements.found if t == "meta" and "Content-Security" in str(a))
    scripts = re.findall(r"<script(?: id=\"student\")?>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'")
    assert not re.search(r"https?:|//[a-z]+\.|\bfetch\(|XMLHttpRequest|import\(", re.sub(r"// .*", "", text))


def dom(file: Path, tmp_path: Path) -> str:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *options, "--virtual-time-budget=500", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@needs_chromium
def test_a_browser_shows_names_from_outside_as_text(tmp_path):
    (tmp_path / "hostile.html").write_text(hostile_page(), encoding="utf-8")
    seen = dom(tmp_path / "hostile.html", tmp_path)
    elements = Elements()
    elements.feed(seen)
    assert not any(attributes.get("id") == "pwned" for _, attributes in elements.found)
    assert "The student takes &lt;/script&gt;" in seen  # the page's own scripts did run


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> Path:
    """A page of a student that falls at once, beside the packaged teacher."""
    out = tmp_path_factory.mktemp("web") / "student.html"
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(STUDENT), "--out", str(out), "--teacher", "cartpole", "--episodes", "4"])
    assert not exit_.value.code
    return out


def test_the_page_has_the_episodes_of_the_student(cartpole):
    data = data_of(cartpole.read_text(encoding="utf-8"))
    student, teacher = load_teacher(STUDENT), load_teacher("cartpole")
    assert [episode["seed"] for episode in data["episodes"]] == [1_000_000, 1_000_001, 1_000_002]
    for episode in data["episodes"]:
        obs = torch.tensor(decoded(episode["obs"]).reshape(-1, 4))
        q, ranked = student.q_values(obs), teacher.q_values(obs)
        assert episode["actions"] == q.argmax(-1).tolist()
        assert episode["return"] == decoded(episode["rewards"]).sum() == len(obs)
        regret = ranked.max(-1).values - ranked.gather(-1, q.argmax(-1, keepdim=True))[:, 0]
        assert decoded(episode["regret"]) == pytest.approx(regret.numpy(), abs=1e-4)
        assert regret.max() > 0.1
        assert episode["frames"][0]["step"] == 0
        assert all(frame["src"].startswith("data:image/") for frame in episode["frames"])
    assert data["cartpole"]["tau"] == 0.02
    assert "67,843" in cartpole.read_text()
    assert "# `student.html`" in (cartpole.parent / "README.md").read_text()


@needs_chromium
def test_a_browser_computes_the_same_q_values(cartpole, tmp_path):
    seen = dom(cartpole, tmp_path)
    data, student = data_of(cartpole.read_text(encoding="utf-8")), load_teacher(STUDENT)
    q = student.q_values(torch.tensor(decoded(data["episodes"][0]["obs"])[:4])[None])[0]
    (bars,) = re.findall(r'id="step-bars".*?<p id="regret-text"', seen, re.DOTALL)
    assert [float(number) for number in re.findall(r"<span[^>]*>(-?[\d.e-]+)</span>", bars)] == pytest.approx(
        q.tolist(), rel=1e-3
    )
    assert f"The student takes {['left', 'right'][int(q.argmax())]}." in seen
    steps = re.search(r'id="pole-text"[^>]*>(\d+) steps, (\d+) fall', seen)
    assert int(steps[1]) + int(steps[2]) > 0  # it simulates


#: A person at the page: what they do, and what they see after it.
_HANDS = """
const $ = (id) => document.getElementById(id), seen = {};
const set = (element, value) => { element.value = value; element.dispatchEvent(new Event("input")); };
$("forth").click(); seen.forth = $("step-text").textContent;
$("back").click(); $("back").click(); seen.back = $("step-text").textContent;
set($("step"), "3"); seen.dragged = $("step-text").textContent;
$("episode").value = "2"; $("episode").dispatchEvent(new Event("change")); seen.episode = $("step-text").textContent;
set($("typed"), "1, 2, three, 4"); seen.wrong = $("typed-text").textContent;
set($("typed"), "[0.1 -0.2, 0.03;0.4]"); seen.typed = [$("typed-text").textContent, $("ask-bars").innerText];
const slider = $("sliders").querySelectorAll("input")[2];
slider.min = -1; set(slider, "-0.5"); seen.slid = [$("typed").value, $("ask-bars").innerText];
seen.console = [student.act([0.1, -0.2, 0.03, 0.4]), student.qValues([0.1, -0.2, -0.5, 0.4])];
$("strength").value = "3"; $("push-right").click(); // it falls soon
setTimeout(() => { seen.pole = $("pole-text").textContent; document.body.dataset.seen = JSON.stringify(seen); }, 400);
"""


@needs_chromium
def test_a_person_can_play_step_type_drag_and_push(cartpole, tmp_path):
    text = cartpole.read_text(encoding="utf-8")
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", text)
    (tmp_path / "page.html").write_text(without_policy.replace("</body>", f"<script>{{{_HANDS}}}</script></body>"))
    (seen,) = re.findall(r'data-seen="([^"]*)"', dom(tmp_path / "page.html", tmp_path))
    seen = json.loads(unescape(seen))
    length = len(data_of(text)["episodes"][0]["actions"])
    assert seen["forth"].startswith(f"Step 1 of {length - 1}. Return so far: 1.000.")
    assert seen["back"].startswith("Step 0 of")
    assert seen["dragged"].startswith("Step 3 of")
    assert seen["episode"].startswith("Step 0 of")
    assert seen["wrong"] == "Expected 4 numbers, separated by commas."
    student = load_teacher(STUDENT)
    for name, obs in (("typed", [0.1, -0.2, 0.03, 0.4]), ("slid", [0.1, -0.2, -0.5, 0.4])):
        first, bars = seen[name]
        assert first == ("" if name == "typed" else "0.1, -0.2, -0.5, 0.4")
        q = student.q_values(torch.tensor([obs]))[0]
        shown = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", bars)]
        assert shown == pytest.approx(q.tolist(), rel=1e-3)
    assert seen["console"][0] == student.q_values(torch.tensor([[0.1, -0.2, 0.03, 0.4]])).argmax()
    assert seen["console"][1] == pytest.approx(q.tolist(), abs=1e-5)
    assert re.match(r"\d+ steps, [1-9]", seen["pole"])


@needs_node
def test_the_lines_of_the_card_run(cartpole):
    ((language, text),) = loading_code(str(cartpole), "web", (4,))
    assert language == "js"
    done = subprocess.run(["node", "-e", text], cwd=cartpole.parent, capture_output=True, text=True, check=True)
    q = load_teacher(STUDENT).q_values(torch.zeros(1, 4))[0]
    action, *values = re.findall(r"-?\d+\.?[\de-]*", done.stdout)
    assert int(action) == q.argmax()
    assert [float(value) for value in values] == pytest.approx(q.tolist(), abs=1e-5)


class Corridor(gym.Env):
    """Without pictures, of one discrete number."""

    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.at = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.at, {}

    def step(self, action):
        self.at = min(self.at + 1, 4)
        return self.at, -1.0, self.at == 4, False, {}


def test_an_environment_without_pictures(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(javascript, "node", lambda: None)
    space, inputs, stages = PIPELINES["one-hot"]
    student = Teacher(make_q_module(inputs), pipeline=ObservationPipeline(space, stages))
    done = publish(student, tmp_path / "new" / "s.html", PlayedEnvironment(Corridor, {}), num_episodes=2)
    assert np.isnan(done.return_mean)
    assert done.torch_return == -4.0
    assert "Node.js is not installed, so the page's JavaScript was not run" in caplog.text
    data = data_of((tmp_path / "new" / "s.html").read_text())
    assert data["cartpole"] is None
    assert data["noFrames"].startswith("There are no pictures: ")
    assert data["inputs"] == [{"name": "input 0", "low": 0.0, "high": 3.0, "step": "1"}]
    assert [episode["frames"] for episode in data["episodes"]] == [[], []]
    assert data["episodes"][0]["regret"] is None


class Far(Corridor):
    """Shows numbers of 64 bits that 32-bit floats cannot hold."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return np.zeros(1), {}

    def step(self, action):
        at, *others = super().step(action)
        return np.array([1e200 * at]), *others


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_observations_that_32_bits_cannot_hold_are_refused_by_name(tmp_path):
    student = Teacher(make_q_module(Far.observation_space))
    with pytest.raises(ValueError, match="too large for 32-bit floats"):
        publish(student, tmp_path / "s.html", PlayedEnvironment(Far, {}), num_episodes=1)


class Masked(gym.Wrapper):
    """A game with illegal moves that raise, which shows its masks in infos."""

    def __init__(self, config=None):
        super().__init__(InDict())
        self.observation_space = NUMBERS

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return obs["observations"], {**info, "action_mask": obs["action_mask"]}

    def step(self, action):
        obs, *rest, info = self.env.step(action)
        return obs["observations"], *rest, {**info, "action_mask": obs["action_mask"]}


@needs_node
def test_a_game_with_illegal_moves(tmp_path):
    student = Teacher(make_q_module(NUMBERS, gym.spaces.Discrete(4)))
    done = publish(student, tmp_path / "s.html", PlayedEnvironment(Masked, {}), teacher=student, num_episodes=4)
    assert done.return_mean == done.torch_return  # an illegal move would have raised
    for episode in data_of((tmp_path / "s.html").read_text())["episodes"]:
        masks = np.array(episode["masks"])
        assert masks.shape == (8, 4)
        assert masks[np.arange(8), episode["actions"]].all()
        obs = torch.tensor(decoded(episode["obs"]).reshape(8, 4))
        assert episode["actions"] == student.q_values(obs, torch.from_numpy(masks)).argmax(-1).tolist()
        assert episode["teacherActions"] == episode["actions"]
        assert not decoded(episode["regret"]).any()


@needs_chromium
@needs_node
def test_a_browser_shows_which_actions_are_legal(tmp_path):
    student = Teacher(make_q_module(NUMBERS, gym.spaces.Discrete(4)))
    publish(student, tmp_path / "s.html", PlayedEnvironment(Masked, {}), num_episodes=1)
    (episode,) = data_of((tmp_path / "s.html").read_text())["episodes"]
    seen = dom(tmp_path / "s.html", tmp_path)
    (bars,) = re.findall(r'id="step-bars".*?<p id="regret-text"', seen, re.DOTALL)
    assert bars.count(">illegal<") == episode["masks"][0].count(False) > 0
    assert re.search(r'<fieldset id="legal" class="row">', seen)


@pytest.mark.slow
def test_pictures_are_small_and_evenly_spaced():
    class Noise(Corridor):
        def step(self, action):
            return 0, 1.0, False, False, {}

        def render(self):
            return np.zeros((400, 600, 3), np.uint8)

    recording = Recording(0)
    env = _Filmed(Noise(), recording, with_frames=True)
    env.reset(seed=0)
    for _ in range(1_000):
        env.step(0)
    steps = [step for step, _ in recording.frames]
    assert steps == list(range(0, 1_001, 16))
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    assert picture(np.zeros((400, 600, 3), np.uint8)).startswith("data:image/png;base64,")
    assert picture(noise).startswith("data:image/jpeg;base64,")
    assert len(picture(noise)) < 60_000
    for other in (None, np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9, 2), np.uint8), np.zeros((9, 9), np.uint8)):
        Noise.render = lambda self, other=other: other
        without = Recording(0)
        _Filmed(Noise(), without, with_frames=True).reset(seed=0)
        assert without.frames == []


def test_settings_of_other_formats_are_refused(tmp_path, capsys):
    for flags in (["--int8"], ["--prefix", "mine"]):
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(STUDENT), "--out", str(tmp_path / "s.html"), *flags])
        assert exit_.value.code == 2
        assert "got format='web'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_a_page_is_found():
    assert "makeStudent" in student_code_of(page_of(network()))
    with pytest.raises(ValueError, match="it has no student"):
        data_of("<p>hello</p>")

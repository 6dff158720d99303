"""The same teacher and the same student's size, distilled by this package and by what else there is.

    python tests/benchmarks/alternatives.py METHOD [METHOD ...] --teacher TEACHER.zip --env ENV --rows rows.jsonl
        [--env-steps N ...] [--seeds 3]
    python tests/benchmarks/alternatives.py table --rows rows.jsonl

METHOD: `rllib_kd`, at its defaults; `plain`: a PyTorch script of 40 lines below, DAgger with a KL loss; `rsl_rl`: the
recipe of that library's Distillation, with the settings of Isaac Lab's `AnymalDFlatDistillationRunnerCfg`; `bc` and
`dagger`: behavioural cloning and SimpleDAggerTrainer of `imitation`, at their defaults. TEACHER.zip: a DQN or a PPO of
Stable-Baselines3, with two hidden layers. The last student, of one hidden layer of 32 units, plays 100 greedy episodes
of fresh seeds. Seconds are those of getting the states and learning, on one thread, without imports and Ray's start.
Each number of env steps is a run of its own, by all methods in turn. A row that is in the file is not measured again.

The table has for each method the seconds until a student is as good as its teacher: those of the least number of env
steps from which on the mean return ratio over seeds is 0.97 or more.

`imitation` 1.0.1 needs an environment of its own, without this package:

    pip install imitation==1.0.1 'numpy<2' 'pandas<3' 'scipy<1.16' 'scikit-learn<1.7' 'pyarrow<22' 'datasets<4' \\
        'setuptools<81'
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

UNITS, NUM_ENVS = 32, 16
FIRST_EPISODE_SEED, NUM_EPISODES = 3_000_000, 100
AS_GOOD = 0.97  # return ratio
#: Greedy actions `[B]` of observations `[B, ...]`.
Act = Callable[[np.ndarray], np.ndarray]

_DQN = ("q_net.q_net.0", "q_net.q_net.2", "q_net.q_net.4")
_PPO = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")


def teacher_network(path: Path) -> tuple[nn.Sequential, float]:
    """Network of a Stable-Baselines3 DQN or PPO at its defaults but for widths, and a temperature for its outputs."""
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    is_dqn = f"{_DQN[0]}.weight" in weights
    layers: list[nn.Module] = []
    for name in _DQN if is_dqn else _PPO:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU() if is_dqn else nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False), 0.01 if is_dqn else 1.0


def greedy(network: nn.Module) -> Act:
    return lambda obs: network(torch.as_tensor(obs, dtype=torch.float32)).argmax(-1).numpy()


def random_policy(env: str) -> Act:
    rng, num_actions = np.random.default_rng(0), int(gym.make(env).action_space.n)  # type: ignore[attr-defined]
    return lambda obs: rng.integers(num_actions, size=len(obs))


@torch.no_grad()
def mean_return(act: Act, env: str) -> float:
    """Of episodes whose seeds nobody was trained on."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(env)] * NUM_EPISODES)
    obs, _ = envs.reset(seed=[FIRST_EPISODE_SEED + i for i in range(NUM_EPISODES)])
    returns, running = np.zeros(NUM_EPISODES), np.ones(NUM_EPISODES, dtype=bool)
    while running.any():
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        returns += running * rewards
        running &= ~(terminated | truncated)
    return float(returns.mean())


# --- Methods: each returns the student, and the seconds that it took --------------------------------------------------


def rllib_kd(path: Path, env: str, env_steps: int, seed: int) -> tuple[Act, float]:
    import ray

    from rllib_kd import DistillDQNConfig
    from rllib_kd.evaluation.sources import open_source

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    start = time.perf_counter()
    algo = (
        DistillDQNConfig()
        .environment(env)
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
        .distillation(teacher=path, num_baseline_episodes=0)
        .debugging(seed=seed, log_level="ERROR")
        .build_algo()
    )
    while algo.num_env_steps < env_steps:
        algo.train()
    seconds = time.perf_counter() - start
    network = open_source(algo).network()
    return lambda obs: network.q_values(torch.as_tensor(obs, dtype=torch.float32)).argmax(-1).numpy(), seconds


def plain(path: Path, env: str, env_steps: int, seed: int) -> tuple[Act, float]:
    """Mixture of both policies' states, KL (of Q-values at τ = 0.01), 64 gradient steps of 256 rows for 512 states."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    envs = gym.make_vec(env, num_envs=NUM_ENVS, vectorization_mode="sync")
    teacher, temperature = teacher_network(path)
    num_actions = int(envs.single_action_space.n)
    student = _student(envs)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, fused=True)
    num_updates = -(-env_steps // 512)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, num_updates)
    states, labels = torch.empty(env_steps + 512, *envs.single_observation_space.shape), torch.empty(0)
    obs, _ = envs.reset(seed=seed)
    count = 0
    for update in range(num_updates):
        beta = max(0.0, 1.0 - 3.0 * update / num_updates)  # share of the teacher's actions
        for _ in range(512 // NUM_ENVS):
            shown = torch.as_tensor(obs, dtype=torch.float32)
            with torch.no_grad():
                label, q = teacher(shown), student(shown)
            labels = labels if count else torch.empty(len(states), num_actions)
            states[count : count + NUM_ENVS], labels[count : count + NUM_ENVS] = shown, label
            count += NUM_ENVS
            actions = np.where(rng.random(NUM_ENVS) < beta, label.argmax(-1).numpy(), q.argmax(-1).numpy())
            random = rng.random(NUM_ENVS) < 0.05
            actions[random] = rng.integers(num_actions, size=random.sum())
            obs, *_ = envs.step(actions)
        for rows in torch.from_numpy(rng.integers(count, size=(64, 256))):
            loss = _kl(student(states[rows]), labels[rows] / temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return torch.no_grad()(greedy(student)), time.perf_counter() - start


def _student(envs: gym.vector.VectorEnv) -> nn.Sequential:
    hidden = nn.Linear(*envs.single_observation_space.shape, UNITS)
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(UNITS, int(envs.single_action_space.n)))


def _kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def rsl_rl(path: Path, env: str, env_steps: int, seed: int) -> tuple[Act, float]:
    """The student acts, with noise; then twice through the new states in their order, a gradient step for 15 of them.

    Its outputs follow the teacher's as if they were continuous actions. There is no replay.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    envs = gym.make_vec(env, num_envs=NUM_ENVS, vectorization_mode="sync")
    (teacher, _), student = teacher_network(path), _student(envs)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    obs, _ = envs.reset(seed=seed)
    for _ in range(-(-env_steps // (120 * NUM_ENVS))):
        states = []
        for _ in range(120):
            states.append(torch.as_tensor(obs, dtype=torch.float32))
            with torch.no_grad():
                outputs = student(states[-1])
            obs, *_ = envs.step((outputs + 0.1 * torch.randn_like(outputs)).argmax(-1).numpy())
        labels = [teacher(shown) for shown in states]
        for _ in range(2):
            losses = []
            for shown, label in zip(states, labels, strict=True):
                losses.append(nn.functional.mse_loss(student(shown), label))
                if len(losses) == 15:
                    optimizer.zero_grad()
                    torch.stack(losses).sum().backward()
                    optimizer.step()
                    losses = []
    return torch.no_grad()(greedy(student)), time.perf_counter() - start


def bc(path: Path, env: str, env_steps: int, seed: int) -> tuple[Act, float]:
    """Behavioural cloning of so many env steps of the teacher."""
    from imitation.algorithms.bc import BC
    from imitation.data import rollout

    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    envs, teacher, student = _imitation(path, env, seed)
    enough = rollout.make_sample_until(min_timesteps=env_steps)
    trajectories = rollout.rollout(teacher, envs, enough, rng=rng, unwrap=False, verbose=False)
    trainer = BC(
        observation_space=envs.observation_space,
        action_space=envs.action_space,
        rng=rng,
        policy=student,
        demonstrations=rollout.flatten_trajectories(trajectories),
    )
    trainer.train(n_epochs=4, progress_bar=False)
    return _policy(student), time.perf_counter() - start


def dagger(path: Path, env: str, env_steps: int, seed: int) -> tuple[Act, float]:
    from imitation.algorithms.bc import BC
    from imitation.algorithms.dagger import SimpleDAggerTrainer

    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    envs, teacher, student = _imitation(path, env, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SimpleDAggerTrainer(
            venv=envs,
            scratch_dir=folder,
            expert_policy=teacher,
            rng=rng,
            bc_trainer=BC(
                observation_space=envs.observation_space, action_space=envs.action_space, rng=rng, policy=student
            ),
        )
        trainer.train(env_steps, bc_train_kwargs={"progress_bar": False})
    return _policy(student), time.perf_counter() - start


def _imitation(path: Path, env: str, seed: int) -> tuple[Any, Any, Any]:
    """Environments, teacher and student as `imitation` takes them."""
    from imitation.data.wrappers import RolloutInfoWrapper
    from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Teacher(BasePolicy):
        def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:
            return network(observation.float()).argmax(-1)

    torch.manual_seed(seed)
    envs = DummyVecEnv([lambda: RolloutInfoWrapper(gym.make(env))] * NUM_ENVS)
    envs.seed(seed)
    spaces = {"observation_space": envs.observation_space, "action_space": envs.action_space}
    (network, _), teacher = teacher_network(path), Teacher(**spaces)
    student = ActorCriticPolicy(
        **spaces, lr_schedule=lambda _: 1e-3, net_arch={"pi": [UNITS], "vf": [UNITS]}, activation_fn=nn.ReLU
    )
    return envs, teacher, student


def _policy(student: Any) -> Act:
    return lambda obs: student.predict(obs, deterministic=True)[0]


METHODS = {"rllib_kd": rllib_kd, "plain": plain, "rsl_rl": rsl_rl, "bc": bc, "dagger": dagger}
_PACKAGES = {"rllib_kd": "rllib-kd", "plain": "torch", "rsl_rl": "torch", "bc": "imitation", "dagger": "imitation"}


# --- Rows and their tables --------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return ratios of each method's last students, by environment and env steps, in Markdown."""
    lines = [
        "| environment | teacher | method | env steps | seconds | return ratio, each seed |",
        "|---|---|---|---|---|---|",
    ]
    for (env, teacher, method, env_steps), own in _groups(rows).items():
        ratios = ", ".join(f"{row['return_ratio']:.3f}" for row in own)
        lines.append(f"| {env} | {teacher} | {method} | {env_steps:,} | {_seconds(own):.1f} | {ratios} |")
    return "\n".join(lines)


def time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Env steps and seconds of each method until its students are as good as their teacher, in Markdown."""
    groups = _groups(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| environment | teacher | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    for env, teacher in dict.fromkeys((row["env"], row["teacher"]) for row in rows):
        cells = []
        for method in methods:
            own = {key[-1]: group for key, group in groups.items() if key[:3] == (env, teacher, method)}
            least = None
            for env_steps in sorted(own, reverse=True):
                if np.mean([row["return_ratio"] for row in own[env_steps]]) < AS_GOOD:
                    break
                least = env_steps
            words = "never" if own else "not measured"
            cells.append(words if least is None else f"{_seconds(own[least]):.1f} s, {least:,} env steps")
        lines.append(f"| {env} | {teacher} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, int], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["env"], row["teacher"], row["method"], row["env_steps"]), []).append(row)
    return groups


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(np.median([row["seconds"] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", choices=[*METHODS, "table"], nargs="+", metavar="METHOD")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--env-steps", type=int, default=[20_000], nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each student")
    args = parser.parse_args()

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    if args.methods == ["table"]:
        print(table(rows), time_table(rows), sep="\n\n")
        return
    returns = {"teacher_return": mean_return(greedy(teacher_network(args.teacher)[0]), args.env)}
    returns["random_return"] = mean_return(random_policy(args.env), args.env)
    for env_steps, seed, method in itertools.product(args.env_steps, range(args.seeds), args.methods):
        key = {"env": args.env, "teacher": args.teacher.stem, "method": method, "env_steps": env_steps, "seed": seed}
        if any(row.items() >= key.items() for row in rows):
            continue
        act, seconds = METHODS[method](args.teacher, args.env, env_steps, seed)
        student, package = mean_return(act, args.env), _PACKAGES[method]
        ratio = (student - returns["random_return"]) / (returns["teacher_return"] - returns["random_return"])
        row = key | {
            "version": f"{package} {version(package)}",
            "seconds": round(seconds, 2),
            "student_return": student,
        }
        row |= returns | {"return_ratio": round(ratio, 4)}
        print(row, flush=True)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

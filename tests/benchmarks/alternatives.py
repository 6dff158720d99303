"""The same teacher and the same student's size, distilled by this package and by what else there is.

    python tests/benchmarks/alternatives.py METHOD TEACHER.zip --env ENV --rows rows.jsonl [--env-steps N] [--seeds 3]
    python tests/benchmarks/alternatives.py table --rows rows.jsonl

METHOD: `rllib_kd`, at its defaults; `plain`: a PyTorch script of 40 lines below, DAgger with a KL loss; `bc` and
`dagger`: behavioural cloning and SimpleDAggerTrainer of `imitation`, at their defaults. TEACHER.zip: a DQN of
Stable-Baselines3. The last student, of one hidden layer of 32 units, plays 100 greedy episodes of fresh seeds.
Seconds are those of getting the states and learning.

`imitation` 1.0.1 needs an environment of its own, without this package:

    pip install imitation==1.0.1 'numpy<2' 'pandas<3' 'scipy<1.16' 'scikit-learn<1.7' 'pyarrow<22' 'datasets<4' \\
        'setuptools<81'
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
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
#: Greedy actions `[B]` of observations `[B, ...]`.
Act = Callable[[np.ndarray], np.ndarray]


def teacher_network(path: Path) -> nn.Sequential:
    """Q-network of a Stable-Baselines3 DQN: two hidden layers with ReLU."""
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    layers: list[nn.Module] = []
    for i in (0, 2, 4):
        weight, bias = weights[f"q_net.q_net.{i}.weight"], weights[f"q_net.q_net.{i}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def greedy(network: nn.Module) -> Act:
    return lambda obs: network(torch.as_tensor(obs, dtype=torch.float32)).argmax(-1).numpy()


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
    """Mixture of both policies' states, KL at τ = 0.01, 64 gradient steps of 256 rows for 512 new states."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    envs = gym.make_vec(env, num_envs=NUM_ENVS, vectorization_mode="sync")
    teacher = teacher_network(path)
    num_actions = int(envs.single_action_space.n)
    student = nn.Sequential(nn.Linear(*envs.single_observation_space.shape, UNITS), nn.ReLU())
    student.append(nn.Linear(UNITS, num_actions))
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
            loss = _kl(student(states[rows]), labels[rows] / 0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return torch.no_grad()(greedy(student)), time.perf_counter() - start


def _kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


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
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import DummyVecEnv
    from stable_baselines3.dqn.policies import DQNPolicy

    torch.manual_seed(seed)
    envs = DummyVecEnv([lambda: RolloutInfoWrapper(gym.make(env))] * NUM_ENVS)
    envs.seed(seed)
    spaces = {"observation_space": envs.observation_space, "action_space": envs.action_space}
    teacher = DQNPolicy(**spaces, lr_schedule=lambda _: 0.0, net_arch=[256, 256])
    with zipfile.ZipFile(path) as archive:
        teacher.load_state_dict(torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True))
    student = ActorCriticPolicy(
        **spaces, lr_schedule=lambda _: 1e-3, net_arch={"pi": [UNITS], "vf": [UNITS]}, activation_fn=nn.ReLU
    )
    return envs, teacher, student


def _policy(student: Any) -> Act:
    return lambda obs: student.predict(obs, deterministic=True)[0]


METHODS = {"rllib_kd": rllib_kd, "plain": plain, "bc": bc, "dagger": dagger}
_PACKAGES = {"rllib_kd": "rllib-kd", "plain": "torch", "bc": "imitation", "dagger": "imitation"}


# --- Rows and their table ---------------------------------------------------------------------------------------------


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown."""
    print("| environment | method | env steps | seconds | return of the last student, each seed | teacher |")
    print("|---|---|---|---|---|---|")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["env"], row["method"], row["version"], row["env_steps"]), []).append(row)
    for (env, method, package, env_steps), own in groups.items():
        returns = ", ".join(f"{row['return']:.1f}" for row in own)
        seconds = np.median([row["seconds"] for row in own])
        print(f"| {env} | {method} ({package}) | {env_steps:,} | {seconds:.1f} | {returns} | {own[0]['teacher']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=[*METHODS, "table"])
    parser.add_argument("teacher", type=Path, nargs="?")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--env-steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each student")
    args = parser.parse_args()

    torch.set_num_threads(1)
    if args.method == "table":
        print_table([json.loads(line) for line in args.rows.read_text().splitlines()])
        return
    package = _PACKAGES[args.method]
    teacher_return = mean_return(greedy(teacher_network(args.teacher)), args.env)
    for seed in range(args.seeds):
        act, seconds = METHODS[args.method](args.teacher, args.env, args.env_steps, seed)
        row = {
            "env": args.env,
            "method": args.method,
            "version": f"{package} {version(package)}",
            "env_steps": args.env_steps,
            "seed": seed,
            "seconds": seconds,
            "return": mean_return(act, args.env),
            "teacher": teacher_return,
        }
        print(row, flush=True)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

"""What trees reach, beside the plain recipe of VIPER (Bastani et al. 2018) with scikit-learn on the same states.

    python tuning/trees.py --teachers FOLDER [--only TASK ...] [--seeds N] [--first-seed N]
        [--weighting NAME] [--restarts N] [--env-steps N] [--out FILE]

FOLDER holds the teachers that `TASKS` names; `cartpole` needs none. Each run adds a row to the file (default:
docs/results/trees.csv): the return ratio of the tree that validation episodes chose, on fresh episodes, and of as many
trees of the plain recipe, chosen in the same way. Then the tree is certified as in `rllib shrink`, on other episodes.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
from sklearn.tree import DecisionTreeClassifier

from rllib_kd import DistillDQNConfig, Teacher, compare_all, load_teacher
from rllib_kd.algorithm.restarts import Players
from rllib_kd.certificates.certificate import Certificate
from rllib_kd.certificates.certification import certify
from rllib_kd.certificates.games import Games
from rllib_kd.environments.pools import own_name
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.trees.arrays import Tree, rounded_down
from rllib_kd.networks.trees.shape import WEIGHTINGS
from rllib_kd.students.trees.refining import Structure

#: Of the resets that judge a student: far from those of its training and of validation.
FIRST_EPISODE_SEED = 3_000_000
#: As many as a run has copies.
CANDIDATES = 12


class Task(NamedTuple):
    """An environment, its teacher, a tree, and the length of training.

    Args:
        env: environment.
        teacher: file in the folder of teachers, or a packaged one.
        tree: settings of the tree.
        env_steps: length of training.
        num_validation_episodes: episodes that choose a tree.
        num_fresh_episodes: episodes that judge it.
        keep: return ratio that is to be certified, with a confidence of 95 %.
        max_episodes: most episodes of a certificate.
    """

    env: str
    teacher: str
    tree: Mapping[str, Any]
    env_steps: int
    num_validation_episodes: int = 64
    num_fresh_episodes: int = 100
    keep: float = 0.97
    max_episodes: int = 2_000


TASKS = {
    "cartpole": Task("CartPole-v1", "cartpole", {"max_leaf_nodes": 8}, 30_000),
    "mountaincar": Task("MountainCar-v0", "sb3/dqn-MountainCar-v0.zip", {"max_leaf_nodes": 8}, 40_000),
    "acrobot": Task("Acrobot-v1", "sb3/dqn-Acrobot-v1.zip", {"max_leaf_nodes": 16}, 40_000),
    "lunarlander": Task("LunarLander-v3", "lunarlander", {"max_leaf_nodes": 64, "oblique": True}, 120_000, keep=0.9),
    # envpool chooses; gymnasium's highway, which judges, plays 26 steps/s.
    "highway": Task(
        "envpool/highway-fast-v0",
        "highway",
        {"max_leaf_nodes": 64, "oblique": True},
        120_000,
        num_validation_episodes=256,
        num_fresh_episodes=50,
        keep=0.9,
        max_episodes=300,
    ),
}


def plain_recipe(obs: np.ndarray, labels: np.ndarray, module: Any, seed: int, most_states: int | None = None) -> Tree:
    """Return a tree of scikit-learn's on states drawn by the teacher's best minus worst output; None: on as many."""
    gaps = labels.max(-1) - labels.min(-1)
    count = len(obs) if most_states is None else min(most_states, len(obs))
    rows = np.random.default_rng(seed).choice(len(obs), count, p=gaps / gaps.sum())
    fitted = DecisionTreeClassifier(max_leaf_nodes=module.shape.max_leaf_nodes, random_state=seed)
    grown = fitted.fit(module.features.values(obs[rows]), labels[rows].argmax(-1)).tree_
    feature = np.where(grown.children_left >= 0, grown.feature, -1)
    arrays = feature, rounded_down(grown.threshold), grown.children_left, grown.children_right
    structure, nodes = Structure.of(*arrays), _order(*arrays)
    values = np.zeros((structure.num_leaves, labels.shape[1]))
    values[:, fitted.classes_] = grown.value[nodes[structure.num_inner :], 0]
    return structure.tree(values, len(module.features))


def plain_trees(algo: Any, chosen: Any, num_trees: int = CANDIDATES, most_states: int | None = None) -> dict[str, Any]:
    """Return students like `chosen` that have grown by the plain recipe on states of the replay."""
    (arrays,) = algo.learner_group.foreach_learner(lambda learner: learner.replay_arrays()).result_or_errors
    own = {key.rpartition("columns/")[2]: value for key, value in arrays.get().items() if "columns/" in key}
    students = {}
    for candidate in range(num_trees):
        spec = student_module_spec(dict(chosen.model_config))
        spec.observation_space, spec.action_space = chosen.observation_space, chosen.action_space
        spec.inference_only = True
        students[f"viper {candidate}"] = spec.build()
        students[f"viper {candidate}"].tree = plain_recipe(own["obs"], own["teacher_q"], chosen, candidate, most_states)
    return students


def _order(feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the numbers of scikit-learn's nodes in a `Structure`'s order: as thresholds, they move with nodes."""
    return Structure.of(feature, np.arange(len(feature), dtype=np.float32), left, right).threshold.astype(int)


def certified(
    task: Task, make_env: Any, teacher: Teacher, student: Teacher, seen: list[float], seed: int
) -> Certificate:
    """Return the certificate of a student, by episodes that nothing else has seen."""
    teacher, student = check_players_fit(make_env, {"The teacher": teacher, "The student": student})
    games = Games(make_env, teacher, seed)
    (tested,) = certify(
        1,
        lambda place, first, count: games.certificate_episodes(student, first, count),
        keep=task.keep,
        alpha=0.05,
        max_episodes=task.max_episodes,
        seen=np.array(seen),
    )
    return tested.certificate


def run(name: str, task: Task, teacher: str, seed: int, restarts: int | None) -> dict[str, Any]:
    """Train a tree, grow others by the plain recipe, and return a row of the file."""
    config = DistillDQNConfig().environment(task.env).debugging(seed=seed)
    config.distillation(
        teacher=teacher,
        student={"tree": dict(task.tree)},
        restarts=restarts,
        num_baseline_episodes=0,
        num_validation_episodes=task.num_validation_episodes,
    )
    algo = config.build_algo()
    began, cpu = time.perf_counter(), time.process_time()
    sampling = learning = 0.0
    while algo.num_env_steps < task.env_steps:
        result = algo.train()
        sampling += result["timers"]["env_runner_sampling_timer"] * result["num_training_step_calls_per_iteration"]
        learning += result["timers"]["learner_update_timer"] * result["num_training_step_calls_per_iteration"]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    chosen = algo.get_module()
    candidates = plain_trees(algo, chosen)
    players = Players.of(algo.config, algo.get_copies(), algo.env_runner)
    assert players.make_env is not None
    played = play_validation(players.make_env, candidates, players.pipeline, task.num_validation_episodes)
    viper = candidates[played.best(list(candidates))[0]]
    students, env = {"tree": chosen, "viper": viper}, own_name(task.env)
    compared = compare_all(teacher, students, env, num_episodes=task.num_fresh_episodes, seed=FIRST_EPISODE_SEED)
    algo.stop()
    ours, plain = compared
    seen = [value for one in (ours.student, ours.teacher, ours.random) for value in one.returns]
    certificate = certified(task, players.make_env, load_teacher(teacher), Teacher(chosen), seen, seed)
    return {
        "task": name,
        "teacher": task.teacher,
        "env": task.env,
        **{key: str(task.tree.get(key, "")) for key in ("max_leaf_nodes", "oblique", "weighting")},
        "seed": seed,
        "env_steps": task.env_steps,
        "max_regret": algo.config.max_regret_in_gaps,
        "teacher_return": round(ours.teacher.return_mean, 2),
        "random_return": round(ours.random.return_mean, 2),
        "return": round(ours.student.return_mean, 2),
        "return_ratio": round(ours.return_ratio, 3),
        "num_leaves": chosen.tree.num_leaves,
        "depth": chosen.tree.depth,
        "viper_return": round(plain.student.return_mean, 2),
        "viper_return_ratio": round(plain.return_ratio, 3),
        "viper_num_leaves": viper.tree.num_leaves,
        "keep": task.keep,
        "verdict": certificate.verdict,
        "certificate_episodes": certificate.num_episodes,
        "certificate_return_ratio": round(certificate.return_ratio or np.nan, 3),
        "sampling_seconds": round(sampling, 1),
        "growing_seconds": round(learning, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def main() -> None:
    """Measure what is asked for, and add its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--weighting", choices=WEIGHTINGS, help="of all copies (default: they differ)")
    parser.add_argument("--restarts", type=int, help="copies (default: that of the package)")
    parser.add_argument("--env-steps", type=int, help="of each run (default: that of the task)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "trees.csv")
    args = parser.parse_args()
    ray.init("local", include_dashboard=False, log_to_driver=False)
    for name in args.only:
        task = TASKS[name]
        path = args.teachers / task.teacher
        if task.teacher != "cartpole" and not path.exists():
            print(f"{name}: left out, there is no '{path}'", flush=True)
            continue
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            tree = {**task.tree, **({} if args.weighting is None else {"weighting": args.weighting})}
            length = args.env_steps or task.env_steps
            own = task._replace(tree=tree, env_steps=length)
            row = run(name, own, task.teacher if task.teacher == "cartpole" else str(path), seed, args.restarts)
            print(row, flush=True)
            is_new = not args.out.exists()
            with args.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
    ray.shutdown()


if __name__ == "__main__":
    main()

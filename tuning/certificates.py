"""Are certificates right? Make real ones, and judge each certified student on 5,000 fresh episodes.

    python tuning/certificates.py FOLDER --env LunarLander-v3 --teacher PATH [--seeds 20] [--keep 0.97]
        [--minutes 10 | --env-steps N] [--csv FILE]

Each seed is a run of `rllib shrink`. Its student, the teacher and a random policy then play the same 5,000 seeds, by
which nothing was chosen and nothing was tested. A certificate is wrong if the upper end of the 95 % interval of
d = s − keep·t − (1 − keep)·r is below zero. A row is appended to FOLDER/rows.jsonl as soon as it is measured; a seed
that has a row with the same settings is not run again, and a run that was interrupted is resumed. At most 5 % of
certificates should be wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd import Shrink, load_teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.playing import Player, RandomActions, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.paths import replace_file
from rllib_kd.shrink.outcome import CERTIFICATE, Shrunk
from rllib_kd.shrink.progress import Progress
from rllib_kd.shrink.shrink import DEFAULT_MINUTES

NUM_EPISODES = 5_000
FIRST_SEED = 1_400_000_000  # far below validation (1,500,000,000) and certificates (from 1,750,000,000)
_NORMAL = 1.96  # two-sided 95 %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--seeds", type=int, default=20, help="how many runs, with seeds from 0")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="of each run (default: 10)")
    limit.add_argument("--env-steps", type=int, help="of training, instead: on a machine that others use")
    parser.add_argument("--keep", type=float, default=0.97)
    parser.add_argument("--csv", type=Path, help="table of all rows in the folder")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = args.folder / "rows.jsonl"
    # The teacher's path as it is given: files of one name in two folders are two teachers.
    settings = {"env": args.env, "teacher": args.teacher, "keep": args.keep, **limits(args)}
    for seed in range(args.seeds):
        key = {**settings, "seed": seed}
        if of(key, read(rows)):
            continue
        out = args.folder / "-".join(map(_in_a_name, key.values()))
        certificate = shrink(args, seed, out)
        row = key | found(certificate)
        if certificate["certified"] is not None:
            row |= judged(args, out / "student")
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    report(of(settings, read(rows)))
    if args.csv is not None:
        write_csv(read(rows), args.csv)


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ends a run: env steps, or minutes."""
    return {"minutes": args.minutes} if args.env_steps is None else {"env_steps": args.env_steps}


def of(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with these settings."""
    return [row for row in rows if row.items() >= settings.items()]


def _in_a_name(value: Any) -> str:
    return str(value).replace("/", "_")


def read(rows: Path) -> list[dict[str, Any]]:
    """Return the rows so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def shrink(args: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    """Return the content of a run's certificate.json; a run that has ended is not made again."""
    if not (out / CERTIFICATE).exists():
        asked = Shrink(args.teacher, args.env, keep=args.keep, seed=seed, out=out, **limits(args))
        result: Shrunk = asked.run(resume=Progress(out).exists)
        if not result.is_complete:
            raise SystemExit(1)
    return json.loads((out / CERTIFICATE).read_text())


def found(certificate: dict[str, Any]) -> dict[str, Any]:
    """Return what a certificate states, as columns of a row."""
    students = [one for one in certificate["candidates"] if one["name"] == certificate["certified"]]
    if not students:
        return {"certified": None, "seconds": certificate.get("seconds", {}).get("all")}
    (student,) = students
    return {
        "certified": student["label"],
        "num_parameters": student["num_parameters"],
        "certified_ratio": student["certificate"]["return_ratio"],
        "certified_episodes": student["certificate"]["num_episodes"],
        "seconds": certificate["seconds"]["all"],
    }


def judged(args: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Return a student's return ratio in fresh episodes, and whether its certificate is wrong."""
    make_env = env_maker(args.env, {})
    teacher, student = check_players_fit(
        make_env, {"The teacher": load_teacher(args.teacher), "The student": load_teacher(str(checkpoint))}
    )
    seeds = range(FIRST_SEED, FIRST_SEED + NUM_EPISODES)
    names = map(_in_a_name, ("baselines", args.env, args.teacher))
    kept = args.folder / f"{'-'.join(names)}.json"  # the same for all students
    if not kept.exists():
        players: list[Player] = [GreedyQ(teacher), RandomActions(int(teacher.action_space.n), seed=FIRST_SEED)]
        baselines = [play(make_env, player, seeds)[0] for player in players]
        replace_file(kept, json.dumps(baselines).encode())
    t, r = np.array(json.loads(kept.read_text()))
    s = np.array(play(make_env, GreedyQ(student), seeds)[0])
    d = s - args.keep * t - (1 - args.keep) * r
    scale = float(t.mean() - r.mean())
    margin = _NORMAL * float(d.std(ddof=1)) / NUM_EPISODES**0.5
    return {
        "fresh_ratio": float(s.mean() - r.mean()) / scale,
        "fresh_lower": args.keep + (float(d.mean()) - margin) / scale,
        "fresh_upper": args.keep + (float(d.mean()) + margin) / scale,
        "is_wrong": bool(d.mean() + margin < 0),
    }


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows as a table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def report(rows: list[dict[str, Any]]) -> None:
    """Print how many certificates there are, and how many are wrong."""
    certified = [row for row in rows if row["certified"] is not None]
    wrong = sum(row["is_wrong"] for row in certified)
    print(f"{len(rows)} runs, {len(certified)} certificates, {wrong} wrong on {NUM_EPISODES:,} fresh episodes")


if __name__ == "__main__":
    main()

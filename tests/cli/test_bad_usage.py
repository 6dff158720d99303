"""What cannot be is refused in one line, before Ray starts."""

import re

import pytest
import ray

from tests.cli.commands import DISTIL, ROOT
from tests.conftest import exit_code

RUN = ["train", "--algo", "DQN", "--env", "CartPole-v1"]
BAD = {
    "no command": ([], "Usage: rllib"),
    "unknown command": (["fly"], "No such command 'fly'"),
    "a command that is gone": (["rollout", "x"], "use `rllib evaluate`"),
    "another command that is gone": (["example", "list"], "rllib train file FILE"),
    "no algorithm": (["train", "--env", "CartPole-v1"], "--algo DistillDQN"),
    "unknown algorithm": (["train", "--algo", "DistilDQN", "--env", "CartPole-v1"], "Did you mean 'DistillDQN'?"),
    "algorithm that cannot be imported": (["train", "--algo", "no.such.Algorithm"], "No module named 'no'"),
    "class that is no algorithm": (["train", "--algo", "json.JSONDecoder"], "not an RLlib Algorithm"),
    "no environment": (["train", "--algo", "DQN"], "--env CartPole-v1"),
    "environment unknown": (["train", "--algo", "DQN", "--env", "CartPool-v1"], "Did you mean: `CartPole`?"),
    "environment empty": (["train", "--algo", "DQN", "--env", ""], "The name of the environment is empty"),
    "environment class that is not there": (["train", "--algo", "DQN", "--env", "no.such.Env"], "no environment class"),
    "a config of the environment that is none": (
        [*RUN, "-c", '{"env_config": 5}', "--env-config", '{"size": 3}'],
        "The setting 'env_config' cannot be 5: expected an object",
    ),
    "environment refuses its config": ([*RUN, "-c", '{"env_config": {"wrong": 1}}'], "'wrong'"),
    "actions that DQN cannot choose": (["train", "--algo", "DQN", "--env", "Pendulum-v1"], "discrete actions"),
    "algorithm in another case": (["train", "--algo", "dqn", "--env", "CartPole-v1"], "Did you mean 'DQN'?"),
    "environment of a package that is not there": (["train", "--algo", "DQN", "--env", "none:X-v0"], "none"),
    "no teacher": (["train", "--algo", "DistillDQN", "--env", "CartPole-v1"], "needs a teacher"),
    "teacher is not there": ([*DISTIL[:-1], "/does/not/exist"], "There is no checkpoint at '/does/not/exist'"),
    "teacher of another environment": (
        ["train", "--algo", "DistillDQN", "--env", "Acrobot-v1", "--teacher", "cartpole", "--ray-num-cpus", "1"],
        "The teacher's observation space is Box(4,), but in 'Acrobot-v1' it is Box(6,)",
    ),
    "fewer parameters than any such network has": (
        [*DISTIL, "-c", '{"compression": 0.00001}'],
        "compression=1e-05 allows 1 of the teacher's 67843 parameters",
    ),
    "layers that are wider than the teacher's": (
        [*DISTIL, "-c", '{"init": "teacher", "students": {"a": "linear", "b": {"fcnet_hiddens": [400]}}}'],
        "number 1 of its hidden layers has 400 units, and the teacher's 256",
    ),
    "convolutions of a teacher without any": (
        [*DISTIL, "-c", '{"init": "convolutions", "student": "linear"}'],
        "init='convolutions' needs a student with convolutions",
    ),
    "a network of images without images": (
        [*DISTIL, "-c", '{"student": "rusu-net3"}'],
        "student='rusu-net3' has convolutions, which need images of at least 36 × 36 pixels",
    ),
    "a network of images without images, in a sweep": (
        [
            "sweep",
            "--teacher",
            "cartpole",
            "--env",
            "CartPole-v1",
            "-c",
            '{"model_config": {"conv_filters": [[8, 4, 2]]}}',
        ],
        "model_config={'conv_filters': [[8, 4, 2]]} has convolutions",
    ),
    "first weights that shrink cannot take from a teacher": (
        ["shrink", "--teacher", "cartpole", "--env", "CartPole-v1", "--config", '{"init": "convolutions"}'],
        "init='convolutions' needs a student with convolutions",
    ),
    "recorded rows that are not there": (
        ["train", "--algo", "DistillDQN", "--teacher", "cartpole", "--input", "/does/not/exist"],
        "There is nothing at '/does/not/exist'",
    ),
    "recorded rows that are not there, to shrink": (
        ["shrink", "--teacher", "cartpole", "--env", "CartPole-v1", "--input", "/does/not/exist"],
        "There is nothing at '/does/not/exist'",
    ),
    "recorded rows and who acts": (
        ["train", "--algo", "DistillDQN", "--teacher", "cartpole", "--input", "x", "-c", '{"teacher_fraction": 0.5}'],
        "`teacher_fraction`=0.5 is not supported with `input_`",
    ),
    "rows without labels to record": (
        ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--no-teacher", "--output", "x"],
        "`teacher`=None is not supported with `output`",
    ),
    "two inputs to label": (
        ["label", "--teacher", "cartpole", "--input", "a", "--input", "b", "--output", "c"],
        "`rllib label` takes one --input, got 2",
    ),
    "a teacher and none": ([*DISTIL, "--no-teacher"], "--no-teacher and --teacher exclude each other"),
    "no teacher for another algorithm": ([*RUN, "--no-teacher"], "DQNConfig has no setting 'teacher'"),
    "teacher for another algorithm": ([*RUN, "--teacher", "cartpole"], "DQNConfig has no setting 'teacher'"),
    "unknown setting": ([*DISTIL, "--config", '{"temprature": 1}'], "Did you mean 'temperature'?"),
    "unknown setting of DQN": ([*RUN, "-c", '{"gama": 1}'], "Did you mean 'gamma'?"),
    "setting that is gone": ([*RUN, "-c", '{"exploration_config": {}}'], "set epsilon"),
    "setting that nobody reads": ([*RUN, "-c", '{"noisy": true}'], "no longer exists"),
    "setting that DQN does not read": ([*RUN, "-c", '{"adam_epsilon": 1e-5}'], "no longer exists"),
    "unknown key within a setting": ([*RUN, "-c", '{"model_config": {"fcnet_hidden": [8]}}'], "'fcnet_hiddens'"),
    "unknown key of the replay": ([*RUN, "-c", '{"replay_buffer_config": {"capacty": 8}}'], "'capacity'"),
    "unknown key of the evaluation": ([*RUN, "-c", '{"evaluation_config": {"explor": true}}'], "'explore'"),
    "unknown key in a grid": ([*DISTIL, "-c", '{"model_config": {"grid_search": [{}, {"x": 1}]}}'], "no key 'x'"),
    "grid without values": ([*RUN, "-c", '{"lr": {"grid_search": []}}'], "must be a list"),
    "grid of one value": ([*RUN, "-c", '{"lr": {"grid_search": 0.1}}'], '{"grid_search": [...]}'),
    "negative number": ([*RUN, "-c", '{"lr": -1}'], "expected a number of at least 0"),
    "number that is none": ([*RUN, "-c", '{"lr": NaN}'], "JSON has no NaN"),
    "number beyond all": ([*RUN, "-c", '{"lr": 1e999}'], "1e999 is too large a number"),
    "infinite number": ([*RUN, "-c", '{"model_config": {"log_std_clip_param": Infinity}}'], "JSON has no Infinity"),
    "schedule with a word": ([*DISTIL, "-c", '{"lr": [[0, 0.1], [9, "low"]]}'], "`lr` must be a number or a schedule"),
    "schedule of another kind": ([*DISTIL, "-c", '{"td_coeff": [[0, "x"]]}'], "`td_coeff` must be a number or a sche"),
    "schedule of RLlib with a word": ([*RUN, "-c", '{"epsilon": [[0, 1], [9, "x"]]}'], "`epsilon` must be a number"),
    "null for a number": ([*DISTIL, "-c", '{"gamma": null}'], "'gamma' cannot be None. Leave it out"),
    "no rows in the replay": ([*DISTIL, "-c", '{"replay_buffer_config": {"capacity": 0}}'], "integer of at least 1"),
    "replay of another kind": (
        [*DISTIL, "-c", '{"replay_buffer_config": {"type": "EpisodeReplayBuffer"}}'],
        "a replay of its own",
    ),
    "widths of a family": ([*DISTIL, "-c", '{"students": {"a": {"fcnet_hiddens": [0]}}}'], "students['a']"),
    "evaluation with a bad number": ([*DISTIL, "-c", '{"evaluation_config": {"lr": -1}}'], "'lr' cannot be -1"),
    "observations of another kind": (
        ["train", "--algo", "DistillDQN", "--env", "Blackjack-v1", "--teacher", "cartpole"],
        "The teacher's observation space is Box(4,), but in 'Blackjack-v1' it is Tuple(Discrete(32),",
    ),
    "teacher of another environment in an ensemble": (
        [*DISTIL[:3], "--env", "Acrobot-v1", "--teacher", "cartpole", "--teacher", "cartpole"],
        "in 'Acrobot-v1' it is Box(6,)",
    ),
    "number that is too large": ([*RUN, "-c", '{"gamma": 5}'], "between 0 and 1"),
    "half a process": ([*RUN, "-c", '{"num_env_runners": 1.5}'], "expected an integer"),
    "unknown activation": (
        [*RUN, "-c", '{"model_config": {"fcnet_activation": "no"}}'],
        "model_config['fcnet_activation'] cannot be 'no'",
    ),
    "widths that are none": ([*RUN, "-c", '{"model_config": {"fcnet_hiddens": ["x"]}}'], "list of integers"),
    "unknown replay": ([*RUN, "-c", '{"replay_buffer_config": {"type": "Replay"}}'], "no replay buffer 'Replay'"),
    "string for a number": ([*RUN, "-c", '{"lr": "fast"}'], "expected a list or a number"),
    "number for a list": ([*DISTIL, "-c", '{"model_config": 8}'], "expected an object"),
    "list for a truth": ([*RUN, "-c", '{"double_q": [1]}'], "expected true or false"),
    "bad value": ([*DISTIL, "--config", '{"temperature": -1}'], "`temperature` must be positive"),
    "bad value in a grid": ([*DISTIL, "--config", '{"temperature": {"grid_search": [1, -1]}}'], "must be positive"),
    "value that RLlib refuses": ([*RUN, "-c", '{"evaluation_duration": -1}'], "evaluation_duration"),
    "unknown loss": ([*DISTIL, "--loss", "l2"], "Unknown loss 'l2'"),
    "compression beyond 1": ([*DISTIL, "--compression", "7"], "`compression` must be in (0, 1]"),
    "compression is no number": ([*DISTIL, "--compression", "tiny"], "valid number"),
    "compression and widths": (
        [*DISTIL, "--compression", "0.1", "-c", '{"model_config": {"fcnet_hiddens": [8]}}'],
        "Set one of them",
    ),
    "config is no JSON": ([*DISTIL, "--config", '{"lr": 1,}'], "line 1 column"),
    "config is empty": ([*DISTIL, "--config", ""], "Got nothing"),
    "config is a list": ([*DISTIL, "--config", "[1]"], "--config must be a JSON object"),
    "config file is not there": ([*DISTIL, "--config", "@nowhere.json"], "there is no file 'nowhere.json'"),
    "config file is no JSON": ([*DISTIL, "--config", "@README.md"], "the file 'README.md'"),
    "stop is no JSON": ([*DISTIL, "--stop", "soon"], "--stop must be JSON"),
    "stop at a word": ([*DISTIL, "--stop", '{"training_iteration": "ten"}'], "reaches a number"),
    "stop at no finite number": ([*DISTIL, "--stop", '{"training_iteration": 1' + 400 * "0" + "}"], "a finite number"),
    "stop at no number": ([*DISTIL, "--stop", '{"training_iteration": NaN}'], "JSON has no NaN"),
    "stop at an unknown metric": ([*DISTIL, "--stop", '{"training_iteraton": 9}'], "mean 'training_iteration'?"),
    "stop at half a metric": (
        [*DISTIL, "--stop", '{"episode_return_mean": 9}'],
        "mean 'env_runners/episode_return_mean'?",
    ),
    "unknown flag": ([*DISTIL, "--lr", "1"], "No such option: --lr"),
    "flag without its value": ([*DISTIL, "--stop"], "requires an argument"),
    "a flag that is gone": ([*DISTIL, "--local-mode"], "no longer exists"),
    "another flag that is gone": ([*DISTIL, "--upload-dir=s3://x"], "use --storage-path"),
    "a flag from long ago": (["train", "-f", "tuning/cartpole.py"], "rllib train file FILE"),
    "no trials": ([*DISTIL, "--num-samples", "0"], "`num_samples` must be an integer of at least 1"),
    "checkpoints in the past": (
        [*DISTIL, "--checkpoint-freq", "-1"],
        "`checkpoint_freq` must be an integer of at least 0",
    ),
    "failures below none": ([*DISTIL, "--max-failures", "-2"], "`max_failures` must be an integer of at least -1"),
    "no checkpoints to keep": ([*DISTIL, "--keep-checkpoints-num", "0"], "must be an integer of at least 1"),
    "no comparison without a student": ([*RUN, "--compare-episodes", "3"], "needs DistillDQN"),
    "an experiment without a name": ([*DISTIL, "-n", ""], "`experiment_name` is empty"),
    "results nowhere": ([*DISTIL, "--storage-path", ""], "`storage_path` is empty"),
    "unknown metric of the best": ([*DISTIL, "--checkpoint-score-attr", "env_runner/x"], "mean 'env_runners'?"),
    "no CPUs": ([*DISTIL, "--ray-num-cpus", "0"], "--ray-num-cpus must be at least 1"),
    "no nodes": ([*DISTIL, "--ray-num-nodes", "0"], "--ray-num-nodes must be at least 1"),
    "no memory": ([*DISTIL, "--ray-object-store-memory", "5"], "must be at least"),
    "unknown setting to mutate": (
        [*RUN, "--scheduler", "pbt", "--scheduler-config", '{"metric": "x", "hyperparam_mutations": {"lrr": [1]}}'],
        "no setting 'lrr'",
    ),
    "unknown scheduler": ([*DISTIL, "--scheduler", "magic"], "Unknown scheduler 'magic'"),
    "scheduler without a metric": ([*DISTIL, "--scheduler", "hyperband"], "needs a metric"),
    "argument of no scheduler": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metrc": "x"}'],
        "Did you mean 'metric'?",
    ),
    "arguments of a bad kind": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metric": "x", "mode": "up"}'],
        "does not take",
    ),
    "metric of no result": (
        [*DISTIL, "--scheduler", "hyperband", "--scheduler-config", '{"metric": "episode_return_mean"}'],
        "mean 'env_runners/episode_return_mean'?",
    ),
    "scheduler's arguments are no JSON": ([*DISTIL, "--scheduler", "pbt", "--scheduler-config", "x"], "must be JSON"),
    "half a metric of the best": ([*DISTIL, "--checkpoint-score-attr", "min-episode_return_mean"], "Did you mean"),
    "checkpoint of a folder that is none": ([*DISTIL, "--restore", "tests"], "no checkpoint of an Algorithm"),
    "no number of trials": ([*DISTIL, "--num-samples", "-3"], "`num_samples` must be an integer of at least 1"),
    "GPUs that are not there": ([*DISTIL, "-c", '{"num_gpus_per_learner": 64, "num_learners": 1}'], "64 GPUs"),
    "nodes without CPUs": (
        [*RUN, "-c", '{"num_env_runners": 9}', "--ray-num-nodes", "2"],
        "A trial needs 10 CPUs, but Ray has 2",
    ),
    "scheduler's arguments alone": ([*DISTIL, "--scheduler-config", '{"metric": "x"}'], "needs a --scheduler"),
    "nowhere to write": ([*DISTIL, "--storage-path", "/dev/null/x"], "cannot be written"),
    "a URI of no filesystem": (
        [*DISTIL, "--storage-path", "foo://b/x"],
        "Results cannot be written to 'foo://b/x': Unrecognized filesystem type in URI: foo://b/x. Set --storage-path",
    ),
    "a URI with an unknown option": ([*DISTIL, "--storage-path", "s3://b/x?a=1"], "Unexpected query parameter"),
    "a URI without a path, to resume": (
        [*DISTIL, "--resume", "--experiment-name", "x", "--storage-path", "s3://"],
        "Results cannot be written to 's3://': it has no path.",
    ),
    "a sweep at a URI of no filesystem": (
        ["sweep", "--env", "CartPole-v1", "--teacher", "cartpole", "--storage-path", "abfs://x"],
        "Results cannot be written to 'abfs://x': ",
    ),
    "nothing to restore": ([*DISTIL, "--restore", "/none"], "restored from '/none': There is no checkpoint"),
    "nothing to resume": (
        [*DISTIL, "--resume", "--storage-path", "/tmp/rllib_kd_none", "-n", "mine"],
        "no experiment to resume",
    ),
    "a resume of a run without its name": (
        [*DISTIL, "--resume"],
        "--resume needs the name of the run, which was printed when it began: --experiment-name NAME.",
    ),
    "a sweep without a teacher": (["sweep", "--env", "CartPole-v1"], "Missing option '--teacher'"),
    "a scheduler that no sweep has": (
        ["sweep", "--env", "CartPole-v1", "--teacher", "cartpole", "--scheduler", "ashe"],
        "Unknown scheduler 'ashe'. Did you mean 'asha'",
    ),
    "a sweep whose space is not there": (
        ["sweep", "--env", "CartPole-v1", "--teacher", "cartpole", "--space", "nowhere.py"],
        "--space: there is no file 'nowhere.py'",
    ),
    "a log level that no flag has": ([*DISTIL, "-v", "ERROR"], "-v takes INFO or DEBUG, got 'ERROR'"),
    "nobody at the address": ([*RUN, "--ray-address", "127.0.0.1:1"], "No Ray answers at '127.0.0.1:1'"),
    "address and CPUs": (
        [*RUN, "--ray-address", "127.0.0.1:1", "--ray-num-cpus", "2"],
        "can only be set for a local Ray",
    ),
    "more CPUs than there are": ([*RUN, "-c", '{"num_env_runners": 500}'], "A trial needs 501 CPUs"),
    "file is not there": (["train", "file", "nowhere.py"], "no experiment file at 'nowhere.py'"),
    "a folder for an experiment file": (["train", "file", "tests"], "'tests' is a folder. Expected an experiment file"),
    "a metric without a name": ([*RUN, "--stop", '{"": 3}'], "A metric must be a name"),
    "a rule that does not exist": ([*RUN, "--restore", "tests@besst"], "After '@' expected best or newest"),
    "a URI without a path": (["compare", "--teacher", "cartpole", "s3://"], "Expected one like 's3://bucket/folder'"),
    "file of another kind": (["train", "file", "README.md"], "ends in .py or .yaml"),
    "file from the internet": (["train", "file", "https://example.com/a.py"], "Download it first"),
    "file and algorithm": (["train", "file", "tuning/cartpole.py", "--algo", "DQN"], "Leave out --algo"),
    "file word missing": (["train", "run", "x.py"], "rllib train file FILE"),
    "no student": (["compare", "--teacher", "cartpole", "--env", "CartPole-v1"], "Missing argument"),
    "student is not there": (["compare", "--teacher", "cartpole", "--env", "CartPole-v1", "/none"], "at '/none'"),
    "unknown format": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.gguf", "--format", "gguf", "--episodes", "1"],
        "Unknown format 'gguf'. Known are c, onnx, pt2, python, safetensors, torchscript",
    ),
    "int8 of another format": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x", "--format", "safetensors", "--int8"],
        "int8",
    ),
    "a prefix that is no name in C": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.h", "--prefix", "a; system(0)"],
        "The prefix 'a; system(0)' is not a C identifier",
    ),
    "a prefix of another format": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.onnx", "--prefix", "a"],
        "A prefix is for format='c' only",
    ),
    "no episodes to export": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "x.onnx", "--episodes", "0"],
        "at least 1",
    ),
    "environment that an artifact does not fit": (
        ["export", "cartpole", "--env", "Acrobot-v1", "--out", "x.onnx"],
        "The student was made for observations Box(4,)",
    ),
    "an ending that no format has": (
        ["export", "cartpole", "--out", "fl.bin"],
        "The ending of 'fl.bin' names no format. Known endings: .h for c; .onnx for onnx; .pt2 for pt2; "
        ".py for python; .safetensors for safetensors; .pt or .ts or .torchscript for torchscript; .html for "
        "web. Rename the file, or set --format (c, onnx, pt2, python, safetensors, torchscript, web)",
    ),
    "no ending": (["export", "cartpole", "--out", "student"], "The ending of 'student' names no format"),
    "an empty file name": (["train", "file", ""], "A path is empty"),
    "a home folder that nobody has": (["train", "file", "~nosuchuser/x.py"], "a home folder that is not known here"),
    "no environment's name in evaluate": (
        ["evaluate", "cartpole", "--env", " "],
        "The name of the environment is empty",
    ),
    "a key of another setting": (
        [*RUN, "-c", '{"alpha": 0.6}'],
        'has no setting \'alpha\'. It is a key of another setting: {"replay_buffer_config": {"alpha": ...}}',
    ),
    "a folder for a file": (["export", "cartpole", "--out", "tests"], "'tests' is a folder. Name a file"),
    "a number that is none": (
        ["evaluate", "cartpole", "--episodes", "1e1"],
        "unable to parse string as an integer. See `rllib evaluate --help`.",
    ),
    "an unknown flag that is nearly one": (
        [*RUN, "--stopp", "{}"],
        "--stop). See `rllib train --help`.",
    ),
    "a file for a folder": (["evaluate", "cartpole", "--video", "README.md"], "'README.md' is not a folder"),
    "environment refuses its config in evaluate": (
        ["evaluate", "cartpole", "--env-config", '{"wrong": 1}'],
        "The environment 'CartPole-v1' cannot be made",
    ),
    "negative seed": (["evaluate", "cartpole", "--seed", "-1"], "`seed` must be an integer of at least 0"),
    "policy of another algorithm": (
        ["evaluate", "cartpole", "--algo", "PPO"],
        "was trained by DQN, but --algo is 'PPO'",
    ),
    "algorithm of no name": (["evaluate", "cartpole", "--algo", ""], "but --algo is ''"),
    "no episodes": (["evaluate", "cartpole", "--env", "CartPole-v1", "--episodes", "0"], "at least 1"),
    "report where nothing can be written": (
        ["compare", "--teacher", "cartpole", "--env", "CartPole-v1", "cartpole", "--out", "/dev/null/x"],
        "cannot be written",
    ),
    "returns where nothing can be written": (
        ["evaluate", "cartpole", "--env", "CartPole-v1", "--out", "/dev/null/x.json"],
        "cannot be written",
    ),
    "artifact where nothing can be written": (
        ["export", "cartpole", "--env", "CartPole-v1", "--out", "/dev/null/x.onnx"],
        "cannot be written",
    ),
    "a flag that evaluate no longer has": (["evaluate", "cartpole", "--steps", "1000000"], "use --episodes"),
    "another one": (["evaluate", "cartpole", "--config", "{}"], "use --env-config"),
    "environment unknown to evaluate": (["evaluate", "cartpole", "--env", "CartPool-v1"], "CartPool"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line_and_exit_code_2_before_ray_starts(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))  # in one's own, an experiment of the default name may be running
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.cluster_utils.Cluster", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.chdir(ROOT)
    assert exit_code(*arguments) == 2
    output, error = capsys.readouterr()
    assert message in error + output
    assert not arguments or re.fullmatch(r"(note: .*\n)?error: .*\n", error), error


@pytest.mark.parametrize("command", [["export", "cartpole"], ["evaluate", "cartpole"]])
def test_a_folder_that_takes_no_files_is_refused_before_anything_plays(tmp_path, monkeypatch, capsys, command):
    """As /proc, in which root may write by its permissions, and still cannot."""

    def fails(dir):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    assert exit_code(*command, "--out", f"{tmp_path}/x.onnx") == 2
    assert f"'{tmp_path}/x.onnx' cannot be written: '{tmp_path}' is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "x = 1", "must define `config`"),
        ("a.py", "config = 1", "Got int"),
        ("a.py", "1 / 0", "ZeroDivisionError"),
        ("a.yaml", "{", "cannot be read as YAML"),
        ("a.yaml", "x: {run: DQN, config: &a {env_config: *a}}", "more than 200,000 values, by references to itself"),
        ("a.py", "exit()", "cannot be run: SystemExit"),
        ("a.yaml", "a: {run: DQN}\nb: {run: DQN}", "must contain one experiment, got 2: ['a', 'b']"),
        ("a.yaml", "- run: DQN", "must contain an experiment"),
        ("a.yaml", "a: {run: DQN, config: [1]}", "must be a mapping of settings"),
        ("a.yaml", "a: {run: DQN, stop: soon}", "must be a mapping like {training_iteration: 10}"),
        ("a.yaml", "a: {run: DQN, num_samples: many}", "`num_samples` must be an integer of at least 1"),
        ("a.yaml", "a: {run: DQN}", "No environment was given"),
        ("a.yaml", "a: {env: CartPole-v1}", "names no algorithm"),
        ("a.yaml", "a: {run: DQN, confg: {}}", "Did you mean 'config'?"),
        ("a.yaml", "a: {run: DQN, checkpoint_freq: 5}", "is a flag now: --checkpoint-freq"),
        ("a.yaml", "a: {run: DQN, max_failures: 3}", "is a flag now: --max-failures"),
        ("a.yaml", "a: {run: DQN, env: CartPole-v1, config: {1: 2}}", "The name of a setting must be text"),
        ("a.yaml", "a: {run: DQN, env: CartPole-v1, stop: {1: 2}}", "A metric must be a name"),
        ("a.yaml", "", "must contain an experiment"),
        ("a.py", "", "must define `config`"),
    ],
)
def test_files_that_hold_no_experiment_say_so(tmp_path, monkeypatch, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert exit_code("train", "file", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert re.fullmatch(r"error: .*\n", error)

"""The settings of a distillation. It imports no Algorithm: algorithm.py does."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from typing_extensions import Self

from rllib_kd.algorithm.checks.config import check_alone, check_together
from rllib_kd.algorithm.checks.recurrent import check_recurrent_inputs
from rllib_kd.algorithm.derived import DerivedValues
from rllib_kd.algorithm.settings import check_settings
from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner, ExplainingMultiAgentEnvRunner
from rllib_kd.env_runner.recurrent import RecurrentEnvRunner
from rllib_kd.env_runner.single_agent import DistillEnvRunner, StudentsEnvRunner
from rllib_kd.environments import atari, pools
from rllib_kd.environments.own import settled
from rllib_kd.learner.learner import DistillDQNTorchLearner
from rllib_kd.networks.dqn_module import student_module_spec, suit_images
from rllib_kd.observations.connectors import add_inputs
from rllib_kd.offline.data import LabelledData
from rllib_kd.offline.labelled_files import absolute_uris
from rllib_kd.schedules import Schedule
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.names import absolute_teachers


class DistillationConfig(DerivedValues, DQNConfig):
    """All settings of a distillation, for any Algorithm: `DistillDQNConfig` names its own.

    A *group* is one teacher, one stream of states, and the students that learn from it. In multi-agent settings there
    is one group for each module with a teacher, named like the module; otherwise there is one.
    """

    #: Settings that RLlib's own algorithms accept and do not read any more, but that count here.
    READ_HERE: ClassVar = frozenset({"adam_epsilon"})

    # Longer than other functions: it is the list of all settings with their defaults.
    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.teacher: str | Teacher | list[Any] | Mapping[str, Any] | None = None
        self.ensemble = "q"
        self.trust_checkpoint = False
        self.loss = "kl"
        self.temperature: float | Literal["auto"] = "auto"
        self.student_temperature: float | None = None
        self.huber_delta = 1.0
        self.regret_coeff: float | None = None
        self.jsd_beta = 0.5
        self.margin = 0.8
        self.normalize_q_values = True
        self.normalize_observations = True
        self.gap_weighting = False
        self.value_gate = False
        self.feature_coeff = 0.0
        self.weight_averaging = 0.1
        self.bf16 = False
        self.quantize: str | None = None
        self.rollout_policy = "mixture"
        self.teacher_explores = False
        self.teacher_fraction: Schedule | None = None
        self.max_regret: float | None = None
        self.label_fraction = 1.0
        self.kd_coeff: Schedule | Literal["qdagger"] = 1.0
        self.td_coeff: Schedule = 0.0
        self.compression: float | None = None
        self.student: str | Mapping[str, Any] | None = None
        self.students: dict[str, Any] = {}
        self.own_states: bool | Literal["linear"] | None = None
        self.restarts: int | None = None
        self.num_validation_episodes = 64
        self.init: str | None = None
        self.num_baseline_episodes: int | None = None
        self.max_staleness: int | None = None
        self.held_out = 0.05
        self.set_aside = 0.0
        self.patience: int | None = None
        #: Groups whose teachers give log-probabilities: not a setting, but set once the teachers are loaded.
        self._log_prob_groups: tuple[str, ...] = ()
        #: Likewise, what stands in `teacher` for those that were loaded in Python, by group.
        self._loaded_teachers: dict[str, Any] = {}

        # RLlib's own fields.
        self.num_envs_per_env_runner = 16
        self.rollout_fragment_length = 32
        self.epsilon = 0.05
        self.dueling = False
        self.lr: Any = None  # defaults.py: it depends on what the student sees
        self.grad_clip = None
        self.train_batch_size = 256  # what `train_batch_size_per_learner` is until defaults.py sets it, likewise
        self.training_intensity: Any = None  # likewise
        # One that is worked on while the Learner learns, and one after it.
        self.max_requests_in_flight_per_env_runner = 2
        # It would ask every EnvRunner at each iteration, and wait for all; what it fetches comes with the samples.
        self._dont_auto_sync_env_runner_states = True
        # How long to wait for the first of them to come back when all EnvRunners are lost. RLlib's default is 30 s.
        self.env_runner_health_probe_timeout_s = 1.0
        self.replay_buffer_config = {
            "type": "ColumnarReplay",
            "capacity": None,  # replay.py: likewise
            "alpha": 0.0,  # above 0: prioritized
            "beta": 0.4,  # exponent of the importance weights then
            "no_local_replay_buffer": True,  # it lives in the Learners
        }
        self.offline_data_class = LabelledData
        self.output_write_episodes = False  # columns are recorded, not RLlib's episodes
        self.simple_optimizer = False  # RLlib's validate() sets it, and ours must change nothing
        self.store_buffer_in_checkpoints = True  # a resumed run continues at once, as if it had not been interrupted

    def environment(self, env: str | type | None = NotProvided, **kwargs: Any) -> Self:
        """Set the environment, as RLlib's method.

        Args:
            env: as RLlib takes it; or "path/to/file.py:Name" or "module:Name", an environment of your own: see
                docs/pages/environments.md. It is imported at once, and sent to all processes of a cluster.
            kwargs: RLlib's other arguments.

        Raises:
            ValueError: there is no such file, module or environment, or it cannot be imported.
        """
        return super().environment(env if env is NotProvided else settled(env), **kwargs)

    def offline_data(
        self,
        *,
        input_: str | Sequence[str] = NotProvided,
        output: str | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Set recorded rows to learn from, or a folder in which labelled states of an environment are recorded.

        Args:
            input_: path or URI of recorded rows, a file or a folder, best with labels, as `rllib label` and `output`
                write them; or a list. The environment is then optional; evaluations play it. With `input_filesystem`,
                which is set in the same call or before, paths of labelled files in that filesystem: bucket/folder.
            output: path or URI of a folder in which the states that EnvRunners visit are recorded, with their labels.
            kwargs: RLlib's other arguments. Of those for reading, `input_filesystem`, `input_filesystem_kwargs` and
                `dataset_num_iters_per_learner` (gradient steps of a training step; None: as many as an online run
                makes) are read here.
        """
        filesystem = kwargs.get("input_filesystem", NotProvided)
        filesystem = self.input_filesystem if filesystem is NotProvided else filesystem
        input_ = absolute_uris(input_, filesystem)
        return super().offline_data(input_=input_, output=absolute_uris(output), **kwargs)

    # Longer than other functions: it is the list of all settings, with a docstring for each.
    def distillation(
        self,
        *,
        teacher: str | os.PathLike[str] | Teacher | Sequence[Any] | Mapping[str, Any] | None = NotProvided,
        ensemble: str = NotProvided,
        trust_checkpoint: bool = NotProvided,
        loss: str = NotProvided,
        temperature: float | Literal["auto"] = NotProvided,
        student_temperature: float | None = NotProvided,
        huber_delta: float = NotProvided,
        regret_coeff: float | None = NotProvided,
        jsd_beta: float = NotProvided,
        margin: float = NotProvided,
        normalize_q_values: bool = NotProvided,
        normalize_observations: bool = NotProvided,
        gap_weighting: bool = NotProvided,
        value_gate: bool = NotProvided,
        feature_coeff: float = NotProvided,
        weight_averaging: float = NotProvided,
        bf16: bool = NotProvided,
        quantize: str | None = NotProvided,
        rollout_policy: str = NotProvided,
        teacher_explores: bool = NotProvided,
        teacher_fraction: Schedule | None = NotProvided,
        max_regret: float | None = NotProvided,
        label_fraction: float = NotProvided,
        kd_coeff: Schedule | Literal["qdagger"] = NotProvided,
        td_coeff: Schedule = NotProvided,
        compression: float | None = NotProvided,
        student: str | Mapping[str, Any] | None = NotProvided,
        students: Mapping[str, str | Mapping[str, Any]] = NotProvided,
        own_states: bool | Literal["linear"] | None = NotProvided,
        restarts: int | None = NotProvided,
        num_validation_episodes: int = NotProvided,
        init: str = NotProvided,
        num_baseline_episodes: int | None = NotProvided,
        max_staleness: int | None = NotProvided,
        held_out: float = NotProvided,
        set_aside: float = NotProvided,
        patience: int | None = NotProvided,
    ) -> Self:
        """Set teachers and students, the losses, and the states on which students learn.

        Args:
            teacher: path or URI of a checkpoint: of RLlib (an Algorithm, its rl_module folder, a Tune experiment), of
                Stable-Baselines3, CleanRL, PyTorch, safetensors, ONNX, .pt2 or TorchScript; or "cartpole", the teacher
                that comes with the package. A relative path is made absolute. A dict with the path describes a plain
                network: {"path": "net.pth", "network": {"activation": "relu"}}. Or a loaded teacher, from
                `load_teacher()`: it is then sent with the config, also to nodes without the path. It is a Q-network, or
                an actor-critic (PPO, A2C, ...) with discrete actions, whose labels are log-probabilities: for losses
                that rank actions, without TD. A list of these is an ensemble. In multi-agent settings: a dict of one
                teacher (or list) for each policy that learns. None: with `td_coeff` above 0 this is DQN itself, and its
                checkpoints can be teachers like any other.
            ensemble: how an ensemble's outputs are combined. "q" (default): the mean of the Q-values, in return units;
                the teachers' rewards must have the same scale and discount, otherwise the largest values dominate.
                "policy": the mean of their softmaxes at `temperature`, which must be a number then, for losses that
                rank actions. Low temperatures count their best actions as votes, high ones weigh how much they prefer
                them. Rusu et al. 2015, arXiv 1511.06295. Actor-critics are always combined by the mean of their
                policies; beside Q-networks they need "policy".
            trust_checkpoint: whether code in the teacher's checkpoint may be run: needed for custom RLModules and
                connectors, for .pt2 and TorchScript. False (default): it is read as data.
            loss: "kl" (default; forward KL of the action probabilities), "reverse_kl" (the student prefers one of the
                teacher's good actions; for very small students better on some tasks and much worse on others), "jsd"
                (between the two), "nll" (the teacher's greedy action) or "margin" (that action wins by a margin): with
                these the student's outputs rank the actions. "mse" or "huber": its outputs are Q-values.
                "categorical": return distributions of a C51 student, `training(num_atoms=...)`, with the support of
                its C51 teacher. losses.py has formulas and sources.
            temperature: divides the teacher's Q-values in "kl", "reverse_kl" and "jsd"; > 0, return units. Low: the
                student copies the greedy action; high: it copies all preferences, and learns less about the best one.
                "auto" (default): a tenth of the teacher's median action gap, measured as states come in; 1 for
                log-probabilities of an actor-critic, the teacher's own policy. Rusu et al. 2015, arXiv 1511.06295.
            student_temperature: divides the student's outputs in the same losses and "nll"; > 0. None (default): its
                outputs are in units of the teacher's median action gap, of Q-values or log-probabilities; with
                `td_coeff`, they are Q-values. 1: the paper's form, in which outputs are logits and must grow large
                before they are as sharp as the teacher's.
            huber_delta: error at which "huber" changes from quadratic to linear; > 0, return units, or normalised units
                with `normalize_q_values`. Low: robust; high: half of "mse".
            regret_coeff: weight of the student's expected Q-regret beside "kl", in median action gaps; ≥ 0. Low: the
                student covers all the teacher's actions, whatever a mistake costs; high: it avoids expensive mistakes,
                which matters if it is too small to avoid all. None (default): 1, with `restarts` 1, 3, 10 and 30 in
                turn; with TD 0. If labels are log-probabilities, the cost of an action is the log-probability of the
                likeliest action minus its own, in nats: high brings the student closer to the greedy action.
            jsd_beta: β of "jsd"; in [0, 1]. Low: like "kl", the student covers all the teacher's actions; high: like
                "reverse_kl", it keeps to the most frequent ones. Default: 0.5, the Jensen-Shannon divergence. Agarwal
                et al. 2023, arXiv 2306.13649.
            margin: margin by which the teacher's action must win in "margin"; > 0, in units of the student's outputs
                (with `td_coeff`: return units). Low: the action need only rank first; high: others are pushed down
                further than their values justify. Default: 0.8, as Hester et al. 2017, arXiv 1704.03732, for rewards
                around 1.
            normalize_q_values: whether "mse" and "huber" use coordinates in which the level of the Q-values and the
                differences between actions each have unit scale (default). False: raw Q-values, in which the level
                dominates the loss. The student's outputs are Q-values in both cases. Not used if a Learner overrides
                the loss, which gets raw labels.
            normalize_observations: whether a student with vector inputs learns on inputs of mean 0 and scale 1
                (default). The transformation is folded into its first layer: the student itself takes raw observations.
                Not used with `td_coeff`, nor if a Learner overrides the loss. LeCun et al. 1998, "Efficient BackProp".
            gap_weighting: whether a state's weight is the teacher's best minus worst Q-value there (how much the choice
                of action matters), scaled to a mean of 1. Default: False, equal weights. Bastani et al. 2018 (VIPER),
                arXiv 1805.08328.
            value_gate: whether distillation is limited to states in which the teacher expects a higher return than the
                student; needs `td_coeff`. Default: False. Czarnecki et al. 2019, arXiv 1902.02186.
            feature_coeff: weight of the squared distance between the features of the last hidden layers, the student's
                after a linear map that is learned with it but not saved with it; ≥ 0. Low: the student finds features
                of its own; high: it copies the teacher's. Default: 0; 0.01 in Parisotto et al. 2015, arXiv 1511.06342.
            weight_averaging: the student is the average of the weights over about this share of its gradient steps so
                far; in [0, 1). 0: the last weights. High: smoother, slower to follow. 0.1 (default) has the effect of a
                decaying learning rate, for any length of training. Not used with `td_coeff`, nor for modules
                with batch norm.
            bf16: whether the student's forward and backward passes in the Learner compute in bfloat16
                (`torch.autocast`); its weights, the loss and the optimizer stay in float32. For convolutions on a GPU;
                small networks, and most CPUs, gain nothing. Default: False.
            quantize: "int8": the student learns for weights of 8 bits, and acts with them: each unit's weights are
                integers from −127 to 127 times a step of its own, in every forward pass of the Learner, with gradients
                that ignore the rounding. C with `--int8` then has these weights, unless the inputs' ranges are very
                different. For plain MLPs of vectors without layer norm, that are not dueling; without TD, features,
                bf16 and return distributions; "mse" and "huber" need `normalize_q_values=False`. None (default): 32-bit
                weights, which an export may round. Jacob et al. 2018, arXiv 1712.05877.
            rollout_policy: policy that acts in the EnvRunners, and so visits the states to learn from: "teacher",
                "student", or "mixture" (default; DAgger, Ross et al. 2011, arXiv 1011.0686).
            teacher_explores: whether an actor-critic draws its actions from its policy when it acts in the EnvRunners.
                False (default): it takes the likeliest one. The baseline `teacher_return` and comparisons are greedy in
                both cases. A Q-network has no policy to draw from: it explores by `epsilon`.
            teacher_fraction: β, the probability that the teacher, and not the student, chooses an action under
                "mixture"; in [0, 1], a number or a schedule over env steps. High: the student learns from its teacher's
                states; low: from its own, which it meets when it plays alone. None (default): from 1 to 0.5 over 10,000
                env steps, and to 0 at 60,000; with `td_coeff` to 0 at 10,000, so that the student sees the rewards of
                its own actions.
            max_regret: highest Q-regret, in median action gaps, that an action of the student may have under "mixture";
                > 0. If its choice would cost more, the teacher acts. Low: students rarely see where mistakes lead;
                high: a poor student soon sees little else, and forgets the rest; infinite: no limit. None (default):
                30 among copies (`restarts`, and trees, which have 12 by default); no limit for a single one, or with
                `td_coeff`. Zhang and Cho 2016 (SafeDAgger), arXiv 1605.06450.
            label_fraction: share of the steps whose states the teacher labels, once the student acts alone; in (0, 1].
                Students learn from labelled states only. Low: a slow teacher takes less time; high: more to learn from.
                Default: 1.
            kd_coeff: weight λ of the distillation loss; ≥ 0, a number or a schedule over env steps. High: the student
                stays close to its teacher; low or falling (kickstarting, Schmitt et al. 2018, arXiv 1803.03835): TD can
                improve on the teacher. "qdagger": 1 − return ratio by the last evaluation, in [0, 1]; needs `td_coeff`
                and an `evaluation_interval`. Agarwal et al. 2022, arXiv 2206.01626.
            td_coeff: weight of RLlib's TD loss; ≥ 0, a number or a schedule over env steps. 0 (default): distillation
                alone.
            compression: size of the student, parameters / teacher's parameters, in (0, 1]: the teacher's architecture
                with narrower layers; an MLP with a layer of up to 32 units gets tanh instead of relu, unless
                `fcnet_activation` is set. None (default): 0.04, unless `student` or `rl_module(model_config=...)` sets
                the shape.
            student: preset shape of the student: "linear", or one of the networks for 84 × 84 images of Rusu et al.
                2015, "rusu-net1", "rusu-net2" or "rusu-net3" (25, 6.7 and 3.7 % of their teacher, "rusu-teacher"); or a
                dict as for `students`, such as {"tree": {"max_leaf_nodes": 8}}, a decision tree (docs/pages/trees.md).
                None (default): `compression` sets it.
            students: a family that learns from one stream of states, instead of one student: name → a model config
                ({"s16": {"fcnet_hiddens": [16]}}; of recurrent students also {"lstm_cell_size": 8}),
                {"compression": 0.01}, {"tree": {"max_leaf_nodes": 8}}, or a preset as for `student`.
                `rl_module(model_config=...)` has the settings that they share. They act in turn, one episode each.
                Plain MLPs of equal depth learn side by side: eight cost up to twice as much as one.
            own_states: whether each network of `students` learns from states in which it acts itself, or its teacher,
                as it would alone, or from those of all. "linear": linear students learn from their own ones, since they
                meet others than capable ones do, and the rest from all, since every new one helps. None (default):
                "linear" for vectors, False for images.
            restarts: copies of each student that learn side by side, each with first weights of its own, and by default
                with one of four weights of the Q-regret; ≥ 1. Before a checkpoint or an evaluation, and in
                `get_module()`, they play validation episodes, and the best of them, or of earlier times of training, is
                the student. First weights and weight of the Q-regret decide how well a small student plays. MLPs
                without TD, features, gradient clipping, hooks, and a loss or an optimizer of your own are stacked, so
                that 16 cost up to three times as much as one; others cost up to `restarts` times as much. Copies of a
                tree differ in how they weigh states, and in when they were grown. None (default): 1; 12 for trees.
            num_validation_episodes: validation episodes of the best copies, ≥ 0; others play a quarter or half of them.
                No other figure uses their seeds. Low: a lucky copy may win; high: seconds at every checkpoint and
                evaluation. 0: the copies are not compared, and the first one is the student. Default: 64.
            init: the student's first weights: "random", as RLlib draws them; "teacher": the teacher's most useful
                units, fitted by least squares to its outputs on the first states, before the first gradient step
                (initialization.py); or "convolutions": those of the convolutions alone, the rest random. The last two
                need a student and a teacher of RLlib's DQN architecture with the same observations, and a student with
                no more and no wider layers than the teacher's. None (default): "convolutions" for images if that is
                possible, otherwise "random".
            num_baseline_episodes: episodes of the greedy teacher, and of a random policy, played when the algorithm is
                built, for `teacher_return` and `return_ratio`; ≥ 0. None (default): as many as `evaluation_duration`,
                or 10 if that is in env steps. 0: none, and no return ratio. Those that are longer than 10,000 steps,
                and than the environment's own limit, count as they are then, with a warning.
            max_staleness: maximum policy lag of a remote EnvRunner's sample: updates that the student has made since;
                ≥ 0. 0: EnvRunners and Learner take turns, and a seed gives one result. 1: they work at the same time,
                but EnvRunners wait for the slowest of them. None (default): no process waits; only
                `env_runners(max_requests_in_flight_per_env_runner=...)` limits the lag, which the result reports as
                `staleness_max`.
            held_out: share of recorded rows (`offline_data(input_=...)`) that students do not learn from, in [0, 0.5];
                at most 8,192 rows. The results' `teacher_agreement` and `q_regret` are measured on them. Low: less
                certain figures; high: fewer rows to learn from. Default: 0.05.
            set_aside: share of the episodes of recorded rows that the run does not read at all, so that you can test on
                them later, in [0, 0.9]; if files lack `eps_id`, share of blocks of 64 rows. A hash of their names
                chooses them, so that a larger share contains those of a smaller one. Default: 0.
            patience: env steps after which the run ends by itself if no student's regret on new states has fallen by
                2 %; ≥ 1. They are counted from the end of the schedule of `teacher_fraction`. The regret is averaged
                over about a quarter of them. Low: an early end by chance; high: steps that no longer help. Usually
                50,000 to 200,000. The result's `done` is True then, which ends a trial of Tune. None (default): it does
                not end.

        Returns:
            This config. Values are checked by `validate()`, when the algorithm is built.
        """
        settings = dict(locals())  # the arguments by name, which are the names of the attributes
        del settings["self"], settings["teacher"]
        if teacher is not NotProvided:
            self.teacher = teacher  # type: ignore[assignment]  # paths become strings at once
            self.set_teachers(lambda _, given: absolute_teachers(given))
            self._loaded_teachers = {}
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def validate(self) -> None:
        """Check every value, without touching a file.

        Raises:
            ValueError: a value or a combination is not supported; the message has what was got, what was expected and
                what to do.
        """
        check_alone(self)
        check_settings(self)  # types before combinations, which compare and compute
        check_together(self)
        super().validate()
        if not self.in_evaluation and self.evaluation_config != type(self)().evaluation_config:
            evaluation = self.get_evaluation_config_object()
            if evaluation is not None:
                evaluation.validate()  # as RLlib will, but only when EnvRunners have been started

    def of_module(self, module_id: str) -> Self:
        """Return the config of a module: this one, or a copy with what is overridden for the module.

        RLlib's `get_config_for_module()` keeps its copy, whatever is set in this config afterwards.
        """
        overrides = self.algorithm_config_overrides_per_module.get(module_id)
        if not overrides:
            return self
        own = self.copy(copy_frozen=False)
        own.algorithm_config_overrides_per_module = {}
        return own.update_from_dict(overrides)

    def get_state(self) -> dict[str, Any]:
        """Return RLlib's state, and keep values of −1, which RLlib drops as deprecated: `v_min=-1.0` would be lost."""
        state, defaults = super().get_state(), vars(type(self)())
        not_state = {"algo_class", "_is_frozen"}
        lost = {name: value for name, value in vars(self).items() if name not in state and name not in not_state}
        return state | {name: value for name, value in lost.items() if value != defaults.get(name)}

    def settle_environment(self) -> None:
        """Set what follows from the environment's name, before EnvRunners read the config.

        A game by its ALE name gets the standard preprocessing, in ALE's own vector env, unless there are env-to-module
        connectors. An environment of envpool is sampled in envpool's vector env.
        """
        if pools.is_pool(self.env):
            pools.check(self.env, self.env_config)
            self.env_runners(gym_env_vectorize_mode="vector_entry_point")
        if atari.is_game(self.env) and "env_to_module" not in self.own_connectors:
            self.environment(env_config={**atari.VECTOR_DEFAULTS, **self.env_config})
            self.env_runners(gym_env_vectorize_mode="vector_entry_point")

    @property
    def env_runner_cls(self) -> type | None:
        """Return the class that was set, else `DistillEnvRunner`, or the one for several agents or recurrent students.

        In evaluation it is the class that `get_evaluation_config_object()` sets.
        """
        if self._env_runner_cls is not None or self.in_evaluation:
            return self._env_runner_cls
        if self.is_multi_agent:
            return DistillMultiAgentEnvRunner
        return RecurrentEnvRunner if self.is_recurrent else DistillEnvRunner

    @env_runner_cls.setter
    def env_runner_cls(self, env_runner_cls: type | None) -> None:
        self._env_runner_cls = env_runner_cls

    def get_default_learner_class(self) -> type:
        """Return `DistillDQNTorchLearner`."""
        return DistillDQNTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of RLlib's own DQN module."""
        return student_module_spec(self.model_config)

    def get_rl_module_spec(self, *args: Any, **kwargs: Any) -> RLModuleSpec:
        """Return RLlib's spec, with convolutions if images are seen beside other parts."""
        spec = super().get_rl_module_spec(*args, **kwargs)
        self._suit_inputs(spec)
        return spec

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        """Return RLlib's spec, or one with all students of a family; completed as by `get_rl_module_spec()`."""
        multi = self._family_spec(**kwargs) if self.members else super().get_multi_rl_module_spec(**kwargs)
        for spec in multi.rl_module_specs.values():
            self._suit_inputs(spec)
        return multi

    def _suit_inputs(self, spec: RLModuleSpec) -> None:
        check_recurrent_inputs(self, spec.observation_space)
        suit_images(spec)

    def _family_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        specs = {name: self._spec_of(shape) for name, shape in self.members.items()}
        for spec in specs.values():
            spec.observation_space, spec.action_space = kwargs["spaces"][DEFAULT_MODULE_ID]
            spec.inference_only = kwargs.get("inference_only", False)
        return MultiRLModuleSpec(rl_module_specs=specs)

    def _spec_of(self, shape: Mapping[str, Any]) -> RLModuleSpec:
        if self.own_rl_module_spec is not None:  # copies of a module of the user's
            return copy.deepcopy(self.own_rl_module_spec)
        return student_module_spec(self.model_config | shape)

    def build_env_to_module_connector(
        self, env: Any = None, spaces: Any = None, device: Any = None
    ) -> EnvToModulePipeline:
        """Return RLlib's pipeline, with connectors for masks, images and vectors after the user's."""
        pipeline = super().build_env_to_module_connector(env, spaces, device)
        add_inputs(pipeline, are_own="env_to_module" in self.own_connectors, multi_agent=self.is_multi_agent)
        return pipeline

    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """Return a config for the greedy student, in RLlib's EnvRunner with one environment, which explains failures.

        With several environments RLlib counts the episodes that end first, which favours short ones.
        """
        config = super().get_evaluation_config_object()
        if config is not None:
            overrides = self.evaluation_config
            given = overrides if isinstance(overrides, Mapping) else {}
            standard = ExplainingMultiAgentEnvRunner if self.is_multi_agent else StudentsEnvRunner
            config.env_runner_cls = given.get("env_runner_cls", standard)
            config.explore = given.get("explore", False)
            config.num_envs_per_env_runner = given.get("num_envs_per_env_runner", 1)
            if pools.is_pool(config.env):
                config.gym_env_vectorize_mode = given.get("gym_env_vectorize_mode", "sync")  # gymnasium's own
        return config

    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Return the steps of one fragment in each environment; "auto" is 32."""
        return 32 if self.rollout_fragment_length == "auto" else self.rollout_fragment_length

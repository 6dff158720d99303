"""Everything that can be configured, checked without touching a file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from rllib_kd.algorithm.settings import check_model_config, check_settings
from rllib_kd.environments import atari
from rllib_kd.schedules import Schedule, check_schedule, qdagger, value_at, values_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.names import absolute_teachers
from rllib_kd.text import did_you_mean
from rllib_kd.wire import TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q

if TYPE_CHECKING:
    from ray.rllib.connectors.env_to_module import EnvToModulePipeline
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec


INITS = ("random", "teacher")


ENSEMBLES = ("q", "policy")


ROLLOUT_POLICIES = ("teacher", "student", "mixture")


#: Keys of a model config that set how wide the student is.
WIDTH_KEYS = frozenset({"fcnet_hiddens", "head_fcnet_hiddens", "conv_filters"})


#: Student parameters / teacher parameters, where neither `compression` nor a model config says otherwise.
DEFAULT_COMPRESSION = 0.04


class DistillDQNConfig(DQNConfig):
    """Configures `DistillDQN`: everything that RLlib's `DQNConfig` has, and `.distillation(...)`.

    Defaults that differ from `DQNConfig`: ε 0.05 from the start (Rusu et al. 2015), a student that is not dueling, 16
    environments an EnvRunner in fragments of 32 steps, batches of 256 rows drawn from a columnar replay in the Learner,
    and evaluation in an EnvRunner group of its own, always with the greedy student.

    `training(replay_buffer_config={"alpha": 0.6, "beta": 0.4})` makes the replay prioritized (Schaul et al. 2016, arXiv
    1511.05952), by the TD error, or by the distillation loss where there is no TD. alpha, in [0, 1]: 0 (default) is
    uniform, 1 draws in proportion to the error. beta, in [0, 1]: 0 corrects nothing of that in the loss, 1 all.
    """

    #: `temperature="auto"` is this times the median action gap of the teacher.
    AUTO_TEMPERATURE_GAPS: ClassVar[float] = 0.1

    def __init__(self, algo_class: type | None = None):
        from rllib_kd.algorithm.algorithm import DistillDQN
        from rllib_kd.env_runner.single_agent import DistillEnvRunner

        super().__init__(algo_class=algo_class or DistillDQN)
        self.teacher: str | Teacher | list[Any] | Mapping[str, Any] | None = None
        self.ensemble = "q"
        self.trust_checkpoint = False
        self.loss = "kl"
        self.temperature: float | Literal["auto"] = "auto"
        self.student_temperature: float | None = None
        self.huber_delta = 1.0
        self.jsd_beta = 0.5
        self.margin = 0.8
        self.normalize_q_values = True
        self.gap_weighting = False
        self.value_gate = False
        self.feature_coeff = 0.0
        self.weight_averaging = 0.1
        self.bf16 = False
        self.rollout_policy = "mixture"
        self.teacher_fraction: Schedule | None = None
        self.kd_coeff: Schedule | Literal["qdagger"] = 1.0
        self.td_coeff: Schedule = 0.0
        self.compression: float | None = None
        self.student: str | None = None
        self.students: dict[str, Any] = {}
        self.init = "random"
        self.num_baseline_episodes: int | None = None
        self.max_staleness: int | None = None

        # RLlib's own fields.
        self.env_runner_cls = DistillEnvRunner
        self.num_envs_per_env_runner = 16
        self.rollout_fragment_length = 32
        self.epsilon = 0.05
        self.dueling = False
        self.lr = 3e-3
        self.grad_clip = None
        self.train_batch_size_per_learner = 256
        self.training_intensity = 32.0
        # One that is worked on while the Learner learns, and one after it.
        self.max_requests_in_flight_per_env_runner = 2
        # Asks every EnvRunner, at each iteration, and waits for all; what it is for comes with the samples.
        self._dont_auto_sync_env_runner_states = True
        # How long to wait for the first of them to come back when all EnvRunners are lost. RLlib's default is 30 s.
        self.env_runner_health_probe_timeout_s = 1.0
        self.replay_buffer_config = {
            "type": "ColumnarReplay",
            "capacity": 50_000,
            "alpha": 0.0,  # above 0: prioritized
            "beta": 0.4,  # exponent of the importance weights then
            "no_local_replay_buffer": True,  # it lives in the Learners
        }
        self.store_buffer_in_checkpoints = True  # what is resumed goes on at once, and as it would have

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
        jsd_beta: float = NotProvided,
        margin: float = NotProvided,
        normalize_q_values: bool = NotProvided,
        gap_weighting: bool = NotProvided,
        value_gate: bool = NotProvided,
        feature_coeff: float = NotProvided,
        weight_averaging: float = NotProvided,
        bf16: bool = NotProvided,
        rollout_policy: str = NotProvided,
        teacher_fraction: Schedule | None = NotProvided,
        kd_coeff: Schedule | Literal["qdagger"] = NotProvided,
        td_coeff: Schedule = NotProvided,
        compression: float | None = NotProvided,
        student: str | None = NotProvided,
        students: Mapping[str, str | Mapping[str, Any]] = NotProvided,
        init: str = NotProvided,
        num_baseline_episodes: int | None = NotProvided,
        max_staleness: int | None = NotProvided,
    ) -> DistillDQNConfig:
        """Sets what is distilled from whom, how, and on which states.

        Args:
            teacher: path or URI of a checkpoint: of RLlib (an Algorithm, its rl_module folder, a Tune experiment), of
                Stable-Baselines3, CleanRL, safetensors, ONNX or TorchScript; or "cartpole", the teacher that comes with
                the package. A path becomes absolute at once. Or a teacher that is loaded already, by `load_teacher()`:
                it then travels with the config, to where the path does not exist. A list of these is an ensemble. In
                multi-agent settings: a dict of one teacher (or list) for each policy that is to learn. None: with
                `td_coeff` above 0 this is DQN itself, and its checkpoints are teachers like any other.
            ensemble: what several teachers say together. "q" (default): the mean of their Q-values, in return units; of
                teachers with rewards on one scale and one discount, since otherwise the largest values decide.
                "policy": the mean of their softmaxes at `temperature`, which must be a number then, for losses that
                rank actions. Low temperatures count their best actions as votes, high ones weigh how much they prefer
                them. Rusu et al. 2015, arXiv 1511.06295.
            trust_checkpoint: whether what the teacher's checkpoint holds may be executed: for RLModules and connectors
                of your own, and for TorchScript. False (default): it is read as data.
            loss: "kl" (default; forward KL of the action probabilities), "reverse_kl" (keeps to one of the
                teacher's good actions; for very small students better on some tasks and much worse on others), "jsd"
                (between the two), "nll" (the teacher's greedy action) or "margin" (that action wins by a margin): the
                student's outputs rank the actions. "mse" or "huber": they are Q-values. "categorical": return
                distributions of a C51 student, `training(num_atoms=...)`, with the support of its C51 teacher.
                losses.py has formulas and sources.
            temperature: divides the teacher's Q-values in "kl", "reverse_kl" and "jsd"; > 0, return units. Low: the
                student copies the greedy action; high: it copies all preferences, and learns less about the best one.
                "auto" (default): a tenth of the teacher's median action gap, measured as states come in. Rusu et al.
                2015, arXiv 1511.06295.
            student_temperature: divides the student's outputs in the same losses and "nll"; > 0. None (default): such
                that the outputs count in median action gaps of the teacher; with `td_coeff`, such that they are
                Q-values. 1: the paper's form, in which they are logits, and must grow far before they are as sharp as
                the teacher's.
            huber_delta: where "huber" turns from quadratic to linear; > 0, return units, or normalised ones with
                `normalize_q_values`. Low: robust; high: half of "mse".
            jsd_beta: β of "jsd"; in [0, 1]. Low: as "kl", a student that covers all that the teacher does; high: as
                "reverse_kl", one that keeps to what the teacher does most. Default: 0.5, the Jensen-Shannon divergence.
                Agarwal et al. 2023, arXiv 2306.13649.
            margin: by how much the teacher's action must win in "margin"; > 0, in units of the student's outputs (with
                `td_coeff`: return). Low: it need only rank first; high: other actions are pushed further down than they
                deserve. Default: 0.8, as Hester et al. 2017, arXiv 1704.03732, for rewards around 1.
            normalize_q_values: whether "mse" and "huber" are learned in coordinates in which the level of the Q-values
                and the differences between actions have one scale each (default). False: on the raw Q-values, where
                the level takes most of the student's attention. The student puts out Q-values either way.
            gap_weighting: whether a state counts by how much the choice of action matters there, the teacher's best
                minus worst Q-value, with a mean of 1. Default: False, all states alike. Bastani et al. 2018 (VIPER),
                arXiv 1805.08328.
            value_gate: whether only the states are distilled in which the teacher expects a higher return than the
                student; needs `td_coeff`. Default: False. Czarnecki et al. 2019, arXiv 1902.02186.
            feature_coeff: weight of the squared distance between the features of the last hidden layers, the student's
                after a linear map that is learned beside it and saved nowhere in it; ≥ 0. Low: the student finds
                features of its own; high: it copies the teacher's. Default: 0; 0.01 in Parisotto et al. 2015, arXiv
                1511.06342.
            weight_averaging: the student is the average of the weights over about this share of the gradient steps so
                far; in [0, 1). 0: the last weights. High: smoother, slower to follow. 0.1 (default) does for the last
                student what a decaying learning rate does, for any length of training. Not used with `td_coeff`.
            bf16: whether the student's forward and backward passes in the Learner compute in bfloat16
                (`torch.autocast`); its weights, the loss and the optimizer stay in float32. For convolutions on a GPU;
                small networks, and most CPUs, gain nothing. Default: False.
            rollout_policy: who acts in the EnvRunners, and so whose states are learned: "teacher", "student", or
                "mixture" (default; DAgger, Ross et al. 2011, arXiv 1011.0686).
            teacher_fraction: β, the probability that the teacher chooses an action under "mixture"; in [0, 1], a number
                or a schedule over env steps. High: the teacher's states; low: the student's, which it must master in
                the end. None (default): from 1 to 0.5 over 10,000 env steps, so that a student too small to do all that
                its teacher does keeps seeing where that leads; with `td_coeff` to 0, so that it sees what its own
                actions earn.
            kd_coeff: weight λ of the distillation loss; ≥ 0, a number or a schedule over env steps. High: it stays
                with its teacher; low or falling (kickstarting, Schmitt et al. 2018, arXiv 1803.03835): TD leads it
                beyond. "qdagger": 1 − return ratio by the last evaluation, in [0, 1]; needs `td_coeff` and an
                `evaluation_interval`. Agarwal et al. 2022, arXiv 2206.01626.
            td_coeff: weight of RLlib's TD loss beside it; ≥ 0, a number or a schedule. 0 (default): pure distillation.
            compression: size of the student, parameters / teacher's parameters, in (0, 1]: the teacher's architecture
                with narrower layers. None (default): 0.04, unless `student` or `rl_module(model_config=...)` shapes the
                student.
            student: by name, "linear", or one of the networks for 84 × 84 images of Rusu et al. 2015: "rusu-net1",
                "rusu-net2" or "rusu-net3" (25, 6.7 and 3.7 % of their teacher, which is "rusu-teacher"). None
                (default): as `compression` says.
            students: a family that learns from one stream of states, instead of one student. By name a model config, as
                {"s16": {"fcnet_hiddens": [16]}}, {"compression": 0.01}, or what `student` takes;
                `rl_module(model_config=...)` has what they share. They take turns in acting, an episode each. Plain
                MLPs of one depth learn side by side: eight cost little more than one.
            init: the student's first weights: "random" (default), as RLlib draws them; or "teacher": the teacher's most
                useful units, fitted by least squares to what it computes on the first states that come in, before the
                first gradient step (initialization.py). The latter needs a student and a teacher of RLlib's DQN
                architecture that see the same, and layers no more and no wider than the teacher's.
            num_baseline_episodes: episodes of the greedy teacher, and of a random policy, that are played when the
                algorithm is built, for `teacher_return` and `return_ratio`. None (default): as many as
                `evaluation_duration`. 0: none, and no return ratio.
            max_staleness: how many updates of the student a sample of a remote EnvRunner may miss before it is learned
                from; ≥ 0. 0: none, so that EnvRunners and Learner take turns, and a seed gives one result. 1: they work
                at the same time, but EnvRunners wait for the slowest of them. None (default): nobody waits for anybody;
                what a sample misses is limited by `env_runners(max_requests_in_flight_per_env_runner=...)` alone, and
                shows in the result's `staleness_max`.

        Returns:
            This config.
        """
        if teacher is not NotProvided:
            self.teacher = teacher  # type: ignore[assignment]  # paths become strings at once
            self.set_teachers(lambda _, given: absolute_teachers(given))
        given = {
            "ensemble": ensemble,
            "trust_checkpoint": trust_checkpoint,
            "loss": loss,
            "temperature": temperature,
            "student_temperature": student_temperature,
            "huber_delta": huber_delta,
            "jsd_beta": jsd_beta,
            "margin": margin,
            "normalize_q_values": normalize_q_values,
            "gap_weighting": gap_weighting,
            "value_gate": value_gate,
            "feature_coeff": feature_coeff,
            "weight_averaging": weight_averaging,
            "bf16": bf16,
            "rollout_policy": rollout_policy,
            "teacher_fraction": teacher_fraction,
            "kd_coeff": kd_coeff,
            "td_coeff": td_coeff,
            "compression": compression,
            "student": student,
            "students": students,
            "init": init,
            "num_baseline_episodes": num_baseline_episodes,
            "max_staleness": max_staleness,
        }
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def validate(self) -> None:
        """Check every value, without touching a file.

        Raises:
            ValueError: saying what was got, what was expected and what to do.
        """
        self._check_field_names()
        self._settle_atari()
        self._settle_env_runner()
        self._check_distillation()
        self._check_scope()
        check_settings(self)
        super().validate()
        if not self.in_evaluation and self.evaluation_config != type(self)().evaluation_config:
            evaluation = self.get_evaluation_config_object()
            if evaluation is not None:
                evaluation.validate()  # as RLlib will, but only when EnvRunners have been started

    def get_state(self) -> dict[str, Any]:
        """As RLlib's, which drops every −1, its mark of deprecated fields: `v_min=-1.0` would become the default."""
        state, defaults = super().get_state(), vars(type(self)())
        not_state = {"algo_class", "_is_frozen"}
        lost = {name: value for name, value in vars(self).items() if name not in state and name not in not_state}
        return state | {name: value for name, value in lost.items() if value != defaults.get(name)}

    def _settle_atari(self) -> None:
        """A game by its name of ALE is seen through the standard preprocessing, in ALE's own vector env."""
        if atari.is_game(self.env) and self._env_to_module_connector is None and not self._is_frozen:
            self.environment(env_config={**atari.VECTOR_DEFAULTS, **self.env_config})
            self.env_runners(gym_env_vectorize_mode="vector_entry_point")

    def _settle_env_runner(self) -> None:
        from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
        from rllib_kd.env_runner.single_agent import DistillEnvRunner

        if self.is_multi_agent and self.env_runner_cls is DistillEnvRunner and not self._is_frozen:
            self.env_runner_cls = DistillMultiAgentEnvRunner

    def get_default_learner_class(self) -> type:
        """`DistillDQNTorchLearner`."""
        from rllib_kd.learner.learner import DistillDQNTorchLearner

        return DistillDQNTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib's own DQN module."""
        from rllib_kd.networks.dqn_module import student_module_spec

        return student_module_spec(self.model_config)

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        """RLlib's; of a family, all students."""
        from rllib_kd.networks.dqn_module import student_module_spec

        if not self.students:
            return super().get_multi_rl_module_spec(**kwargs)
        specs = {name: student_module_spec(self.model_config | shape) for name, shape in self.students.items()}
        for spec in specs.values():
            spec.observation_space, spec.action_space = kwargs["spaces"][DEFAULT_MODULE_ID]
            spec.inference_only = kwargs.get("inference_only", False)
        return MultiRLModuleSpec(rl_module_specs=specs)

    def build_env_to_module_connector(
        self, env: Any = None, spaces: Any = None, device: Any = None
    ) -> EnvToModulePipeline:
        """RLlib's pipeline; without connectors of one's own, images of bytes and matrices become what networks take."""
        from ray.rllib.connectors.env_to_module import FlattenObservations

        from rllib_kd.observations.images import ImagesToFloats
        from rllib_kd.observations.spaces import is_byte_image, is_matrix

        pipeline = super().build_env_to_module_connector(env, spaces, device)
        if self._env_to_module_connector is None:
            space = pipeline.input_observation_space
            if is_byte_image(space):
                pipeline.prepend(ImagesToFloats())
            elif is_matrix(space):
                pipeline.prepend(FlattenObservations())
        return pipeline

    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """The greedy student alone, in RLlib's EnvRunner (whose failures are explained), an environment at a time.

        With several environments RLlib counts the episodes that end first, which favours short ones.
        """
        from rllib_kd.env_runner.multi_agent import ExplainingMultiAgentEnvRunner
        from rllib_kd.env_runner.single_agent import StudentsEnvRunner

        config = super().get_evaluation_config_object()
        if config is not None:
            overrides = self.evaluation_config
            given = overrides if isinstance(overrides, Mapping) else {}
            standard = ExplainingMultiAgentEnvRunner if self.is_multi_agent else StudentsEnvRunner
            config.env_runner_cls = given.get("env_runner_cls", standard)
            config.explore = given.get("explore", False)
            config.num_envs_per_env_runner = given.get("num_envs_per_env_runner", 1)
        return config

    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Steps in each environment that one sampling takes; "auto" is 32."""
        return 32 if self.rollout_fragment_length == "auto" else self.rollout_fragment_length

    @property
    def given_model_config(self) -> dict[str, Any]:
        """What `rl_module(model_config=...)` was given."""
        given = self._model_config
        return dict(given) if isinstance(given, Mapping) else dataclasses.asdict(given)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns in which EnvRunners write down what the teacher says of a state."""
        if self.teacher is None:
            return ()
        optional = {TEACHER_PROBS: self.loss == "categorical", TEACHER_FEATURES: self.feature_coeff > 0.0}
        return (TEACHER_Q, *(name for name, needed in optional.items() if needed))

    def kd_coeff_at(self, env_steps: int, return_ratio: float = math.nan) -> float:
        """λ after so many env steps, with that return ratio of the student (NaN: not known yet)."""
        if self.teacher is None:
            return 0.0
        return qdagger(return_ratio) if self.kd_coeff == "qdagger" else value_at(self.kd_coeff, env_steps)

    def teacher_fraction_at(self, env_steps: int) -> float:
        """β after so many env steps, whoever acts."""
        if self.teacher is None or self.rollout_policy == "student":
            return 0.0
        if self.rollout_policy == "teacher":
            return 1.0
        default = [[0, 1.0], [10_000, 0.0 if self.uses_td else 0.5]]
        return value_at(default if self.teacher_fraction is None else self.teacher_fraction, env_steps)

    # A *group* is one teacher, one stream of states, and the students that learn from it: in multi-agent settings there
    # is one for each module with a teacher, named like it; otherwise there is one.

    @property
    def teachers(self) -> dict[str, Any]:
        """The teacher of each group, a list where it is an ensemble; none without a teacher."""
        if isinstance(self.teacher, Mapping):
            return dict(self.teacher)
        return {} if self.teacher is None else {DEFAULT_MODULE_ID: self.teacher}

    def set_teachers(self, change: Callable[[str, Any], Any]) -> None:
        """Replace the teacher of each group by `change(group, teacher)`."""
        changed = {group_id: change(group_id, teacher) for group_id, teacher in self.teachers.items()}
        self.teacher = changed if isinstance(self.teacher, Mapping) else changed.get(DEFAULT_MODULE_ID)

    def student_groups(self, module_ids: Collection[str]) -> dict[str, list[str]]:
        """The modules of each group's students."""
        if self.is_multi_agent:
            return {group_id: [group_id] for group_id in self.teachers}
        return {DEFAULT_MODULE_ID: list(module_ids)}

    def by_group(self, fragment: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The columns for each group, of a fragment as EnvRunners send it."""
        return fragment if self.is_multi_agent else {DEFAULT_MODULE_ID: fragment}

    def temperatures(self, median_gap: float) -> tuple[float, float]:
        """What divides the teacher's and the student's outputs, so that the probabilities are equally sharp.

        Args:
            median_gap: over states, of the teacher's best Q-value over its second-best one, return units.
        """
        from rllib_kd.learner.losses import POLICY_LOSSES

        temperature = self.AUTO_TEMPERATURE_GAPS * median_gap if self.temperature == "auto" else self.temperature
        if self.student_temperature is not None:
            return temperature, self.student_temperature
        if self.loss not in POLICY_LOSSES or self.uses_td:
            return temperature, temperature  # both put out Q-values
        return temperature, temperature / median_gap  # the student's outputs count in median action gaps

    @property
    def uses_td(self) -> bool:
        """Whether the TD loss ever has a weight, so that EnvRunners must send whole transitions."""
        return any(values_of(self.td_coeff))

    # --- Checks -------------------------------------------------------------------------------------------------------

    def _check_field_names(self) -> None:
        """A plain dict, as Tune passes it, may name fields that nobody reads."""
        known = set(vars(type(self)()))
        for name in vars(self):
            if name not in known and name != "class" and not name.startswith("__"):  # Tune's own start with "__"
                raise ValueError(f"DistillDQN has no config field '{name}'.{did_you_mean(name, known)}")

    def _check_distillation(self) -> None:
        from rllib_kd.learner.losses import LOSSES, POLICY_LOSSES

        for teacher in self.teachers.values():
            members = teacher if isinstance(teacher, list | tuple) else [teacher]
            if not members or not all(isinstance(member, str | os.PathLike | Teacher) for member in members):
                raise ValueError(
                    f"DistillDQN needs a teacher, got {teacher!r}. Name one with "
                    ".distillation(teacher='path/to/checkpoint'), or 'cartpole', which comes with the package."
                )
        if self.loss not in LOSSES:
            hint = did_you_mean(str(self.loss).lower(), LOSSES)
            raise ValueError(f"Unknown loss {self.loss!r}.{hint} Known are: {', '.join(LOSSES)}.")
        self._check_ensemble()
        if self.rollout_policy not in ROLLOUT_POLICIES:
            raise ValueError(
                f"Unknown rollout_policy {self.rollout_policy!r}. Known are: {', '.join(ROLLOUT_POLICIES)}."
            )
        if self.init not in INITS:
            raise ValueError(f"Unknown init {self.init!r}. Known are: {', '.join(INITS)}.")
        if not (isinstance(self.temperature, str) and self.temperature == "auto"):
            _check_positive("temperature", self.temperature, "a number, or 'auto'")
        if self.student_temperature is not None:
            _check_positive("student_temperature", self.student_temperature, "a number, or None")
        _check_positive("huber_delta", self.huber_delta, "a number")
        _check_positive("margin", self.margin, "a number")
        _check_share("jsd_beta", self.jsd_beta)
        if self.feature_coeff != 0:
            _check_positive("feature_coeff", self.feature_coeff, "a number, or 0 for no feature matching")
        if self.value_gate and not self.uses_td:
            raise ValueError(
                "`value_gate` compares the teacher's values with those that the student learns from rewards, but "
                "`td_coeff` is 0: a value above the teacher's would never be corrected. Set td_coeff, or no gate."
            )
        if not isinstance(self.weight_averaging, Real) or not 0.0 <= self.weight_averaging < 1.0:
            raise ValueError(f"`weight_averaging` must be in [0, 1), got {self.weight_averaging!r}.")
        if self.teacher_fraction is not None:
            check_schedule("teacher_fraction", self.teacher_fraction, high=1.0)
        check_schedule("td_coeff", self.td_coeff)
        if self.kd_coeff == "qdagger":
            self._check_qdagger()
        else:
            check_schedule("kd_coeff", self.kd_coeff, words=("qdagger",))
        if self.teacher is None:
            self._check_without_teacher()
        check_schedule("epsilon", self.epsilon, high=1.0)
        if self.compression is not None:
            _check_compression("`compression`", self.compression)
            if widths := WIDTH_KEYS & set(self.given_model_config):
                raise ValueError(
                    f"Both `compression`={self.compression:g} and {sorted(widths)} in rl_module(model_config=...) set "
                    "the widths of the student's layers. Set one of them."
                )
        if self.student is not None:
            self._check_preset()
        own_scale = self.student_temperature not in (None, self.temperature)
        if self.uses_td and self.loss in POLICY_LOSSES and own_scale:
            raise ValueError(
                f"With `td_coeff`, the student's outputs must be Q-values, but student_temperature="
                f"{self.student_temperature} beside temperature={self.temperature} gives them another scale. Leave it "
                "at None."
            )
        if self.loss == "categorical" and self.model_config.get("num_atoms", 1) < 2:
            raise ValueError(
                "The loss 'categorical' is for a C51 student, but this one has one output an action. Give it the "
                "teacher's support: training(num_atoms=51, v_min=..., v_max=...), or use another loss."
            )
        if not (self.uses_td or self.kd_coeff == "qdagger" or any(values_of(self.kd_coeff))):
            raise ValueError("`kd_coeff` and `td_coeff` are both 0: there is nothing to learn. Set one of them.")
        if self.max_staleness is not None:
            _check_integer("max_staleness", self.max_staleness, low=0)
        episodes = self.num_baseline_episodes
        if episodes is not None and (not isinstance(episodes, int) or episodes < 0):
            raise ValueError(f"`num_baseline_episodes` must be None or an integer ≥ 0, got {episodes!r}.")

    def _check_ensemble(self) -> None:
        from rllib_kd.learner.losses import POLICY_LOSSES

        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"Unknown ensemble {self.ensemble!r}. Known are: {', '.join(ENSEMBLES)}.")
        if self.loss == "categorical" and any(isinstance(teacher, list | tuple) for teacher in self.teachers.values()):
            raise ValueError(
                "The loss 'categorical' learns return distributions, but an ensemble has the mean of Q-values. Use "
                "another loss, or one teacher."
            )
        if self.ensemble != "policy":
            return
        if self.temperature == "auto":
            raise ValueError(
                "ensemble='policy' is the mean of the teachers' policies at `temperature`, but 'auto' is measured on "
                "that mean. Set a number, in return units: about a tenth of the usual gap between the best two "
                "Q-values. Or use ensemble='q'."
            )
        for name, makes_no_sense in (
            ("loss", self.loss not in POLICY_LOSSES),
            ("gap_weighting", bool(self.gap_weighting)),
            ("value_gate", bool(self.value_gate)),
        ):
            if makes_no_sense:
                raise ValueError(
                    f"`{name}`={getattr(self, name)!r} needs the teachers' Q-values, but ensemble='policy' has only "
                    "their mean policy. Use ensemble='q', or leave it out."
                )

    def _check_preset(self) -> None:
        _check_preset("student", self.student)
        if widths := WIDTH_KEYS & set(self.given_model_config):
            raise ValueError(
                f"Both `student`={self.student!r} and {sorted(widths)} in rl_module(model_config=...) set the widths "
                "of the student's layers. Set one of them."
            )
        if self.compression is not None:
            raise ValueError(
                f"Both `student`={self.student!r} and `compression`={self.compression:g} set the size of the student. "
                "Set one of them."
            )

    def _check_without_teacher(self) -> None:
        if not self.uses_td:
            raise ValueError(
                "DistillDQN needs a teacher, got None. Name one with .distillation(teacher='path/to/checkpoint'), or "
                "'cartpole', which comes with the package. To learn without one, as DQN does: td_coeff=1.0."
            )
        for name, makes_no_sense in (
            ("rollout_policy", self.rollout_policy == "teacher"),
            ("kd_coeff", self.kd_coeff == "qdagger"),
            ("loss", self.loss == "categorical"),
            ("compression", self.compression is not None),
            ("gap_weighting", bool(self.gap_weighting)),
            ("value_gate", bool(self.value_gate)),
            ("feature_coeff", bool(self.feature_coeff)),
            ("init", self.init != "random"),
        ):
            if makes_no_sense:
                raise ValueError(
                    f"`{name}`={getattr(self, name)!r} needs a teacher, but `teacher` is None. Leave `{name}` at its "
                    "default, or name a teacher."
                )

    def _check_qdagger(self) -> None:
        for missing, reason in (
            (not self.uses_td, "`td_coeff` is 0: as the student comes near its teacher, nothing is left to learn from"),
            (not self.evaluation_interval, "there are no evaluations: set .evaluation(evaluation_interval=...)"),
            (self.num_baseline_episodes == 0, "`num_baseline_episodes` is 0: there is nothing to compare returns with"),
        ):
            if missing:
                raise ValueError(f"kd_coeff='qdagger' is 1 − the student's return ratio, but {reason}.")

    def _check_scope(self) -> None:
        if not (self.enable_rl_module_and_learner and self.enable_env_runner_and_connector_v2):
            raise ValueError("DistillDQN runs on RLlib's new API stack only. Leave `api_stack(...)` at its defaults.")
        if self.framework_str != "torch":
            raise ValueError(f"DistillDQN needs framework 'torch', got {self.framework_str!r}.")
        self._check_multi_agent()
        self._check_students()
        if self.model_config.get("use_lstm"):
            raise ValueError("Recurrent students (`use_lstm=True`) are not supported. Stack frames instead.")
        if self.uses_td and self.num_atoms > 1:
            raise ValueError(
                f"`td_coeff` with a distributional student (num_atoms={self.num_atoms}) is not supported. Set "
                "num_atoms=1; the teacher may be distributional."
            )
        if self.num_atoms > 1 and not self.v_min < self.v_max:
            raise ValueError(
                f"Return distributions need v_min < v_max, got {self.v_min} and {self.v_max}. Set "
                "training(v_min=..., v_max=...) as in the teacher."
            )
        if self.replay_buffer_config.get("type") != "ColumnarReplay":
            raise ValueError(
                "DistillDQN has a replay of its own, in the Learners. Set only its size and priorities: "
                "training(replay_buffer_config={'capacity': ..., 'alpha': ..., 'beta': ...}). Got "
                f"{self.replay_buffer_config}."
            )
        for name in ("alpha", "beta"):
            _check_share(f"replay_buffer_config['{name}']", self.replay_buffer_config.get(name, 0.0))
        _check_positive("training_intensity", self.training_intensity, "rows learned from / env steps sampled")
        _check_integer("replay_buffer_config['capacity']", self.replay_buffer_config.get("capacity"), low=1)
        _check_integer("train_batch_size_per_learner", self.train_batch_size_per_learner, low=1)
        _check_integer("num_envs_per_env_runner", self.num_envs_per_env_runner, low=1)
        _check_integer("max_requests_in_flight_per_env_runner", self.max_requests_in_flight_per_env_runner, low=1)
        _check_integer("num_steps_sampled_before_learning_starts", self.num_steps_sampled_before_learning_starts, low=0)
        _check_integer("rollout_fragment_length", self.get_rollout_fragment_length(), low=1)
        if self.uses_td:
            _check_integer("n_step", self.n_step, low=1)
            check_schedule("gamma", self.gamma, high=1.0)
        self._check_pieces()
        _check_integer("num_learners", self.num_learners, low=0)
        if not self.in_evaluation and self.num_envs_per_env_runner < self.num_learners:
            raise ValueError(
                f"Each of the {self.num_learners} Learners takes the rows of environments of its own: set "
                f"num_envs_per_env_runner to at least {self.num_learners}, got {self.num_envs_per_env_runner}."
            )

    def _check_multi_agent(self) -> None:
        if not self.is_multi_agent:
            if isinstance(self.teacher, Mapping):
                raise ValueError(
                    f"There is a teacher for each of {sorted(self.teacher)}, but no such policies. Name them: "
                    ".multi_agent(policies=..., policy_mapping_fn=...)."
                )
            return
        policies = sorted(self.policies)
        example = "{" + ", ".join(f"'{policy}': ..." for policy in policies[:2]) + "}"
        if not isinstance(self.teacher, Mapping) or not self.teacher or not set(self.teacher) <= set(policies):
            got = sorted(self.teacher) if isinstance(self.teacher, Mapping) else repr(self.teacher)
            raise ValueError(
                f"In multi-agent settings each policy that is to learn needs a teacher of its own: "
                f".distillation(teacher={example}), with policies of {policies}. Got {got}."
            )
        trained = policies if self.policies_to_train is None else self.policies_to_train
        if not callable(trained) and set(trained) != set(self.teacher):
            raise ValueError(
                f"The policies with a teacher are {sorted(self.teacher)}, but those to be trained are "
                f"{sorted(trained)}. Set multi_agent(policies_to_train={sorted(self.teacher)})."
            )
        if self._env_to_module_connector is not None or self._module_to_env_connector is not None:
            raise ValueError("Connectors of your own are not supported in multi-agent settings. Wrap the environment.")
        if self.students or self.student:
            raise ValueError(
                "`student` and `students` are for single-agent settings. Shape the students of several policies by "
                "`compression`, or by rl_module(...)."
            )

    def _check_students(self) -> None:
        """The family, if there is one."""
        if not self.students:
            return
        for name in ("student", "compression", "_rl_module_spec"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"Both `students` and `{name.removeprefix('_')}` say what is trained. Set one of them."
                )
        known = {*(field.name for field in dataclasses.fields(DefaultModelConfig)), "compression"}
        for name, shape in self.students.items():
            where = f"`students['{name}']`"
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"The name of a student becomes that of a folder: a word, got {name!r}.")
            if isinstance(shape, str):
                _check_preset(f"student {where}:", shape)
                continue
            if not isinstance(shape, Mapping):
                raise ValueError(f"{where} must be a model config such as {{'fcnet_hiddens': [16]}}, got {shape!r}.")
            for key in shape:
                if key not in known:
                    raise ValueError(f"{where} has no setting '{key}'.{did_you_mean(str(key), known)}")
            check_model_config(f"students['{name}']", shape)
            if len({"compression"} & set(shape)) + bool(WIDTH_KEYS & set(shape)) != 1:
                raise ValueError(
                    f"{where} must have either `compression` or widths ({', '.join(sorted(WIDTH_KEYS))}), got "
                    f"{dict(shape)}."
                )
            if "compression" in shape:
                _check_compression(f"{where}: `compression`", shape["compression"])

    def _check_pieces(self) -> None:
        """RLlib's pieces that this algorithm replaces: whoever replaces them again must start from ours."""
        from rllib_kd.env_runner.multi_agent import DistillMultiAgentEnvRunner
        from rllib_kd.env_runner.single_agent import DistillEnvRunner
        from rllib_kd.learner.learner import DistillDQNTorchLearner

        if not issubclass(self.learner_class, DistillDQNTorchLearner):
            raise ValueError(f"`learner_class` must be a DistillDQNTorchLearner, got {self.learner_class.__name__}.")
        if self.in_evaluation:
            return
        expected = DistillMultiAgentEnvRunner if self.is_multi_agent else DistillEnvRunner
        if not (isinstance(self.env_runner_cls, type) and issubclass(self.env_runner_cls, expected)):
            raise ValueError(f"`env_runner_cls` must be a {expected.__name__}, got {self.env_runner_cls}.")
        if self._learner_connector is not None:
            raise ValueError("`learner_connector` has no place here: Learners get columns, not episodes. Leave it out.")
        if self.batch_mode != "truncate_episodes":
            raise ValueError(f"`batch_mode` must be 'truncate_episodes', got {self.batch_mode!r}.")


def _check_preset(what: str, name: object) -> None:
    from rllib_kd.students.sizes import PRESETS

    if name not in PRESETS:
        hint = did_you_mean(str(name).lower(), PRESETS)
        raise ValueError(
            f"Unknown {what} {name!r}.{hint} Known are: {', '.join(PRESETS)}. Others have no name: give a "
            "compression, or a model config such as {'fcnet_hiddens': [16]}."
        )


def _check_compression(what: str, value: object) -> None:
    if not isinstance(value, Real) or not 0.0 < float(value) <= 1.0:
        raise ValueError(f"{what} must be in (0, 1]: student parameters / teacher parameters. Got {value!r}.")


def _check_integer(name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"`{name}` must be an integer of at least {low}, got {value!r}.")


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")


def _check_positive(name: str, value: object, expected: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"`{name}` must be positive ({expected}), got {value!r}.")

"""A Learner that fails does not keep the others waiting, and its error is the one that is reported."""

import time
from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist

from rllib_kd import DistillDQNTorchLearner
from rllib_kd.learner.distributed import PeerFailedError, fails_with_its_peers, keeps_failure, raise_failure


class FailingLearner(DistillDQNTorchLearner):
    """One of the Learners raises, or its process ends, as its config says; the others wait for its gradients."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        if self._learner_index == 1:
            if config.learner_config_dict["dies"]:
                ray.kill(ray.get_runtime_context().current_actor)
                time.sleep(60)
            raise ArithmeticError("this loss suits no shard of mine")
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("dies", "said"),
    [(False, "this loss suits no shard of mine"), (True, "A Learner has died")],
    ids=["raises", "dies"],
)
def test_the_error_of_one_of_two_learners_is_reported_at_once(cartpole_config, build, dies, said):
    config = cartpole_config.learners(num_learners=2, num_cpus_per_learner=1)
    config.training(learner_class=FailingLearner, learner_config_dict={"dies": dies})
    algo = build(config)

    def train():
        for _ in range(10):
            algo.train()

    begun = time.monotonic()
    with pytest.raises(Exception, match=said) as raised:
        train()
    assert isinstance(raised.value, RuntimeError if dies else ArithmeticError)
    assert time.monotonic() - begun < 180


class Alone:
    """A Learner in a process group of one."""

    distributed = True

    @fails_with_its_peers
    def update(self, error=None):
        if error is not None:
            raise error
        return "updated"


@pytest.fixture
def learner():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Alone()
    if dist.is_initialized():
        dist.destroy_process_group()


def test_an_update_that_raises_ends_the_connections(learner):
    assert learner.update() == "updated"
    assert dist.is_initialized()
    with pytest.raises(KeyError, match="column"):
        learner.update(KeyError("column"))
    assert not dist.is_initialized()
    with pytest.raises(KeyError, match="column"):
        raise_failure(learner)


def test_an_error_of_the_connections_is_another_learners():
    class Lonely(Alone):
        @fails_with_its_peers
        def update(self):
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dist.ProcessGroup, "allreduce", closed)
                dist.all_reduce(torch.zeros(1))

    def closed(*arguments):
        eval(compile("raise RuntimeError('Connection closed by peer')", dist.__file__, "exec"))

    lonely = Lonely()
    with pytest.raises(PeerFailedError, match=r"Another Learner has failed .*Connection closed by peer"):
        lonely.update()
    raise_failure(lonely)  # which is none of its own
    assert not dist.is_initialized()


def test_a_restore_that_raises_is_found_afterwards():
    @keeps_failure
    def restore(self, error):
        if error is not None:
            raise error

    learner = SimpleNamespace()
    with pytest.raises(FileNotFoundError):
        restore(learner, FileNotFoundError("state"))
    with pytest.raises(FileNotFoundError, match="state"):
        raise_failure(learner)
    restore(learner, None)
    raise_failure(learner)


def test_a_learner_that_is_alone_has_no_connections():
    def fail(self):
        raise KeyError("column")

    with pytest.raises(KeyError):
        fails_with_its_peers(fail)(SimpleNamespace(distributed=False))

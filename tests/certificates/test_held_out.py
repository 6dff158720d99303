"""Recorded states that judge students: which ones, and what they find."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rllib_kd.certificates.agreement import AgreementTest, agreement_dict, fewest_units, note_on
from rllib_kd.certificates.certification import certify
from rllib_kd.certificates.held_out import HeldOutStates, RowGames, hold_out
from rllib_kd.offline.schema import DataError
from rllib_kd.offline.subset import place_of
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.offline.labelled import recorded_config, write

SHARE = 0.4


@pytest.fixture(scope="module")
def teacher():
    return Teacher(make_q_module(), source="own")


def recorded(teacher, *, num_episodes=300, length=9, seed=0, **columns):
    """Rows of episodes `e0`, `e1`, ... of random states; the first number of each is that of its episode."""
    obs = np.random.default_rng(seed).normal(size=(num_episodes * length, 4)).astype(np.float32)
    obs[:, 0] = np.repeat(np.arange(num_episodes), length) / 100
    labels = teacher.q_values(torch.tensor(obs)).numpy()
    return {"obs": obs, "teacher_q": labels, "eps_id": np.array([f"e{i}" for i in range(num_episodes)]).repeat(length)}


def held_out(folder, teacher, *, share=SHARE, keep=0.9, **settings):
    return hold_out(recorded_config(folder, teacher, **settings), teacher, share=share, keep=keep, confidence=0.95)


def test_whole_episodes_judge_that_are_neither_learned_from_nor_in_both_halves(tmp_path, teacher):
    found = held_out(write(tmp_path, recorded(teacher), row_group_size=100), teacher)
    assert found.unit == "episodes"
    assert "assumption" not in note_on(found.unit)
    choice, test = (np.unique(states._obs[:, 0].round(2)) for states in (found.choice, found.test))
    assert not set(choice) & set(test)
    for states, numbers in ((found.choice, choice), (found.test, test)):
        assert states.num_units == len(numbers)
        assert states._sizes.tolist() == [9] * len(numbers)  # over row groups and files
    places = [place_of(f"e{number}") for number in (100 * test).round().astype(int)]
    assert min(places) >= SHARE / 2
    assert max(places) < SHARE


def test_agreement_is_the_share_of_equal_actions_of_each_unit(tmp_path, teacher):
    found = held_out(write(tmp_path, recorded(teacher)), teacher)
    assert found.choice.agreements(teacher.module, 0, 20).tolist() == [1.0] * 20
    other = make_q_module(seed=3)
    everything = found.choice.agreements(other, 0, found.choice.num_units)
    states = torch.tensor(found.choice._obs)
    with torch.no_grad():
        same = teacher.q_values(states).argmax(-1) == other.compute_q_values({"obs": states})["qf_preds"].argmax(-1)
    assert everything.tolist() == pytest.approx(same.double().reshape(-1, 9).mean(1).tolist())
    assert 0 < everything.mean() < 1
    again = found.choice.agreements(other, found.choice.num_units - 1, 3)  # they begin again
    assert again.tolist() == [everything[-1], *everything[:2]]


def test_other_episodes_of_equal_files_are_other_rows(tmp_path, teacher):
    rows = recorded(teacher)
    first = held_out(write(tmp_path, rows), teacher).fingerprint
    assert held_out(write(tmp_path, rows), teacher).fingerprint == first
    renamed = rows | {"eps_id": np.array([f"x{name}" for name in rows["eps_id"]])}
    assert held_out(write(tmp_path, renamed), teacher).fingerprint != first


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.full((2_700, 1), 1), r"column 'eps_id': has the shape \[2700, 1\]; expected \[2700\]"),
        (np.append(np.arange(2_699.0), np.nan), "column 'eps_id': row 2699: has the number nan"),
    ],
)
def test_what_names_no_episodes_is_refused(tmp_path, teacher, names, message):
    np.savez(tmp_path / "a.npz", obs=recorded(teacher)["obs"], eps_id=names)
    with pytest.raises(DataError, match=message):
        held_out(str(tmp_path), teacher)


def test_of_long_episodes_some_states_are_drawn_and_of_many_episodes_the_first(tmp_path, teacher, monkeypatch):
    columns = recorded(teacher, num_episodes=60, length=400)
    columns["obs"][:, 1] = np.tile(np.arange(400), 60)  # the number of the state
    columns["teacher_q"] = teacher.q_values(torch.tensor(columns["obs"])).numpy()
    folder = write(tmp_path, columns, row_group_size=700)
    found = held_out(folder, teacher, share=0.9, keep=None).choice
    assert set(found._sizes) == {256}
    drawn = found._obs[:, 1].reshape(-1, 256)
    assert all(len(set(own)) == 256 for own in drawn)
    assert drawn.mean() == pytest.approx(199.5, abs=5 * 115 / np.sqrt(drawn.size) * np.sqrt(144 / 400))
    assert [len(set(own)) for own in found._obs[:, 0].reshape(-1, 256)] == [1] * found.num_units
    monkeypatch.setattr("rllib_kd.certificates.held_out._MOST_UNITS", 7)
    monkeypatch.setattr("rllib_kd.certificates.held_out._MOST_NUMBERS", 7 * 4 * 20)  # numbers: it thins out on the way
    monkeypatch.setattr("rllib_kd.certificates.held_out._LEAST_TO_CHOOSE", 7)
    fewer = held_out(folder, teacher, share=0.9, keep=None).choice
    assert fewer._sizes.tolist() == [20] * 7
    assert fewer._obs[::20, 0].tolist() == found._obs[::256, 0][:7].tolist()


@pytest.mark.parametrize(
    "labels", [[[1.0, -np.inf], [-np.inf, 1.0]], [[1.0, 1.0], [-2.0, -2.0]]], ids=["one is legal", "equally good"]
)
def test_illegal_actions_are_not_taken_and_equally_good_ones_agree(labels):
    states = HeldOutStates(np.zeros((2, 4), np.float32), np.array(labels, np.float32), np.array([1, 1]))
    assert states.agreements(make_q_module(), 0, 2).tolist() == [1.0, 1.0]


def test_without_episodes_blocks_of_rows_judge(tmp_path, teacher):
    columns = recorded(teacher, num_episodes=1_500)
    del columns["eps_id"]
    found = held_out(write(tmp_path, columns, row_group_size=5_000), teacher)
    assert found.unit == "blocks of 64 rows"
    assert "that blocks of 64 rows are independent is an assumption" in note_on(found.unit)
    assert set(found.choice._sizes) <= {64, 6_750 % 5_000 % 64, 5_000 % 64}


def test_the_games_are_a_certificate_of_agreement(tmp_path, teacher):
    found = held_out(write(tmp_path, recorded(teacher)), teacher)
    games = RowGames(found)

    def tested(module):
        def play(place, first, count):
            return games.certificate_episodes(SimpleNamespace(module=module), first, count)

        given = {"keep": 0.9, "alpha": 0.05, "max_episodes": found.test.num_units, "seen": np.empty(0)}
        return certify(1, play, new_test=found.new_test(), **given)[0].certificate

    assert tested(teacher.module).is_certified
    worse = tested(make_q_module(seed=3))
    assert not worse.is_certified
    assert "its agreement is below 0.9" in worse.reason
    with pytest.raises(ValueError, match="units, got"):
        games.certificate_episodes(SimpleNamespace(module=teacher.module), found.test.num_units, 1)
    assert games.validate({"a": teacher.module}, None, 5, 2).returns == {"a": [1.0, 1.0]}
    assert games.validation_baselines(0, 2).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_too_few_units_for_any_certificate_are_an_error_with_the_number_that_is_needed(tmp_path, teacher):
    folder = write(tmp_path, recorded(teacher))
    with pytest.raises(
        ValueError, match=r"\d+ episodes are held out for the certificate, 0.2 of all, but an agreement "
    ):
        held_out(folder, teacher, keep=0.97)
    with pytest.raises(ValueError, match="takes at least 118 with 95 % confidence"):
        held_out(folder, teacher, keep=0.97)
    with pytest.raises(ValueError, match=r"to choose among students, 0\.01 of all; at least 10 "):
        held_out(folder, teacher, share=0.02)
    assert held_out(folder, teacher, keep=None).test.num_units > 10  # nothing is certified


# --- The test ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.97, 0.99])
def test_the_fewest_units_certify_a_student_that_always_agrees_and_one_less_does_not(keep):
    needed = fewest_units(keep, 0.95)
    for count, is_enough in ((needed - 1, False), (needed, True)):
        test = AgreementTest(keep)
        test.add([1.0] * count)
        assert test.is_certified == is_enough
        assert (test.episodes_needed() == 0) == is_enough


@pytest.mark.parametrize(("keep", "units"), [(1.0, float("inf")), (1 - 1e-12, float("inf")), (1 - 1e-8, 356_892_231)])
def test_an_agreement_of_nearly_one_takes_many_units_and_no_memory(keep, units):
    assert fewest_units(keep, 0.95) == pytest.approx(units, rel=1e-3)


def test_what_it_says_is_about_agreement():
    test = AgreementTest(0.9, unit="episodes")
    test.add(np.random.default_rng(0).uniform(0.9, 1.0, 1_000))
    found = test.certificate()
    assert found.reason == "The agreement is at least 0.9, with 95 % confidence, after 1,000 held-out episodes."
    content = agreement_dict(found)
    assert content["is_about_return"] is False
    assert not [name for name in content if "return" in name and name != "is_about_return"]
    assert 0.9 <= content["lower"] < content["agreement"] < content["upper"] <= 1.0
    assert dataclasses.replace(found).as_dict().keys() >= {"return_ratio", "verdict"}
    with pytest.raises(ValueError, match="within bounds"):
        test.add([1.5])


def test_wrong_certificates_are_as_rare_as_promised():
    """Agreements of dependent states: an episode agrees in nearly all of its states, or in few."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        test = AgreementTest(0.9)
        test.add(np.where(rng.random(500) < 0.88, 1.0, 1 / 6))  # 0.9 on average
        wrong += test.is_certified
    assert 0 < wrong <= 20 + 3 * 4.4

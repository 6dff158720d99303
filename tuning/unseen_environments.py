"""Environments that were written after the defaults had been chosen: six with vectors, two with images.

All have chance in their resets. `unseen.py` trains teachers in them, and students. One default has changed since,
`own_states`, because of what students of Rocks, Merge2048 and SwingUp reached before.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.spaces import Box, Discrete, MultiDiscrete

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class _OwnEnv(gym.Env):
    """An environment without settings, made with a config as RLlib makes them."""

    def __init__(self, config: Any = None):
        pass


class Inventory(_OwnEnv):
    """A shop orders 0 to 10 of an article each day, which come two days later; customers are a Poisson process.

    They have a week's rhythm. An episode is 100 days. Observations: stock, both orders that are on their way, and the
    day of the week as sine and cosine, above 0.
    """

    observation_space = Box(0.0, 60.0, (5,), np.float32)
    action_space = Discrete(11)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Open the shop, with any stock, on any day."""
        super().reset(seed=seed)
        self._stock, self._day = int(self.np_random.integers(20)), int(self.np_random.integers(7))
        self._coming, self._left = [0, 0], 100
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Order, and sell for a day. What is sold pays; orders, stock and customers who go away cost."""
        self._coming.append(int(action))
        self._stock = min(self._stock + self._coming.pop(0), 30)
        wanted = int(self.np_random.poisson(4 + 3 * np.sin(2 * np.pi * self._day / 7)))
        sold = min(wanted, self._stock)
        self._stock -= sold
        self._day, self._left = (self._day + 1) % 7, self._left - 1
        cost = int(action) + 0.1 * self._stock + (wanted - sold) + (0.5 if action else 0.0)
        return self._look(), float(2 * sold - cost), False, self._left == 0, {}

    def _look(self) -> np.ndarray:
        angle = 2 * np.pi * self._day / 7
        return np.array([self._stock, *self._coming, 1 + np.sin(angle), 1 + np.cos(angle)], np.float32)


class Junction(_OwnEnv):
    """A traffic light with four phases, each for two of eight lanes; a change of phase costs a step of yellow.

    Cars come by Poisson processes, whose rates each episode of 150 steps draws. Observations: the lanes' queues, the
    phase, and whether it is yellow. The reward is the number of cars that wait, below 0.
    """

    observation_space = Box(0.0, 1.0, (13,), np.float32)
    action_space = Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with some cars in each lane."""
        super().reset(seed=seed)
        self._rates = self.np_random.dirichlet(np.ones(8)) * 1.3
        self._queues = self.np_random.integers(0, 6, 8)
        self._phase, self._yellow, self._left = 0, 0, 150
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Keep the phase, or begin another."""
        if int(action) != self._phase:
            self._phase, self._yellow = int(action), 1
        elif self._yellow:
            self._yellow -= 1
        if not self._yellow:
            lanes = slice(2 * self._phase, 2 * self._phase + 2)
            self._queues[lanes] = np.maximum(self._queues[lanes] - 2, 0)
        self._queues = np.minimum(self._queues + self.np_random.poisson(self._rates), 20)
        self._left -= 1
        return self._look(), -float(self._queues.sum()) / 20, False, self._left == 0, {}

    def _look(self) -> np.ndarray:
        return np.concatenate([self._queues / 20, np.eye(4)[self._phase], [self._yellow]]).astype(np.float32)


class Pendulum(PendulumEnv):
    """Gymnasium's pendulum with five torques, for 200 steps."""

    _TORQUES = (-2.0, -0.7, 0.0, 0.7, 2.0)

    def __init__(self, config: Any = None):
        super().__init__()
        self.action_space = Discrete(len(self._TORQUES))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at any angle."""
        self._left = 200
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        """Turn."""
        self._left -= 1
        obs, reward, _, _, info = super().step(np.array([self._TORQUES[int(action)]]))
        return obs, float(reward), False, self._left == 0, info


class SwingUp(CartPoleEnv):
    """Gymnasium's cart and pole, which hangs down at first; three forces, 500 steps; the reward is the pole's height.

    Observations: the cart's position and speed, cosine and sine of the pole's angle, and its angular speed. The episode
    ends if the cart leaves the track.
    """

    def __init__(self, config: Any = None):
        super().__init__()
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (5,), np.float32), Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin nearly at rest."""
        gym.Env.reset(self, seed=seed)
        self._now, self._left = self.np_random.uniform(-0.1, 0.1, 4) + np.array([0, 0, np.pi, 0]), 500
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Push to the left, not at all, or to the right, for two steps of 0.01 s."""
        x, v, angle, speed = self._now
        force = self.force_mag * (int(action) - 1)
        for _ in range(2):
            cos, sin = np.cos(angle), np.sin(angle)
            push = (force + self.polemass_length * speed**2 * sin) / self.total_mass
            turn = (self.gravity * sin - cos * push) / (
                self.length * (4 / 3 - self.masspole * cos**2 / self.total_mass)
            )
            pull = push - self.polemass_length * turn * cos / self.total_mass
            x, v, angle, speed = x + 0.01 * v, v + 0.01 * pull, angle + 0.01 * speed, speed + 0.01 * turn
        self._now, self._left = np.array([x, v, angle, speed]), self._left - 1
        is_gone = bool(abs(x) > self.x_threshold)
        return self._look(), 0.0 if is_gone else float(1 + np.cos(angle)) / 2, is_gone, self._left == 0, {}

    def _look(self) -> np.ndarray:
        x, v, angle, speed = self._now
        return np.array([x, v, np.cos(angle), np.sin(angle), speed], np.float32)


class Merge2048(_OwnEnv):
    """The game 2048 on a board of 3 × 3, with a mask of the moves that change the board.

    Observations: each field's exponent of 2. A merge pays a 64th of its new tile.
    """

    observation_space = MultiDiscrete([12] * 9)
    action_space = Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with two tiles."""
        super().reset(seed=seed)
        self._board, self._left = np.zeros((3, 3), np.int64), 400
        self._drop()
        self._drop()
        return self._board.ravel().copy(), {}

    def step(self, action: Any) -> Step:
        """Move all tiles; a new one comes."""
        moved, gain = self._moved(int(action))
        self._left -= 1
        if (moved != self._board).any():
            self._board = moved.copy()
            self._drop()
        is_over = not any((self._moved(move)[0] != self._board).any() for move in range(4))
        return self._board.ravel().copy(), gain / 64, is_over, self._left == 0, {}

    def action_masks(self) -> np.ndarray:
        """Return which moves change the board; all, when none does."""
        legal = np.array([(self._moved(move)[0] != self._board).any() for move in range(4)])
        return legal if legal.any() else ~legal

    def _drop(self) -> None:
        free = np.argwhere(self._board == 0)
        row, column = free[self.np_random.integers(len(free))]
        self._board[row, column] = 2 if self.np_random.random() < 0.1 else 1

    def _moved(self, move: int) -> tuple[np.ndarray, float]:
        turned, gain = self._slid(np.rot90(self._board, move))
        return np.rot90(turned, -move), gain

    @staticmethod
    def _slid(board: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the board after a move to the left, and the sum of the new tiles."""
        out, gain = np.zeros_like(board), 0.0
        for row, line in zip(out, board, strict=True):
            tiles = [int(tile) for tile in line if tile]
            merged: list[int] = []
            while tiles:
                tile = tiles.pop(0)
                if tiles and tiles[0] == tile:
                    tile = tiles.pop(0) + 1
                    gain += 2.0**tile
                merged.append(tile)
            row[: len(merged)] = merged
        return out, gain


class Rocks(_OwnEnv):
    """A ship without brakes collects beacons on a torus, between four rocks that drift; a rock ends the episode.

    Observations: the ship's velocity and heading, then for the beacon and each rock, the nearest first, where it is and
    how fast, seen from the ship. A beacon pays 1, and an episode has at most 300 steps.
    """

    observation_space = Box(-2.0, 2.0, (4 + 2 + 4 * 4,), np.float32)
    action_space = Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at rest in the middle, and the rocks at least 0.4 away."""
        super().reset(seed=seed)
        self._place, self._speed = np.zeros(2), np.zeros(2)
        self._heading, self._left = self.np_random.uniform(0, 2 * np.pi), 300
        self._beacon = self.np_random.uniform(-1, 1, 2)
        angle = self.np_random.uniform(0, 2 * np.pi, (4, 1))
        self._rocks = self.np_random.uniform(0.4, 1, (4, 1)) * np.hstack([np.cos(angle), np.sin(angle)])
        self._drift = self.np_random.uniform(-0.03, 0.03, (4, 2))
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Drift, turn to the left or to the right, or fire."""
        self._heading += (0.0, 0.4, -0.4, 0.0)[int(action)]
        if int(action) == 3:
            self._speed += 0.02 * np.array([np.cos(self._heading), np.sin(self._heading)])
        self._speed *= min(1.0, 0.1 / max(float(np.linalg.norm(self._speed)), 1e-9))
        self._place = self._wrapped(self._place + self._speed)
        self._rocks = self._wrapped(self._rocks + self._drift)
        self._left -= 1
        is_there = bool(np.linalg.norm(self._wrapped(self._beacon - self._place)) < 0.15)
        if is_there:
            self._beacon = self.np_random.uniform(-1, 1, 2)
        is_hit = bool((np.linalg.norm(self._wrapped(self._rocks - self._place), axis=1) < 0.12).any())
        return self._look(), float(is_there) - float(is_hit), is_hit, self._left == 0, {}

    @staticmethod
    def _wrapped(places: np.ndarray) -> np.ndarray:
        return (places + 1) % 2 - 1

    def _look(self) -> np.ndarray:
        own = [*(10 * self._speed), np.cos(self._heading), np.sin(self._heading)]
        seen = self._wrapped(self._rocks - self._place)
        nearest = np.argsort(np.linalg.norm(seen, axis=1))
        rocks = np.hstack([seen, 10 * (self._drift - self._speed)])[nearest]
        return np.concatenate([own, self._wrapped(self._beacon - self._place), rocks.ravel()]).astype(np.float32)


class Ghosts(_OwnEnv):
    """A player collects food between the pillars of a room of 9 × 9, from three ghosts that follow it half of the time.

    Observations: four planes of bytes, for pillars, food, player and ghosts. One action of ten is drawn at random. Food
    pays 1, a ghost ends the episode, which has at most 200 steps.
    """

    observation_space = Box(0, 255, (9, 9, 4), np.uint8)
    action_space = Discrete(5)
    _MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])

    def __init__(self, config: Any = None):
        self._pillars = np.zeros((9, 9), bool)
        self._pillars[2:7:2, 2:7:2] = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin below, with the ghosts above."""
        super().reset(seed=seed)
        self._player, self._ghosts, self._left = np.array([8, 4]), np.array([[0, 0], [0, 4], [0, 8]]), 200
        self._lay_food()
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Stay, or go up, down, to the left or to the right; then the ghosts go."""
        if self.np_random.random() < 0.1:
            action = self.np_random.integers(5)
        self._player = self._to(self._player, self._MOVES[int(action)])
        is_caught = self._is_caught()
        for i, ghost in enumerate(self._ghosts):
            places = [self._to(ghost, move) for move in self._MOVES[1:]]
            follows = self.np_random.random() < 0.5
            distances = [np.abs(place - self._player).sum() for place in places]
            self._ghosts[i] = places[int(np.argmin(distances)) if follows else self.np_random.integers(4)]
        is_caught = is_caught or self._is_caught()
        reward = float(self._food[tuple(self._player)])
        self._food[tuple(self._player)] = False
        if not self._food.any():
            self._lay_food()
        self._left -= 1
        return self._look(), reward, is_caught, self._left == 0, {}

    def _lay_food(self) -> None:
        free = np.flatnonzero(~self._pillars)
        self._food = np.zeros((9, 9), bool)
        self._food.flat[self.np_random.choice(free, 12, replace=False)] = True

    def _to(self, place: np.ndarray, move: np.ndarray) -> np.ndarray:
        new = np.clip(place + move, 0, 8)
        return place if self._pillars[tuple(new)] else new

    def _is_caught(self) -> bool:
        return bool((self._ghosts == self._player).all(1).any())

    def _look(self) -> np.ndarray:
        planes = np.zeros((9, 9, 4), np.uint8)
        planes[self._pillars, 0] = planes[self._food, 1] = 255
        planes[(*self._player, 2)] = 255
        planes[(*self._ghosts.T, 3)] = 255
        return planes


class Juggler(_OwnEnv):
    """A paddle keeps three balls in the air, in grey pictures of 32 × 32: this one and the last.

    A ball bounces off the paddle in a direction that chance turns, and pays 1. One that falls ends the episode, which
    has at most 500 steps.
    """

    observation_space = Box(0, 255, (32, 32, 2), np.uint8)
    action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Throw the balls up, from three heights."""
        super().reset(seed=seed)
        self._balls = np.column_stack([self.np_random.uniform(4, 28, 3), [18.0, 12.0, 6.0]])
        self._speeds = np.column_stack([self.np_random.uniform(-0.4, 0.4, 3), np.zeros(3)])
        self._paddle, self._left, self._last = 16.0, 500, np.zeros((32, 32), np.uint8)
        return self._look(), {}

    def step(self, action: Any) -> Step:
        """Go to the left, stay, or go to the right."""
        self._paddle = float(np.clip(self._paddle + 1.5 * (int(action) - 1), 3, 29))
        self._speeds[:, 1] += 0.03
        self._balls += self._speeds
        aside = (self._balls[:, 0] < 1) | (self._balls[:, 0] > 31)
        self._speeds[aside, 0] *= -1
        self._balls[:, 0] = np.clip(self._balls[:, 0], 1, 31)
        is_low = (self._balls[:, 1] >= 29) & (self._speeds[:, 1] > 0)
        is_caught = is_low & (np.abs(self._balls[:, 0] - self._paddle) <= 3.5)
        for ball in np.flatnonzero(is_caught):
            self._speeds[ball] = self.np_random.uniform(-0.4, 0.4), -self.np_random.uniform(1.0, 1.2)
        self._left -= 1
        is_lost = bool((is_low & ~is_caught).any())
        return self._look(), float(is_caught.sum()), is_lost, self._left == 0, {}

    def _look(self) -> np.ndarray:
        now = np.zeros((32, 32), np.uint8)
        left = round(self._paddle)
        now[30:32, left - 3 : left + 3] = 128
        for x, y in np.clip(self._balls, 0, 31).astype(int):
            now[max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1] = 255
        seen, self._last = np.stack([now, self._last], axis=-1), now
        return seen

"""Plans one push at a time by trying many in a private copy of the simulation.

All possible pushes are tried from where they start; the best are varied; the best of those are
verified together with the walk to their start. The metric drops as far as it can be made to drop by
one push, for the price of its duration.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diffusion_policy.env.pusht.expert.contacts import Push, possible_pushes
from diffusion_policy.env.pusht.expert.metric import SURE_SUCCESS, Phase, Style, phase_for
from diffusion_policy.env.pusht.expert.route import RouteMap, Way, pace
from diffusion_policy.env.pusht.expert.scratch import Scratch, Situation
from diffusion_policy.env.pusht.geometry import Point

_N_FINALISTS = 6
_N_REFINED = 10
_TOUCH_TOLERANCE = 1.5  # px + 50 * rad the T may move while the agent walks
_DETOUR_TEMPERATURE = 40.0  # px of extra way that make the other way round e times rarer
_SUCCESS_SCORE = -100.0
_MAX_LEVEL = 4


class Trial(NamedTuple):
    """A push that was tried on its own."""

    score: float
    push: Push


@dataclass
class Plan:
    """Targets to follow.

    Attributes:
        targets: One per action: the walk, then the push.
        n_walk: How many of them belong to the walk.
        push: What they lead to.
        promised: Value of the phase's metric at the end.
        phase: The phase it was made in.
        score: Lower is better; comparable within one call of the planner.
        succeeds: Whether the goal is reached during the plan.
    """

    targets: list[Point]
    n_walk: int
    push: Push
    promised: float
    phase: Phase
    score: float
    succeeds: bool


@dataclass
class Planner:
    """The expert's head.

    Args:
        style: Habits of this demonstrator.
        rng: Decides between nearly equal choices.
    """

    style: Style
    rng: np.random.Generator
    scratch: Scratch = field(default_factory=Scratch)
    _level: int = 0  # how many times in a row no progress was found
    _maps: dict[float, RouteMap] = field(default_factory=dict)
    _tolerated_motion: float = _TOUCH_TOLERANCE

    def plan(self, now: Situation) -> Plan | None:
        """The next push, or None if there is none that helps (even when trying harder)."""
        while True:
            phase = phase_for(now.block, self.style, self._level)
            before = phase.metric(now.block)
            plan = self._search(now, phase, before)
            kicked = self._level >= 2
            if plan is not None and (plan.succeeds or before - plan.promised >= phase.worth_doing):
                self._level = 0
                return plan
            if plan is not None and kicked:
                self._level = 1  # worse for now, to get out of a dead end
                return plan
            if self._level == _MAX_LEVEL:
                return None
            self._level += 1

    def rewalk(self, now: Situation, plan: Plan) -> Plan | None:
        """The same push again after the agent was put off its way; None if it no longer works."""
        self._face(now)
        phase = plan.phase
        verified = self._verify(now, plan.push, phase)
        if verified is None or verified.promised > plan.promised + self.tolerance(phase):
            return None
        return verified

    def still_works(self, now: Situation, plan: Plan, done: int) -> bool:
        """Whether the rest of ``plan`` still leads to what it promised."""
        scratch = self.scratch
        scratch.load(now)
        for k, target in enumerate(plan.targets[done:], start=done):
            scratch.advance(target)
            if plan.succeeds and scratch.coverage > SURE_SUCCESS:
                return True
            if k == plan.n_walk - 1 and _moved(now, scratch) > self._tolerated_motion:
                return False
        return plan.phase.metric(scratch.block) <= plan.promised + self.tolerance(plan.phase)

    @staticmethod
    def tolerance(phase: Phase) -> float:
        """How much less than promised is still fine."""
        return 1.0 if phase.fine else 3.0

    def _face(self, now: Situation) -> None:
        """Get ready for a new situation."""
        self._maps = {}
        # Random starts can overlap (agent and T, T and wall); then the T slides free whatever the
        # agent does.
        self.scratch.load(now)
        for _ in range(10):
            self.scratch.advance(now.agent)
        self._tolerated_motion = _TOUCH_TOLERANCE + _moved(now, self.scratch)

    # ------------------------------------------------------------------ the three stages

    def _search(self, now: Situation, phase: Phase, before: float) -> Plan | None:
        self._face(now)
        pushes = possible_pushes(now.block, phase.speed, self._level)
        walks = self._map(now, 9.0).lengths(np.array([p.start for p in pushes]))
        trials = [
            self._try(now, push, phase, before, walk)
            for push, walk in zip(pushes, walks, strict=True)
            if math.isfinite(walk)
        ]
        trials = sorted((t for t in trials if t is not None), key=lambda t: t.score)
        if not trials:
            return None
        if self._level < 2:
            trials = self._one_group(trials, phase.temperature)
        trials = self._refine(now, trials, phase, before)
        return self._choose(now, trials, phase)

    def _try(
        self, now: Situation, push: Push, phase: Phase, before: float, walk: float
    ) -> Trial | None:
        """Score of a push on its own, over its best duration; None if it never helps."""
        scratch = self.scratch
        scratch.load(now.with_agent_at(push.start))
        allowed = before - phase.least_gain + 4.0 * max(0, self._level - 1)
        best_score, best_metric, first = math.inf, math.inf, None
        for k, target in enumerate(push.targets(phase.length), start=1):
            scratch.advance(target)
            metric = phase.metric(scratch.block)
            first = metric if first is None else first
            if metric <= allowed:
                price = phase.price * (k + walk / self.style.approach_speed)
                best_score = min(best_score, metric + price)
            best_metric = min(best_metric, metric)
            if metric > best_metric + phase.patience or metric > 1.35 * first + 10.0:
                break
        return Trial(best_score, push) if best_score < math.inf else None

    def _one_group(self, trials: list[Trial], temperature: float) -> list[Trial]:
        """Settle for one region of the T's outline, mostly a good one: variety for the learner."""
        groups: list[list[Trial]] = []
        for trial in trials:
            if trial.score > trials[0].score + 4 * temperature:
                break
            for group in groups:
                if math.dist(group[0].push.start, trial.push.start) < 35.0:
                    group.append(trial)
                    break
            else:
                groups.append([trial])
        scores = np.array([group[0].score for group in groups])
        chosen = groups[_draw(self.rng, scores, temperature)]
        kept = {id(trial) for trial in chosen}
        # The others stay at the end, for the case that nothing in the group can be reached.
        return chosen + [trial for trial in trials if id(trial) not in kept]

    def _refine(
        self, now: Situation, trials: list[Trial], phase: Phase, before: float
    ) -> list[Trial]:
        """Vary the first trials; the best of old and new first."""
        n_variants, scale = (8, 1.0) if self._level == 0 else (12, 1.3)
        head = trials[:_N_REFINED]
        varied = list(head)
        for trial in head:
            for _ in range(n_variants):
                push = trial.push.varied(self.rng, phase.turn_sigma, scale)
                if not push.is_possible(now.block):
                    continue
                walk = float(self._map(now, 9.0).lengths(np.array([push.start]))[0])
                if math.isfinite(walk):
                    result = self._try(now, push, phase, before, walk)
                    if result is not None:
                        varied.append(result)
        varied.sort(key=lambda t: t.score)
        rest = trials[_N_REFINED:]
        return varied + rest[:: max(1, len(rest) // 20)]

    def _choose(self, now: Situation, trials: list[Trial], phase: Phase) -> Plan | None:
        """The best of the first few pushes that can be reached."""
        plans: list[Plan] = []
        for trial in trials:
            plan = self._verify(now, trial.push, phase)
            if plan is not None:
                plans.append(plan)
                if len(plans) == _N_FINALISTS:
                    break
        if not plans:
            return None
        if self._level >= 2:
            scores = np.array([plan.score for plan in plans])
            return plans[_draw(self.rng, scores, 2.0 * (self._level - 1))]
        return min(plans, key=lambda plan: plan.score)

    # ------------------------------------------------------------------ walk and push together

    def _verify(self, now: Situation, push: Push, phase: Phase) -> Plan | None:
        walk = self._walk(now, push, phase)
        if walk is None:
            return None
        trace = self._trace(now, walk, push, phase)
        if trace.success_at is not None:
            n = trace.success_at + 1
            score = _SUCCESS_SCORE + phase.price * n
            promised = trace.metrics[trace.success_at - len(walk)]
            return Plan(trace.targets[:n], len(walk), push, promised, phase, score, True)
        if not trace.metrics:
            return None
        costs = [m + phase.price * k for k, m in enumerate(trace.metrics)]
        stop = int(np.argmin(costs))
        plans = [
            self._truncated(now, walk, push, phase, trace.agents[j], hold)
            for j in {stop, max(0, stop - 1)}
            for hold in ((1, 2) if phase.fine else (1,))
        ]
        return min(plans, key=lambda plan: plan.score)

    def _walk(self, now: Situation, push: Push, phase: Phase) -> list[Point] | None:
        """Targets that bring the agent to the start of a push without moving the T."""
        cruise = self.style.approach_speed
        for inflation, speed in (
            (9.0, cruise),
            (13.0, 0.6 * cruise),
            (8.0, 0.6 * cruise),
            (5.0, 0.5 * cruise),
        ):
            ways = self._map(now, inflation).ways(push.start)
            if not ways:
                continue
            way = self._pick_way(ways)
            targets = pace(way.points, speed, 0.7 * phase.speed)
            if phase.fine:
                targets.append(targets[-1])  # arrive before touching
            self.scratch.load(now)
            for target in targets:
                self.scratch.advance(target)
            if _moved(now, self.scratch) <= self._tolerated_motion:
                return targets
        return None

    def _pick_way(self, ways: list[Way]) -> Way:
        """Mostly the shorter way round the T."""
        return ways[_draw(self.rng, np.array([w.length for w in ways]), _DETOUR_TEMPERATURE)]

    def _trace(self, now: Situation, walk: list[Point], push: Push, phase: Phase) -> "_Trace":
        """Simulate walk and push, noting everything after each push action."""
        scratch = self.scratch
        scratch.load(now)
        trace = _Trace(walk + push.targets(phase.length + 3))
        for k, target in enumerate(trace.targets):
            scratch.advance(target)
            if k < len(walk):
                continue
            trace.metrics.append(phase.metric(scratch.block))
            trace.agents.append(scratch.agent)
            if scratch.coverage > SURE_SUCCESS:
                trace.success_at = k
                break
        return trace

    def _truncated(
        self,
        now: Situation,
        walk: list[Point],
        push: Push,
        phase: Phase,
        end: Point,
        hold: int,
    ) -> Plan:
        """Walk, then push only until the agent is at ``end``, where it stops."""
        targets = list(walk)
        for k, target in enumerate(push.targets(phase.length + 3)):
            # Curved pushes: progress counts along the heading of each action.
            hx, hy = push.heading(k)
            if (end[0] - target[0]) * hx + (end[1] - target[1]) * hy <= 0:
                break
            targets.append(target)
        targets += [end] * (1 + hold)

        scratch = self.scratch
        scratch.load(now)
        for k, target in enumerate(targets):
            scratch.advance(target)
            if scratch.coverage > SURE_SUCCESS:
                score = _SUCCESS_SCORE + phase.price * (k + 1)
                metric = phase.metric(scratch.block)
                return Plan(targets[: k + 1], len(walk), push, metric, phase, score, True)
        metric = phase.metric(scratch.block)
        score = metric + phase.price * len(targets)
        return Plan(targets, len(walk), push, metric, phase, score, False)

    def _map(self, now: Situation, inflation: float) -> RouteMap:
        if inflation not in self._maps:
            self._maps[inflation] = RouteMap(now.block, now.agent, inflation)
        return self._maps[inflation]


@dataclass
class _Trace:
    targets: list[Point]
    metrics: list[float] = field(default_factory=list)  # after each push action
    agents: list[Point] = field(default_factory=list)
    success_at: int | None = None  # index into targets


def _moved(before: Situation, scratch: Scratch) -> float:
    """How far the T was displaced: px + 50 * rad."""
    x, y, angle = scratch.block
    return math.dist((x, y), before.block[:2]) + 50.0 * abs(angle - before.block[2])


def _draw(rng: np.random.Generator, costs: np.ndarray, temperature: float) -> int:
    """An index, with probability exp(-cost / temperature) up to normalisation."""
    weights = np.exp(-(costs - costs.min()) / temperature)
    return int(rng.choice(len(costs), p=weights / weights.sum()))

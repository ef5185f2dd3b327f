"""The scripted expert: geometry of its ways, faithfulness of its simulation, and that it solves the
task.
"""

import math

import numpy as np
import pytest
import shapely

from diffusion_policy.env.pusht.expert.contacts import Push, possible_pushes
from diffusion_policy.env.pusht.expert.episode import (
    Disturbance,
    Start,
    draw_state,
    record_episode,
)
from diffusion_policy.env.pusht.expert.metric import Style, outline_distance, phase_for
from diffusion_policy.env.pusht.expert.planner import Planner
from diffusion_policy.env.pusht.expert.route import CLEARANCE, T_SHAPE, RouteMap, pace
from diffusion_policy.env.pusht.expert.scratch import Scratch, observe
from diffusion_policy.env.pusht.geometry import (
    GOAL_POSE,
    OUTLINE,
    goal_coverage,
    to_local,
    to_world,
)
from diffusion_policy.env.pusht.pusht_env import PushTEnv
from diffusion_policy.env.pusht.world import AGENT_RADIUS

BLOCK = (256.0, 200.0, 0.0)


def test_local_and_world_frames_are_inverse():
    points = [(1.0, 2.0), (-30.0, 4.0)]
    pose = (100.0, -20.0, 2.1)
    np.testing.assert_allclose(to_local(to_world(points, pose), pose), points)


def test_the_scratch_simulation_predicts_the_real_one():
    env = PushTEnv(reset_to_state=[256.0, 150.0, 256.0, 200.0, 0.3])
    env.reset()
    scratch = Scratch()
    for t in range(20):
        target = (256.0 + 2 * t, 160.0 + 4 * t)
        scratch.load(observe(env.world))
        scratch.advance(target)
        env.step(target)
        assert math.dist(scratch.agent, env.agent.position) < 1e-9
        assert math.dist(scratch.block[:2], env.block.position) < 0.05
    assert math.dist(env.block.position, (256, 200)) > 20


def test_a_loaded_situation_forgets_what_was_tried_before():
    env = PushTEnv()
    env.reset(seed=2)
    now = observe(env.world)
    results = []
    scratch = Scratch()
    for detour in (False, True):
        if detour:
            scratch.load(now)
            for _ in range(5):
                scratch.advance(now.block[:2])
        scratch.load(now)
        for _ in range(5):
            scratch.advance((now.block[0] + 20, now.block[1]))
        results.append((*scratch.agent, *scratch.block))
    np.testing.assert_allclose(*results, atol=1e-9)


def test_ways_keep_clear_of_the_t_and_come_shortest_first():
    agent, goal = (256.0, 150.0), (256.0, 360.0)
    ways = RouteMap(BLOCK, agent, inflation=9.0).ways(goal)
    assert len(ways) == 2
    assert ways[0].length <= ways[1].length
    sides = set()
    for way in ways:
        assert way.points[0] == pytest.approx(agent)
        assert way.points[-1] == goal
        line = shapely.LineString(to_local(way.points, BLOCK))
        assert line.distance(T_SHAPE) >= CLEARANCE - 1e-6
        assert line.length == pytest.approx(way.length)
        sides.add(way.points[1][0] > BLOCK[0])
    assert sides == {False, True}


def test_a_visible_goal_is_reached_straight():
    way = RouteMap(BLOCK, (100.0, 100.0), inflation=9.0).ways((400.0, 100.0))[0]
    assert way.points == [pytest.approx((100.0, 100.0)), (400.0, 100.0)]


def test_an_agent_that_touches_the_t_first_steps_back():
    agent = (256.0, 200.0 - 15.0)
    way = RouteMap(BLOCK, agent, inflation=9.0).ways((256.0, 100.0))[0]
    assert way.points[0] == agent
    assert way.points[1] == pytest.approx((256.0, 200.0 - 20.0), abs=0.1)


def test_ways_do_not_leave_the_window():
    ways = RouteMap((256.0, 30.0, 0.0), (150.0, 60.0), inflation=9.0).ways((360.0, 60.0))
    assert len(ways) == 1
    assert all(8 <= v <= 504 for point in ways[0].points for v in point)


def test_walking_speed_is_bounded_and_slow_at_corners_and_at_the_end():
    corner = (200.0, 100.0)
    targets = [(100.0, 100.0), *pace([(100.0, 100.0), corner, (200.0, 300.0)], 15.0, 5.0)]
    steps = np.linalg.norm(np.diff(targets, axis=0), axis=1)
    assert targets[-1] == pytest.approx((200.0, 300.0))
    assert steps.max() <= 15.0 + 1e-6
    assert steps[0] < 8
    near_corner = min(range(len(targets)), key=lambda i: math.dist(targets[i], corner))
    assert steps[near_corner - 1] < 13
    assert np.abs(np.diff(steps[:-1])).max() < 12


def test_pushes_start_clear_of_the_t_and_stay_in_the_window():
    for level in (0, 1):
        pushes = possible_pushes((60.0, 60.0, 0.4), 10.0, level)
        assert pushes
        assert all(push.is_possible((60.0, 60.0, 0.4)) for push in pushes)
        targets = np.array([t for push in pushes for t in push.targets(20)])
        assert targets.min() >= 10
    assert len(possible_pushes(BLOCK, 10.0, 1)) > 2 * len(possible_pushes(BLOCK, 10.0, 0))


def test_a_push_moves_along_its_heading():
    push = Push((100.0, 100.0), 0.0, math.pi / 2, 10.0)
    np.testing.assert_allclose(push.targets(2), [(110.0, 100.0), (110.0, 110.0)])


def test_the_phase_follows_the_coverage():
    near = (GOAL_POSE[0] + 4, *GOAL_POSE[1:])
    assert not phase_for(BLOCK, Style(), 0).fine
    assert phase_for(near, Style(), 0).fine
    assert outline_distance(GOAL_POSE) == pytest.approx(0)
    assert outline_distance(near) == pytest.approx(4)


def test_a_plan_delivers_what_it_promises():
    env = PushTEnv()
    env.reset(seed=11)
    planner = Planner(Style(), np.random.default_rng(0))
    plan = planner.plan(observe(env.world))
    before = plan.phase.metric((*env.block.position, env.block.angle))
    for target in plan.targets:
        env.step(target)
    after = plan.phase.metric((*env.block.position, env.block.angle))
    assert after == pytest.approx(plan.promised, abs=0.5)
    assert after < before - 5


def test_a_plan_is_kept_while_it_works_and_not_when_the_t_was_moved():
    env = PushTEnv()
    env.reset(seed=11)
    planner = Planner(Style(), np.random.default_rng(0))
    now = observe(env.world)
    plan = planner.plan(now)
    assert planner.still_works(now, plan, 0)
    x, y, angle = now.block
    assert not planner.still_works(now._replace(block=(x + 40, y, angle + 0.5)), plan, 0)
    ax, ay = now.agent
    again = planner.rewalk(now._replace(agent=(ax + 5, ay + 5)), plan)
    assert again is not None
    assert again.push == plan.push


def test_the_disturbance_is_small_mostly_and_large_sometimes():
    disturbance = Disturbance(np.random.default_rng(0))
    offsets = np.array([disturbance.apply((256.0, 256.0), 10.0) for _ in range(4000)]) - 256.0
    size = np.linalg.norm(offsets, axis=1)
    assert np.median(size) < 3
    assert 20 < size.max() < 40
    assert 0.03 < np.mean(size > 8) < 0.15
    assert np.abs(offsets.mean(axis=0)).max() < 1


@pytest.mark.parametrize(("seed", "legacy"), [(1, True), (8, False)])
def test_the_expert_solves_random_starts(seed, legacy):
    recording = record_episode(seed, 0, legacy)
    assert recording.success
    assert len(recording) < 250
    state, action = recording.data["state"], recording.data["action"]

    # What was stored first is the start itself.
    start, _ = PushTEnv(legacy=legacy).reset(seed=seed)
    np.testing.assert_array_equal(state[0], start.astype(np.float32))
    # It moves like a person: bounded speed of hand and target.
    assert np.linalg.norm(np.diff(state[:, :2], axis=0), axis=1).max() < 40
    assert np.linalg.norm(action - state[:, :2], axis=1).max() < 110
    assert 10 <= action.min() <= action.max() <= 502
    assert goal_coverage(tuple(state[-1, 2:])) > 0.6


@pytest.mark.parametrize("start", [Start.NEARLY_THERE, Start.ASTRAY])
def test_places_to_recover_from_are_free_and_not_solved(start):
    rng = np.random.default_rng(0)
    states = np.array([draw_state(start, rng) for _ in range(100)])
    coverage = np.array([goal_coverage(tuple(state[2:])) for state in states])
    assert coverage.max() < 0.95
    assert (coverage.mean() > 0.3) == (start is Start.NEARLY_THERE)
    for agent_x, agent_y, *pose in states:
        (seen_from_block,) = to_local([(agent_x, agent_y)], pose)
        assert T_SHAPE.distance(shapely.Point(seen_from_block)) > AGENT_RADIUS
        corners = np.array(to_world(OUTLINE, pose))
        assert 7 < corners.min() < corners.max() < 505  # between the walls
    reached = np.array(states)[:, 2:4]
    if start is Start.ASTRAY:
        assert reached.min() < 60
        assert reached.max() > 450


@pytest.mark.parametrize("start", [Start.NEARLY_THERE, Start.ASTRAY])
def test_the_expert_recovers(start):
    recording = record_episode(3, 0, legacy=False, start=start)
    assert recording.success
    first = draw_state(start, np.random.default_rng([0, 3]))
    np.testing.assert_allclose(recording.data["state"][0], first, rtol=1e-4)


def test_the_same_seeds_give_the_same_demonstration():
    first, second, other = (record_episode(10, seed, True, max_steps=30) for seed in (5, 5, 6))
    for key, values in first.data.items():
        np.testing.assert_array_equal(values, second.data[key])
    assert not np.array_equal(first.data["action"], other.data["action"])

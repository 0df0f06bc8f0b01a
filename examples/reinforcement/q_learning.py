"""Q-learning crosses a frozen lake: a table and a plain function, because nothing here needs a trainer.

    python examples/reinforcement/q_learning.py                         # ten seconds on one core; needs gymnasium
    python examples/reinforcement/q_learning.py --env Taxi-v4 --steps 500000
    python examples/reinforcement/q_learning.py --resume check_point/q_learning.pth     # learn on from that table

The states are a few fields, the ice is slippery, and the only reward is 1 at the goal. So the table is all that is
learned: the value of each action in each state. dqn.py beside it has a network in its place, for states that no table can
hold.

The figure is the mean return of 1000 episodes by the best actions of the table, beside a random policy's. For FrozenLake
it is the share of the episodes that reached the goal. The best policy there is has 0.74 within the 100 steps of an
episode.
"""

# %% the environment
import sys
from pathlib import Path
from random import Random

import gymnasium
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import run_main  # noqa: E402


def mean_return(env, act, episodes):
    total = 0.0
    for seed in range(episodes):
        (state, _), is_over = env.reset(seed=seed), False
        while not is_over:
            state, reward, is_end, is_cut, _ = env.step(act(state))
            total, is_over = total + reward, is_end or is_cut
    return total / episodes


# %% Q-learning
def q_learning(env, table, steps, chance, rate=0.5, discount=0.99, exploration=0.3):
    """Improve ``table``, the values of actions as a list for each state, by so many steps.

    Each step moves the value of an action towards ``reward + discount * (the best value of the next state)``. The rate
    falls as ``rate / (1 + visits / 20)``, with the visits of that state and action: so the values come to rest on ice.

    Source: Watkins and Dayan, "Q-learning", Machine Learning 8, 1992.
    """
    visits = [[0] * len(row) for row in table]
    state, _ = env.reset(seed=0)
    for _ in range(steps):
        row = table[state]
        is_random = chance.random() < exploration
        action = chance.randrange(len(row)) if is_random else row.index(max(row))
        following, reward, is_over, is_cut, _ = env.step(action)
        goal = reward + (0 if is_over else discount * max(table[following]))
        row[action] += rate / (1 + visits[state][action] / 20) * (goal - row[action])
        visits[state][action] += 1
        state = env.reset()[0] if is_over or is_cut else following


# %% run
def main(env="FrozenLake-v1", steps=200_000, episodes=1000, seed=0, resume: str | None = None):
    place, path = gymnasium.make(env), Path("check_point/q_learning.pth")
    states, actions, chance = int(place.observation_space.n), int(place.action_space.n), Random(seed)
    table = [[1.0] * actions for _ in range(states)]    # hopeful at the start: so every action is tried
    if resume:
        table = torch.load(path if resume == "auto" else resume, weights_only=True).tolist()
    q_learning(place, table, steps, chance)
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.tensor(table, dtype=torch.float64), path)

    reached = mean_return(place, lambda state: table[state].index(max(table[state])), episodes)
    by_chance = mean_return(place, lambda state: chance.randrange(actions), episodes)
    print(f"return {reached:.3f} (at least 0.68; random policy {by_chance:.3f})")


if __name__ == "__main__":
    run_main(main)

"""DQN balances a pole: a replay buffer as the loader, a target network by EMA, training counted in updates.

    python examples/reinforcement/dqn.py                      # a quarter of a minute on two cores; needs gymnasium
    python examples/reinforcement/dqn.py --resume auto        # go on where it stopped, to the same bits

The loader acts: for each batch it takes steps by the network as it is, keeps them, and draws a batch of what is kept. Its
state travels in the checkpoint: the buffer, and each present episode as its seed and its actions, which are acted again.

The figure is the mean return of 50 episodes that were never trained on, by the best weights, beside a random policy's.
"""

# %% the environment and the replay buffer
import sys
from pathlib import Path

import gymnasium
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EMA, TemplateModel, run_main, seed_everything  # noqa: E402


class Episode:
    def __init__(self, env):
        self.env = gymnasium.make(env)

    def begin(self, seed, actions=()):
        self.seed, self.actions, self.state = int(seed), [], torch.from_numpy(self.env.reset(seed=int(seed))[0])
        for action in actions:
            self.move(action)

    def move(self, action):
        self.actions.append(action)
        state, reward, is_over, is_cut, _ = self.env.step(action)
        self.state = torch.from_numpy(state)
        return self.state, reward, is_over, is_cut


class Replay:
    """Batches ``(states, actions, rewards, next states, whether it is over)`` without end.

    ``episodes`` are acted side by side, a step of each for a batch, by ``act(states [E, S]) -> actions [E]``.
    """

    def __init__(self, env, act, batch_size, episodes, capacity, exploration):
        self.act, self.batch_size, self.capacity, self.exploration = act, batch_size, capacity, exploration
        self.episodes, self.taken = [Episode(env) for _ in range(episodes)], 0
        for seed, episode in enumerate(self.episodes):
            episode.begin(seed)
        self.num_actions, state = int(episode.env.action_space.n), episode.state
        self.kept = [torch.zeros(capacity, *like.shape, dtype=like.dtype)
                     for like in (state, torch.tensor(0), torch.tensor(0.0), state, torch.tensor(0.0))]

    def __iter__(self):
        while True:                         # torch's generator is seeded for each batch, so these draws can be repeated
            for _ in range(1 if self.taken else 100):
                self.step()
            rows = torch.randint(min(self.taken, self.capacity), (self.batch_size,))
            yield tuple(values[rows] for values in self.kept)

    def step(self):
        states, count = torch.stack([episode.state for episode in self.episodes]), len(self.episodes)
        is_random = torch.rand(count) < max(1 - 0.95 * self.taken / self.exploration, 0.05)
        actions = torch.where(is_random, torch.randint(self.num_actions, (count,)), self.act(states).cpu())
        for episode, state, action in zip(self.episodes, states, actions.tolist()):
            following, reward, is_over, is_cut = episode.move(action)
            for values, value in zip(self.kept, (state, action, reward, following, is_over)):
                values[self.taken % self.capacity] = value
            self.taken += 1
            if is_over or is_cut:           # one that was cut by its time limit is not over: its last state has a value
                episode.begin(torch.randint(2**31, ()))

    def state_dict(self):
        return {"taken": self.taken, "kept": [values[:self.taken] for values in self.kept],
                "episodes": [(episode.seed, list(episode.actions)) for episode in self.episodes]}

    def load_state_dict(self, state):
        self.taken = state["taken"]
        for values, saved in zip(self.kept, state["kept"]):
            values[:len(saved)] = saved
        for episode, (seed, actions) in zip(self.episodes, state["episodes"]):
            episode.begin(seed, actions)


def mean_return(env, act, seeds):
    episode, total = Episode(env), 0.0
    for seed in seeds:
        episode.begin(seed)
        is_end = False
        while not is_end:
            _, reward, is_over, is_cut = episode.move(act(episode.state[None]).item())
            total, is_end = total + reward, is_over or is_cut
    return total / len(seeds)


# %% the training
class DQN(TemplateModel):
    def __init__(self, env, width, exploration):
        super().__init__()
        self.env, spaces = env, gymnasium.make(env)
        self.net = nn.Sequential(nn.Linear(*spaces.observation_space.shape, width), nn.ReLU(), nn.Linear(width, width),
                                 nn.ReLU(), nn.Linear(width, int(spaces.action_space.n)))
        self.model_list = [self.net]
        self.optimizer_list = [torch.optim.Adam(self.net.parameters(), 1e-3)]
        self.train_loader = Replay(env, self.act, 128, 8, 50_000, exploration)
        self.eval_loader, self.test_loader = [torch.arange(20)], [torch.arange(100, 150)]   # seeds of episodes
        self.target = EMA(0.99)             # evaluations use the averaged weights too
        self.callbacks, self.eval_per_steps, self.lr_scheduler_type = [self.target], 250, "linear"
        self.key_metric, self.key_metric_mode = "return", "max"
        self.ckpt_dir, self.keep_checkpoints, self.clip_grad, self.fused = "check_point/dqn", 1, 10.0, True

    @torch.no_grad()
    def act(self, states):
        return self.net(states.to(self.device)).argmax(1)

    def train_step(self, batch):
        states, actions, rewards, following, is_over = batch
        with torch.no_grad():
            chosen = self.net(following).argmax(1, keepdim=True)
            best = functional_call(self.net, self.target.weights_of(self.net), following).gather(1, chosen)[:, 0]
        values = self.net(states).gather(1, actions[:, None])[:, 0]
        loss = mse_loss(values, rewards + 0.99 * best * (1 - is_over))
        self.backward(loss)
        return {"td_error": loss, "value": values.mean()}

    def eval_scores_per_batch(self, seeds):
        return {"return": mean_return(self.env, self.act, seeds)}


# %% run
def main(env="CartPole-v1", updates=1500, width=128, exploration=10_000, seed=0, resume: str | None = None):
    seed_everything(seed)
    trainer = DQN(env, width, exploration)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(updates=updates)
    trainer.use_best()
    actions = trainer.train_loader.num_actions
    random = mean_return(env, lambda states: torch.randint(actions, (1,)), range(100, 150))
    print(f"return {trainer.test()['return']:.1f} (at least 120; random policy {random:.1f})")


if __name__ == "__main__":
    run_main(main)

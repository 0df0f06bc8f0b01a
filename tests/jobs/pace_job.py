"""Updates, evaluations within an epoch and stops, alike on all ranks: ``torchrun --nproc-per-node 2 -m pace_job``."""

import torch
from ranks import Tiny, hand_back
from tiny import weights

from template import EarlyStopping
from template.callbacks.history import History
from template.hooks import Callback


class Seen(Callback):
    """When was evaluated; and the wish of the last rank to stop."""

    def __init__(self, stop_at=None):
        self.at, self.ends, self.stop_at = [], [], stop_at

    def on_eval_result(self, model, result):
        self.at.append(model.global_step)

    def on_epoch_end(self, model, results):
        self.ends.append(model.epochs_done)

    def on_after_step(self, model):
        if model.global_step == self.stop_at and model.world.rank == model.world.size - 1:
            model.should_stop = "now"


def build(folder, *callbacks, **attributes):
    trainer = Tiny(ckpt_dir=f"check_point/{folder}", callbacks=[History(png=False), *callbacks], **attributes)
    trainer.check_init(use_tb=False)
    return trainer


def found():
    results, kept = {}, {"log_per_step": 2, "eval_per_steps": 2}
    plain = build("plain")
    plain.fit(4)
    seen = Seen()
    often = build("often", seen, EarlyStopping(patience=100), eval_per_steps=2)
    often.fit(4)
    results["same"] = torch.equal(weights(plain), weights(often))
    results["at"], results["ends"] = seen.at, seen.ends
    whole = build("whole", **kept)
    whole.fit(4)
    stopped = build("stopped", Seen(stop_at=4), **kept)
    stopped.fit(4)
    results["stopped"] = stopped.global_step, stopped.epochs_done, stopped.should_stop
    again = build("stopped", **kept)
    again.load_state("auto")
    results["began"] = again.global_step
    again.fit(4)
    results["continued"] = torch.equal(weights(again), weights(whole))
    counted = build("counted", accumulate_steps=2)
    counted.fit(updates=4)
    results["updates"] = counted.global_step, counted.epochs_done, weights(counted)
    for limit in (1, 3):
        limited = build(f"limited {limit}", limit_eval_batches=limit, limit_train_batches=3)
        limited.train_loop()
        limited.eval()
        results[f"limit {limit}"] = limited.global_step, limited.eval_result["tol_loss"]
        fresh = build(f"fresh {limit}", limit_eval_batches=limit)
        fresh.eval()
        results[f"fresh {limit}"] = fresh.eval_result
    return results


if __name__ == "__main__":
    hand_back(found())

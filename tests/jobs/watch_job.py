"""What callbacks that look at a training see in any number of processes: ``torchrun --nproc-per-node 2 -m watch_job``."""

from ranks import Tiny, hand_back
from tiny import tiny_data
from torch.utils.data import DataLoader, TensorDataset

from template import Callback, Interpret, LayerStatistics, Monitor, TensorLoader


class Indices(Callback):
    def __init__(self):
        self.seen = []

    def on_eval_predictions(self, model, batch, predictions, labels, losses):
        self.seen += [[index, loss] for index, loss in zip(model.evaluator.sample_indices, losses.tolist())]


def eval_loaders():
    data = TensorDataset(*tiny_data(41, seed=5))
    return {"in order": DataLoader(data, 6), "shuffled": DataLoader(data, 6, shuffle=True),
            "in memory": TensorLoader(*data.tensors, batch_size=6, shuffle=True), "a list": list(DataLoader(data, 6))}


def looked_at(name, batch_size, parallel="auto"):
    interpret, indices = Interpret(k=7), Indices()
    monitor, layers = Monitor(), LayerStatistics(every=2, histograms=False)
    trainer = Tiny(ckpt_dir=f"check_point/{name}", callbacks=[interpret, indices, monitor, layers], log_per_step=2,
                   eval_loader=eval_loaders()[name], train_loader=DataLoader(TensorDataset(*tiny_data(48)), batch_size),
                   preflight=False, parallel=parallel, accumulate_steps=2)
    trainer.model_list[0][1].p = 0.0
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    return {"samples": interpret.samples, "confusion": interpret.confusion[""].tolist(), "indices": indices.seen,
            "monitor": monitor.values, "layers": layers.values}


if __name__ == "__main__":
    found = {name: looked_at(name, 4) for name in eval_loaders()}
    found["fsdp"] = looked_at("in order", 4, "fsdp")
    hand_back(found)

"""Typical mistakes, never run: ``utils`` would be the folder. Both mypy and pyright find, in their default modes, each line
that ends in "# mistake". Pyright alone finds those that end in "# mistake to pyright", as mypy does not look into functions
without annotations.
"""

import torch
from torch import Tensor, nn
from utils import Callback, Confusion, EarlyStopping, TemplateModel, TensorLoader, parse_options, seed_everything
from utils import Confusoin as Misspelled  # mistake


class Trainer(TemplateModel):
    def __init__(self) -> None:
        super().__init__()
        self.model_list = nn.Linear(2, 2)  # mistake
        self.optimizer_list = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)  # mistake
        self.train_loader = TensorLoader(torch.zeros(2), batch_size="5")  # mistake
        self.callbacks = EarlyStopping(patience=3)  # mistake
        self.accumulate_steps = "4"  # mistake
        self.amp = 16  # mistake
        self.clip_grad = "1.0"  # mistake
        self.lr_scheduler_type = torch.optim.lr_scheduler.StepLR  # mistake
        self.warm_up_epoch = "2"  # mistake
        self.key_metric = ["acc"]  # mistake

    def metric(self) -> dict[str, float]:  # mistake
        return {"acc": 0.5}

    def loss_per_batch(self, batch: Tensor, weight: Tensor) -> Tensor:  # mistake
        return (batch * weight).mean()

    def count_samples(self) -> int:  # mistake
        return 1


class NotAnnotated(TemplateModel):
    def __init__(self):
        super().__init__()
        self.accumulate_steps = "4"  # mistake to pyright
        self.seed = 0

    def metric(self):  # mistake to pyright
        return {"acc": 0.5}


class PrintLoss(Callback):
    def on_log(self, model: TemplateModel) -> None:  # mistake
        print(model.global_steps)  # mistake

    def on_exit(self, model: TemplateModel, result: dict[str, float]) -> None:  # mistake
        print(result["tol_loss"])

    def on_batch(self, model, batch):
        print(model.global_steps)  # mistake to pyright

    def on_eval_end(self):  # mistake to pyright
        print("done")


trainer = Trainer()
trainer.fit("10")  # mistake
trainer.epochs(10, 20)  # mistake
trainer.train_lop()  # mistake
trainer.change_lr(0.1)  # mistake
trainer.load_state("auto", optimizer=True)  # mistake
trainer.acumulate_steps = 4  # mistake
trainer.predict()  # mistake
print(trainer.fit(10)["acc"] + "%")  # mistake
EarlyStopping(patience="3")  # mistake
Confusion("10")  # mistake
Confusion(10).update(torch.zeros(2))  # mistake
Confusion(10).f2()  # mistake
seed_everything("0")  # mistake
parse_options(3)  # mistake
print(Misspelled)

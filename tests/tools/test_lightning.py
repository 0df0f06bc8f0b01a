"""Training by lightning.Trainer, and the scripts of examples/styles: one file, because importing Lightning takes 4 s."""

import ast
import contextlib
import csv
import io
import logging
import re
import runpy
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import ROOT, Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import EMA, Confusion, TemplateModel, TensorLoader
from template.tools.lightning import as_lightning

EPOCHS = 3
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning

    return lightning


@pytest.fixture
def fit(lightning):
    """``fit(module, **arguments of lightning.Trainer)``, which returns that trainer."""

    def fit(module, *loaders, ckpt_path=None, **arguments):
        options = {"accelerator": "cpu", "max_epochs": EPOCHS, "logger": False, "enable_progress_bar": False,
                   "enable_model_summary": False, "enable_checkpointing": "callbacks" in arguments}
        trainer = lightning.Trainer(**options | arguments)
        trainer.fit(module, *loaders, ckpt_path=ckpt_path)
        return trainer

    return fit


def in_lightnings_words(row):
    """The losses and metrics of a row of ``trainer.history``."""
    words = {"eval/": "val_", "train/": "train_", "tol_loss": "loss"}
    values = {name: value for name, value in row.items() if name.startswith(("train/", "eval/")) and value is not None}
    for word, other in words.items():
        values = {name.replace(word, other): value for name, value in values.items()}
    return {"epoch": row["epoch"]} | values


class Regularized(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        pred = self.inference(x)
        size = pred.pow(2).mean()
        return {"tol_loss": nn.functional.cross_entropy(pred, y) + 0.1 * size, "size": size}

    def metric(self, pred, y):
        confusion = Confusion(3).update(pred, y)
        return {"acc": confusion.accuracy(), "f1": confusion.f1("macro")}


class Two(Tiny):
    def __init__(self, **attributes):
        super().__init__()
        self.model_list = [tiny_model(), nn.Linear(3, 3)]
        self.optimizer_list = [torch.optim.Adam(self.model_list[0].parameters(), 1e-2),
                               torch.optim.SGD(self.model_list[1].parameters(), 0.1)]
        for name, value in attributes.items():
            setattr(self, name, value)


class Gan(TemplateModel):
    """As in PyTorch's tutorial: the discriminator on real and generated samples, then the generator."""

    def __init__(self, **attributes):
        super().__init__()
        torch.manual_seed(1)
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.model_list = [self.generator, self.discriminator]
        self.optimizer_list = [torch.optim.Adam(model.parameters(), 2e-3, betas=(0.5, 0.999)) for model in self.model_list]
        self.train_loader = DataLoader(TensorDataset(*tiny_data()), 10, shuffle=True)
        self.seed = 3
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_step(self, batch):
        real = batch[0]
        loss_fn, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = self.generator(torch.randn(len(real), 4))
        of_discriminator = loss_fn(self.discriminator(real), ones) + loss_fn(self.discriminator(fake.detach()), zeros)
        self.backward(of_discriminator, 1)
        self.update(1)
        of_generator = loss_fn(self.discriminator(fake), ones)
        self.backward(of_generator, 0)
        self.update(0)
        return {"d_loss": of_discriminator, "g_loss": of_generator}


def with_object(make, **attributes):
    """A ``Tiny`` with a scheduler that the user built."""
    trainer = Tiny(**attributes)
    trainer.lr_scheduler_list = [make(trainer.optimizer_list[0])]
    return trainer


def with_lbfgs(**attributes):
    trainer = Tiny(tiny_model(dropout=0.0), **attributes)
    trainer.optimizer_list = [torch.optim.LBFGS(trainer.model_list[0].parameters(), lr=0.1, max_iter=3)]
    return trainer


def four_even_batches():
    return DataLoader(TensorDataset(*tiny_data(40)), 10, shuffle=True)


IMPATIENT = {"patience": 0, "threshold": 0.5}
SETUPS = {
    "train metrics and own losses": (lambda: Regularized(train_metrics=True, key_metric="f1"), {}, {}),
    "named schedule after a warm-up": (lambda: Tiny(lr_scheduler_type="cosine", warm_up_epoch=1), {}, {}),
    "plateau": (lambda: Tiny(lr_scheduler_type="loss", lr_scheduler_args=IMPATIENT), {}, {}),
    "plateau without evaluation": (
        lambda: Tiny(eval_loader=None, lr_scheduler_type="loss", lr_scheduler_args=IMPATIENT), {}, {}),
    "plateau of a metric of the training": (
        lambda: Tiny(train_metrics=True, key_metric="train_acc", lr_scheduler_type="metric", lr_scheduler_args=IMPATIENT),
        {}, {}),
    "scheduler of one's own per epoch": (
        lambda: with_object(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)), {}, {}),
    "scheduler of one's own per update": (
        lambda: with_object(lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=18)), {}, {}),
    "sums as losses": (lambda: Tiny(criterion=nn.CrossEntropyLoss(reduction="sum")), {}, {}),
    "data in memory": (lambda: Tiny(train_loader=TensorLoader(*tiny_data(), batch_size=10, shuffle=True)), {}, {}),
    "accumulators": (lambda: Tiny(eval_metrics={"f1": Confusion(3).f1("macro")}, train_metrics=True), {}, {}),
    "an optimizer with a closure": (lambda: with_lbfgs(train_metrics=True), {}, {}),
    "two optimizers": (lambda: Two(clip_grad=0.5, lr_scheduler_type="cosine", warm_up_updates=4), {}, {}),
    "GAN": (Gan, {}, {}),
    "clipping": (Tiny, {"clip_grad": 0.1}, {"gradient_clip_val": 0.1}),
    "accumulation": (lambda: Tiny(train_loader=four_even_batches(), lr_scheduler_type="cosine"),
                     {"accumulate_steps": 2}, {"accumulate_grad_batches": 2}),
    "mixed precision": (Tiny, {"amp": "bf16"}, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("name", SETUPS)
def test_lightning_trains_to_the_same_bits_as_the_loop_of_the_template(name, fit):
    build, ours, lightnings = SETUPS[name]
    expected = build()
    for setting, value in ours.items():
        setattr(expected, setting, value)
    expected.check_init(use_tb=False)
    expected.fit(EPOCHS)

    trainer = build()
    module = as_lightning(trainer)
    fit(module, **lightnings)
    assert torch.equal(weights(trainer), weights(expected))
    assert module.history == [in_lightnings_words(row) for row in expected.history]
    rates = [[group["lr"] for optimizer in one.optimizer_list for group in optimizer.param_groups]
             for one in (trainer, expected)]
    assert rates[0] == rates[1]
    assert trainer.global_step == expected.global_step and trainer.best_metric == expected.best_metric


def test_callbacks_and_loggers_of_lightning_find_the_names_that_they_know(lightning, fit):
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    module = as_lightning(Regularized(train_metrics=True, key_metric="acc"))
    best = ModelCheckpoint("best", monitor="val_acc", mode="max")
    stopping = EarlyStopping(monitor="val_loss", patience=2)
    trainer = fit(module, max_epochs=30, callbacks=[best, stopping, LearningRateMonitor()], logger=CSVLogger("logs"),
                  log_every_n_steps=1)
    losses = [row["val_loss"] for row in module.history]
    assert stopping.stopped_epoch == len(losses) - 1 == losses.index(min(losses)) + 2
    top = max(row["val_acc"] for row in module.history)
    assert best.best_model_score.item() == pytest.approx(top, abs=1e-7)

    with open(Path(trainer.logger.log_dir, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "train_size", "train_f1", "val_loss", "val_acc", "val_f1"):
        logged = [float(row[name]) for row in rows if row[name]]
        assert logged == pytest.approx([row[name] for row in module.history], abs=1e-6), name
    assert sum(bool(row["train_loss_step"]) for row in rows) == 6 * len(losses)
    assert sum(bool(row["lr-SGD"]) for row in rows) > len(losses)


def test_validate_test_and_predict_give_what_the_template_gives(lightning, fit):
    expected = Regularized(test_loader=DataLoader(TensorDataset(*tiny_data(31, seed=9)), 7))
    expected.check_init(use_tb=False)
    expected.fit(EPOCHS)
    module = as_lightning(Regularized(test_loader=DataLoader(TensorDataset(*tiny_data(31, seed=9)), 7)))
    trainer = fit(module)

    for (found,), stage, result in ((trainer.validate(module, verbose=False), "val", expected.eval_result),
                                    (trainer.test(module, verbose=False), "test", expected.test())):
        named = {f"{stage}_{name}".replace("tol_loss", "loss"): value for name, value in result.items()}
        assert found == pytest.approx(named, abs=1e-6)
    assert torch.equal(torch.cat(trainer.predict(module, expected.eval_loader)), expected.predict(expected.eval_loader))
    x = tiny_data()[0]
    torch.testing.assert_close(module.eval()(x), expected.predict(x))


def test_several_eval_loaders_keep_their_names(fit):
    loaders = {name: DataLoader(TensorDataset(*tiny_data(23, seed=seed)), 10) for name, seed in (("clean", 5), ("noisy", 6))}
    expected, trainer = (Tiny(eval_loader=loaders, key_metric="noisy/acc") for _ in range(2))
    expected.check_init(use_tb=False)
    expected.fit(1)
    module = as_lightning(trainer)
    fit(module, max_epochs=1)
    assert {name: value for name, value in module.history[0].items() if name.startswith("val_")} == {
        f"val_{name}".replace("tol_loss", "loss"): value for name, value in expected.eval_result.items()}


MOMENTS = {"behind the validation": {"monitor": "val_f1", "mode": "max"},
           "at the end of the epoch": {"save_on_train_epoch_end": True},
           "in the middle of an epoch": {"every_n_train_steps": 4}}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_checkpoint_of_lightning_resumes_to_the_same_bits(moment, lightning, fit):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def build():
        return as_lightning(Regularized(train_metrics=True, lr_scheduler_type="cosine", warm_up_updates=3, key_metric="f1"))

    whole = build()
    fit(whole, callbacks=[ModelCheckpoint("kept", save_top_k=-1, filename="{step}", **MOMENTS[moment])])
    first = min(Path("kept").iterdir(), key=lambda path: int(re.search(r"\d+", path.stem)[0]))
    continued = build()
    torch.manual_seed(99)  # the generators come from the checkpoint
    fit(continued, ckpt_path=first)
    assert torch.equal(weights(continued.template), weights(whole.template))
    assert continued.history == whole.history[-len(continued.history):]
    assert len(continued.history) == (3 if "middle" in moment else 2)


def test_loaders_that_fit_is_given_are_read_in_place_of_the_trainers(fit):
    module = as_lightning(Tiny(train_metrics=True))
    x, y = tiny_data()
    fit(module, DataLoader(TensorDataset(x[:20], y[:20]), 20), DataLoader(TensorDataset(x[:10], y[:10]), 10), max_epochs=1)
    assert module.template.global_step == 1
    right = (module.models.eval()[0](x[:10]).argmax(1) == y[:10]).double().mean().item()
    assert module.history[0]["val_acc"] == right


def test_settings_that_lightning_would_not_see_are_refused_with_its_arguments():
    trainer = Tiny(accumulate_steps=4, amp="fp16", clip_grad={"value": 0.5}, callbacks=[EMA()], limit_eval_batches=0.5,
                   skip_non_finite=2)
    with pytest.raises(ValueError) as raised:
        as_lightning(trainer)
    for words in ("accumulate_steps = 4", "accumulate_grad_batches=4", 'precision="16-mixed"', "callbacks=[…]",
                  'gradient_clip_algorithm="value"', "limit_val_batches=0.5",
                  "skip_non_finite = 2 (int): only the template's own loop"):
        assert words in str(raised.value)
    with pytest.raises(ValueError, match="accumulate_steps must be 1 under Lightning"):
        as_lightning(Two(accumulate_steps=2))


def test_a_setting_that_as_lightning_has_never_heard_of_is_refused_too(monkeypatch):
    original = TemplateModel.__init__

    def with_a_new_setting(self):
        original(self)
        self.of_tomorrow = None
        self._settings |= {"of_tomorrow"}

    monkeypatch.setattr(TemplateModel, "__init__", with_a_new_setting)
    as_lightning(Tiny())
    with pytest.raises(ValueError, match="of_tomorrow = 3"):
        as_lightning(Tiny(of_tomorrow=3))


def test_settings_about_files_are_named_in_one_warning():
    with pytest.warns(UserWarning, match=r"do nothing: ckpt_dir .*, keep_checkpoints \(in Lightning: ModelCheckpoint\)"):
        as_lightning(Tiny(keep_checkpoints=3, ckpt_dir="check_point/mine"))


def test_a_trainer_after_check_init_and_one_without_data_are_refused():
    trainer = Tiny()
    trainer.check_init(use_tb=False)
    with pytest.raises(RuntimeError, match="check_init"):
        as_lightning(trainer)
    with pytest.raises(ValueError, match="train_loader must be set"):
        as_lightning(Tiny(train_loader=None))


def test_a_missing_lightning_is_told_with_what_to_install(monkeypatch):
    for name in [*(name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning")),
                 "lightning", "lightning.pytorch", "pytorch_lightning"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install lightning"):
        as_lightning(Tiny())


def test_the_loop_ends_by_steps_and_the_schedule_with_it(fit):
    trainer = Tiny(lr_scheduler_type="cosine")
    fit(as_lightning(trainer), max_steps=9, max_epochs=-1)
    assert trainer.global_step == 9
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_accumulation_that_a_callback_of_lightning_changes_is_planned_for(lightning, fit):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    trainer = Tiny(lr_scheduler_type="cosine")
    fit(as_lightning(trainer), callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})], enable_checkpointing=False)
    assert trainer.global_step == 6 + 3 + 3
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_overfitting_one_batch_reads_the_same_batch_in_every_epoch(fit):
    seen = []

    class Seeing(Tiny):
        def loss_per_batch(self, batch):
            if torch.is_grad_enabled():
                seen.append(batch[0].sum().item())
            return super().loss_per_batch(batch)

    fit(as_lightning(Seeing()), overfit_batches=1, max_epochs=4)
    assert len(seen) == 4 and len(set(seen)) == 1


def test_an_averaged_copy_of_the_module_is_validated_in_its_place(lightning, fit):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    plain = as_lightning(Tiny())
    fit(plain)
    averaged = as_lightning(Tiny())
    fit(averaged, callbacks=[EMAWeightAveraging(decay=0.9)], enable_checkpointing=False)
    assert [row["train_loss"] for row in averaged.history] == [row["train_loss"] for row in plain.history]
    assert averaged.history[-1]["val_loss"] != plain.history[-1]["val_loss"]


@pytest.mark.slow
def test_compiling_the_module_is_refused_and_compile_true_compiles_the_models(fit):
    with pytest.raises(ValueError, match="trainer.compile = True"):
        fit(torch.compile(as_lightning(Tiny()), backend="eager"))
    trainer = Tiny(compile=True)
    as_lightning(trainer)
    assert trainer.model_list[0]._compiled_call_impl is not None


# --- examples/styles --------------------------------------------------------------------------------------------------

STYLES = ROOT / "examples" / "styles"


@pytest.fixture
def styles_on_path(monkeypatch):
    """As Python does for a script: its folder is where its imports are looked for first."""
    monkeypatch.syspath_prepend(str(STYLES))
    yield
    for path in STYLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def run_style(name):
    """``(best epoch, val_loss, val_acc)`` as the script's last line prints them, the best weights, and its globals."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = runpy.run_path(str(STYLES / f"{name}_style.py"), run_name="__main__")
    net = names["net"] if "net" in names else getattr(names.get("module"), "models", None) or names["trainer"].model_list
    net = net if isinstance(net, nn.Sequential) else net[0]
    numbers = re.search(r"best epoch (\d+): val_loss (\S+), val_acc (\S+)$", printed.getvalue(), re.M)
    return [float(number) for number in numbers.groups()], net.state_dict(), names


@pytest.mark.slow
def test_five_styles_end_with_the_same_numbers_and_the_same_weights_to_the_last_bit(styles_on_path, lightning):
    expected, best_weights, names = run_style("script")
    rows = names["history"]
    assert rows[-1]["epoch"] == expected[0] + names["PATIENCE"] < names["EPOCHS"], "it did not stop early"
    for style in ("function", "class", "keras", "lightning"):
        numbers, own, names = run_style(style)
        assert numbers == expected, style
        assert own.keys() == best_weights.keys() and all(torch.equal(own[key], best_weights[key]) for key in own), style
        if style in ("function", "lightning"):
            assert (names["history"] if style == "function" else names["module"].history) == rows, style


def lines_of_code(path):
    """Without comments, docstrings and blank lines."""
    source = path.read_text(encoding="utf-8")
    documented = [node.body[0] for node in ast.walk(ast.parse(source))
                  if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)]
    left_out = {number for part in documented for number in range(part.lineno, part.end_lineno + 1)}
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in left_out
               for number, line in enumerate(source.splitlines(), 1))


def test_the_page_about_the_styles_shows_their_code_and_counts_their_lines():
    page = (ROOT / "docs/styles.md").read_text(encoding="utf-8")
    sources = {path.name: path.read_text(encoding="utf-8") for path in STYLES.glob("*_style.py")}
    shown = re.findall(r"^```python excerpt\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert [name for code in shown for name, source in sources.items()
            if any(textwrap.indent(code, before) in source for before in ("", " " * 4))] == [
        f"{name}_style.py" for name in ("script", "function", "class", "keras", "lightning")]
    counted = {name: int(lines) for name, lines in re.findall(r"\| `(\w+_style\.py)` \| (\d+) \|", page)}
    assert counted == {name: lines_of_code(STYLES / name) for name in sources}

"""Events: the table of listeners, and that training announces them in the order its docstring promises."""

import re

import pytest
from tiny import Tiny, tiny_trainer

from template.hooks import EVENTS, Callback, Hooks, run_all
from template.template import TemplateModel


class Recorder(Callback):
    """Writes the name of every event into ``seen``."""

    def __init__(self):
        self.seen = []


def _recording(event):
    return lambda self, model, *args: self.seen.append(event)


for _event in EVENTS:
    setattr(Recorder, _event, _recording(_event))


# --- the table --------------------------------------------------------------------------------------------------------


def test_an_event_nobody_listens_to_is_an_empty_tuple():
    hooks = Hooks([Callback(), Callback()])
    assert all(getattr(hooks, event) == () for event in EVENTS)


def test_listeners_are_called_in_the_order_of_the_callbacks():
    calls = []

    class Named(Callback):
        def __init__(self, name):
            self.name = name

        def on_log(self, model, values):
            calls.append((self.name, model, values))

    hooks = Hooks([Named("a"), Callback(), Named("b")])
    for call in hooks.on_log:
        call("model", {"tol_loss": 1.0})
    assert calls == [("a", "model", {"tol_loss": 1.0}), ("b", "model", {"tol_loss": 1.0})]
    assert len(hooks.on_log) == 2 and hooks.on_batch == ()


def test_a_method_that_is_no_event_is_refused_with_the_list_of_events():
    class Misspelled(Callback):
        def on_epoch_ends(self, model):
            pass

    with pytest.raises(ValueError, match="Misspelled has .*on_epoch_ends") as caught:
        Hooks([Misspelled()])
    assert all(event in str(caught.value) for event in EVENTS)
    with pytest.raises(ValueError, match="on_epoch_ends"):
        tiny_trainer(callbacks=[Misspelled()])


def test_any_object_with_events_is_a_callback():
    class Duck:
        def on_train_end(self, model, result):
            self.result = result

    duck = Duck()
    trainer = tiny_trainer(callbacks=[duck])
    result = trainer.train_loop()
    assert duck.result == result


def test_an_event_put_on_the_instance_counts_too():
    callback, seen = Callback(), []
    callback.on_log = lambda model, values: seen.append(values)
    for call in Hooks([callback]).on_log:
        call(None, 1)
    assert seen == [1]


def test_removing_a_callback_during_an_event_skips_nobody():
    calls = []

    class Once(Callback):
        def on_after_step(self, model):
            calls.append("once")
            model.remove(self)

    class Always(Callback):
        def on_after_step(self, model):
            calls.append("always")

    hooks = Hooks([Once(), Always()])
    for _ in range(2):
        for call in hooks.on_after_step:
            call(hooks)
    assert calls == ["once", "always", "always"]
    assert [type(callback) for callback in hooks.callbacks] == [Always]


def test_run_all_calls_every_listener_and_raises_the_first_failure():
    calls = []

    def fail(text):
        calls.append(text)
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="first"):
        run_all([lambda x: fail("first"), calls.append, lambda x: fail("second"), calls.append], "through")
    assert calls == ["first", "through", "second", "through"]


# --- the order of training --------------------------------------------------------------------------------------------


def promised_order(num_batches, accumulate_steps, log_per_step):
    """Carry out the pseudo-code in ``train_loop``'s docstring."""
    block = re.search(r"Order of events::\n\n(.*?)\n\n", TemplateModel.train_loop.__doc__, re.DOTALL)[1].splitlines()
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in block]
    groups = [min(accumulate_steps, num_batches - start) for start in range(0, num_batches, accumulate_steps)]
    order = []

    def run(lines, group=None, update=None):
        position = 0
        while position < len(lines):
            indent, line = lines[position]
            body = []
            while position + 1 + len(body) < len(lines) and lines[position + 1 + len(body)][0] > indent:
                body.append(lines[position + 1 + len(body)])
            if line == "for each group of accumulate_steps batches:":
                for number, size in enumerate(groups, 1):
                    run(body, size, number)
                if len(groups) % log_per_step and any("for what is left at the end" in text for _, text in body):
                    order.append("on_log")
            elif line == "for each batch of the group:":
                for _ in range(group):
                    run(body)
            elif "# every log_per_step updates" in line:
                order.extend(["on_log"] if update % log_per_step == 0 else [])
            else:
                assert not body, f"the test does not understand {line!r}"
                order.append(re.match(r"\w+", line)[0])  # an event, "train_step", or "clip" for the optimizer's step
            position += 1 + len(body)

    run(lines)
    return order


@pytest.mark.parametrize("accumulate_steps, log_per_step", [(1, 5), (1, 2), (2, 1), (4, 1), (5, 3), (100, 5)])
def test_training_announces_its_events_in_the_order_of_its_docstring(accumulate_steps, log_per_step):
    recorder = Recorder()

    class Recorded(Tiny):
        def train_step(self, batch):
            recorder.seen.append("train_step")
            return super().train_step(batch)

    trainer = Recorded(callbacks=[recorder], accumulate_steps=accumulate_steps, log_per_step=log_per_step,
                       eval_loader=None)
    trainer.optimizer_list[0].register_step_post_hook(lambda *_: recorder.seen.append("clip"))
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    promised = promised_order(6, accumulate_steps, log_per_step)  # 53 samples in batches of 10
    assert set(promised) >= {"on_run_start", "on_train_start", "on_batch", "train_step", "on_before_step", "clip",
                             "on_after_step",
                             "on_log", "on_train_end"}
    assert recorder.seen == promised


def test_an_evaluation_announces_start_batches_and_result_once():
    recorder = Recorder()
    trainer = tiny_trainer(callbacks=[recorder])
    trainer.eval()
    batches = ["on_eval_batch", "on_eval_predictions"] * 3  # 23 samples in batches of 10
    assert recorder.seen[:7] == ["on_eval_start", *batches]
    assert sorted(recorder.seen[7:]) == ["on_eval_end", "on_eval_result"]


def test_a_callback_of_negative_order_hears_of_everything_before_the_default_set():
    class First(Callback):
        order = -1

    class Early(First):
        order = -2

    first, early, last = First(), Early(), Recorder()
    trainer = tiny_trainer(callbacks=[last, first, early])
    assert trainer.hooks.callbacks[:2] == (early, first)
    assert list(trainer.hooks.callbacks).index(last) > 2
    trainer.callbacks = [first]
    assert trainer.hooks.callbacks[0] is first and early not in trainer.hooks.callbacks
    first.order = "first"
    with pytest.raises(TypeError, match="order must be a number, got 'first' from First"):
        Hooks([first])


class RunAndEpochs(Callback):
    """What stands in the trainer when a run starts and when an epoch ends."""

    def __init__(self):
        self.starts, self.ends = [], []

    def on_run_start(self, model):
        self.starts.append((model.global_step, model.epochs_done))

    def on_epoch_end(self, model, results):
        model.wait_for_saves()
        is_saved = model.path_of(f"epoch{model.epoch}.pth").exists()
        self.ends.append((model.epochs_done, model.global_step, is_saved, results))


def test_a_run_starts_once_in_a_process_behind_the_load_of_a_state():
    seen = RunAndEpochs()
    trainer = tiny_trainer(callbacks=[seen], ckpt_dir="run")
    trainer.fit(1)
    trainer.fit(2)
    assert seen.starts == [(0, 0)]
    seen, later = RunAndEpochs(), RunAndEpochs()
    trainer = tiny_trainer(callbacks=[seen], ckpt_dir="run")
    trainer.load_state("auto")
    trainer.eval()
    assert seen.starts == []
    trainer.fit(3)
    trainer.callbacks = [seen, later]  # one that comes later hears of it before its first batch
    trainer.fit(4)
    assert seen.starts == [(12, 2)] and later.starts == [(18, 3)]


def test_the_end_of_an_epoch_has_the_results_of_its_training_and_of_its_evaluation_and_comes_before_the_save():
    seen, results = RunAndEpochs(), []
    trainer = tiny_trainer(callbacks=[seen])
    for _ in trainer.epochs(2):
        train = trainer.train_loop()
        trainer.eval()
        results.append({f"train/{name}": value for name, value in train.items()}
                       | {f"eval/{name}": value for name, value in trainer.eval_result.items()})
    assert seen.ends == [(1, 6, False, results[0]), (2, 12, False, results[1])]
    assert results[0].keys() == {"train/tol_loss", "eval/tol_loss", "eval/acc"}


def test_an_epoch_without_an_evaluation_ends_as_well():
    seen = RunAndEpochs()
    trainer = tiny_trainer(callbacks=[seen], eval_loader=None)
    results = []
    for _ in trainer.epochs(2):
        results.append(trainer.train_loop())
    assert [end[3] for end in seen.ends] == [{"train/tol_loss": result["tol_loss"]} for result in results]


@pytest.mark.parametrize("with_evaluation", [True, False])
def test_an_epoch_that_a_callback_fails_behind_is_saved(with_evaluation):
    class Fails(Callback):
        def on_epoch_end(self, model, results):
            raise OSError("no such table")

    trainer = tiny_trainer(callbacks=[Fails()], ckpt_dir="run", **({} if with_evaluation else {"eval_loader": None}))
    with pytest.raises(OSError, match="no such table"):
        trainer.fit(3)
    trainer = tiny_trainer(ckpt_dir="run", **({} if with_evaluation else {"eval_loader": None}))
    trainer.load_state("auto")
    assert (trainer.epochs_done, trainer.global_step, trainer.batches_done) == (1, 6, 0)


def test_epochs_ends_with_one_exit():
    recorder = Recorder()
    trainer = tiny_trainer(callbacks=[recorder])
    trainer.fit(2)
    assert recorder.seen.count("on_exit") == 1 and recorder.seen[-1] == "on_exit"
    assert recorder.seen.count("on_train_start") == recorder.seen.count("on_eval_result") == 2


# --- after errors -----------------------------------------------------------------------------------------------------


def test_clean_up_events_come_after_an_error_in_the_evaluation():
    recorder = Recorder()

    class Broken(Tiny):
        def metric(self, pred, y):
            raise KeyError("no such metric")

    trainer = Broken(callbacks=[recorder], preflight=False)
    trainer.check_init(use_tb=False)
    with pytest.raises(KeyError):
        trainer.eval()
    assert recorder.seen == ["on_eval_start", "on_eval_end", "on_exit"]


def test_exit_comes_after_an_error_in_training():
    recorder = Recorder()

    class Broken(Tiny):
        def loss_per_batch(self, batch):
            if self.global_step == 2:
                raise OSError("the disk went away")
            return super().loss_per_batch(batch)

    trainer = Broken(callbacks=[recorder])
    trainer.check_init(use_tb=False)
    with pytest.raises(OSError, match="went away"):
        trainer.fit(1)
    assert recorder.seen[-1] == "on_exit"
    assert recorder.seen.count("on_after_step") == 2


def test_a_callback_that_fails_in_its_clean_up_does_not_keep_the_others_from_theirs():
    class Fails(Callback):
        def on_eval_end(self, model):
            raise RuntimeError("eval end")

        def on_exit(self, model):
            raise RuntimeError("exit")

    recorder = Recorder()
    trainer = tiny_trainer(callbacks=[Fails(), recorder])
    with pytest.raises(RuntimeError):
        trainer.eval()
    assert "on_eval_end" in recorder.seen and "on_exit" in recorder.seen

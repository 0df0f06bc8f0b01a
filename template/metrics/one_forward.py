"""One forward per eval batch, however the subclass is written.

    with OneForward(models) as forwards:
        with forwards.recording():
            loss_per_batch(batch)                # runs the network
        with forwards.replaying():
            eval_scores_per_batch(batch)         # gets the same outputs again for the same inputs

Each recorded output is handed out at most once, so a second call on the same input (Monte-Carlo dropout, test-time
augmentation) really runs; one that was changed in place is not handed out. It does not touch training, nor a model that
was scripted.
"""

from contextlib import contextmanager

import torch


@contextmanager
def eval_mode(models):
    """All models in eval mode, every part back in its own mode afterwards."""
    modes = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class OneForward:
    """Stands before the ``forward`` of each model between ``__enter__`` and ``__exit__``."""

    def __init__(self, models):
        self.models = [model for model in models if not isinstance(model, torch.jit.ScriptModule)]
        self.records = []  # (model, its mode, arguments, output, versions of the tensors in both)
        self.is_recording = False
        self.is_replaying = False

    def __enter__(self):
        self.replaced = []
        for model in self.models:
            # module.compile() puts its own entry before forward
            name = "forward" if getattr(model, "_compiled_call_impl", None) is None else "_compiled_call_impl"
            self.replaced.append((model, name, model.__dict__.get(name)))
            setattr(model, name, self._guarded(model, getattr(model, name)))
        return self

    def __exit__(self, *error):
        self.records.clear()
        for model, name, before in reversed(self.replaced):  # a model may stand in the list twice
            if before is None:
                delattr(model, name)
            else:
                setattr(model, name, before)

    def recording(self):
        return _Phase(self, "is_recording")

    def replaying(self):
        return _Phase(self, "is_replaying")

    def _guarded(self, model, forward):
        def guarded(*args, **kwargs):
            if self.is_replaying:
                for position, (owner, training, inputs, output, versions) in enumerate(self.records):
                    alike = owner is model and training == model.training and _same(inputs, (args, kwargs), versions)
                    if alike and _same(output, output, versions):
                        del self.records[position]
                        return output
            output = forward(*args, **kwargs)
            if self.is_recording:
                inputs, versions = (args, kwargs), {}
                _note_versions((inputs, output), versions)
                self.records.append((model, model.training, inputs, output, versions))
            return output

        return guarded


class _Phase:
    """What is recorded lasts until the end of the next replay. A class: a generator function costs a batch 5 us more."""

    def __init__(self, forwards, flag):
        self.forwards = forwards
        self.flag = flag

    def __enter__(self):
        if self.flag == "is_recording":
            self.forwards.records.clear()
        setattr(self.forwards, self.flag, True)

    def __exit__(self, *error):
        setattr(self.forwards, self.flag, False)
        if self.flag == "is_replaying":
            self.forwards.records.clear()


def _note_versions(value, versions):
    """How often each tensor was written to in place, by id."""
    if isinstance(value, torch.Tensor):
        versions[id(value)] = None if value.is_inference() else value._version
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _note_versions(part, versions)


def _same(old, new, versions):
    """Equal inputs. The same tensor object costs nothing; a converted copy (``x.float()``) is compared by value, which
    waits for the device but is cheap beside a forward."""
    if isinstance(old, torch.Tensor):
        if not isinstance(new, torch.Tensor) or not (old.is_inference() or versions.get(id(old)) == old._version):
            return False
        if new is old:
            return True
        alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
        return alike and torch.equal(old, new)
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key], versions) for key in old)
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(_same(a, b, versions) for a, b in zip(old, new))
    return old is new or (isinstance(old, (str, int, float, bool)) and old == new)

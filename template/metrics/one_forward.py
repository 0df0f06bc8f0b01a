"""One forward per eval batch where the subclass wrote ``loss_per_batch`` and left the scores to the template.

    with OneForward(models) as forwards:
        with forwards.recording():
            loss_per_batch(batch)                # runs the network, in the user's own code
        with forwards.replaying():
            eval_scores_per_batch(batch)         # the default: asks for the same outputs

An output is handed out again only for the same inputs, only when its model ran once and with every part in eval mode, and
only while the model is what it was then: its attributes, parts and weights are compared. Anything else really runs:
Monte-Carlo dropout, test-time augmentation, another head, averaged weights. Training and scripted models are left alone.
"""

from __future__ import annotations

import torch


class OneForward:
    """Stands before the ``forward`` of each model between ``__enter__`` and ``__exit__``.

    Args:
        models: none of them: everything runs.
    """

    def __init__(self, models):
        self.models = [model for model in models if not isinstance(model, torch.jit.ScriptModule)]
        self.records = []  # (model, what it was, arguments, output, versions of the tensors in both)
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
                own = [record for record in self.records if record[0] is model]
                if len(own) == 1:
                    _, looks, inputs, output, versions = own[0]
                    alike = looks is not None and _same(inputs, (args, kwargs), versions)
                    if alike and _same(output, output, versions) and looks == _looks(model):
                        self.records.remove(own[0])
                        return output
            output = forward(*args, **kwargs)
            if self.is_recording:
                inputs, versions = (args, kwargs), {}
                _note_versions((inputs, output), versions)
                self.records.append((model, _looks(model), inputs, output, versions))
            return output

        guarded.__wrapped__ = forward  # for inspect.signature: its parameters decide how a list or a dict goes in
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


def _looks(model):
    """What a model is, to compare: the values of all its parts' attributes, the identity and version of its tensors. None
    when a part is in train mode: its output may be random. About 2 us a part."""
    found = []
    for part in model.modules():
        if part.training:
            return None
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers"):
                found += [(id(p), p._version, p.data_ptr()) for p in value.values() if p is not None]
            elif isinstance(value, _VALUES):
                found.append((name, value))
            elif isinstance(value, (list, tuple, dict)) and name not in _HOOKS:
                parts = value.items() if isinstance(value, dict) else enumerate(value)
                found.append((name, id(value), [(key, part if isinstance(part, _VALUES) else id(part))
                                                for key, part in parts] if len(value) < 50 else len(value)))
            elif name not in _OWN:
                found.append((name, id(value)))
    return found


_VALUES = (bool, int, float, str, type(None))
_OWN = ("forward", "_compiled_call_impl")  # what stands before them here
_HOOKS = frozenset(vars(torch.nn.Module()))


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

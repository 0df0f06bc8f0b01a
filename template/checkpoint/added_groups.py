"""Parameter groups that joined an optimizer after ``check_init``: a file names their parameters, and loading adds them.

    describe(model, named)                         # {"0": [[["model0.body.weight", True], …]]}; True: it is trained
    with completed(model, state, named) as notes:  # an optimizer built as at the start gets the groups of the file
        apply(model, state)                        # which brings their rates; after an error they are taken out again

``named`` is ``{name in the state: parameter}``, see ``state.py``.
"""

from contextlib import contextmanager


def has_any(model):
    """Whether an optimizer has more groups than at ``check_init``."""
    return any(len(one.param_groups) > count for one, count in zip(model.optimizer_list, model.stepper.num_groups))


def describe(model, named):
    """``{index of an optimizer: its added groups, as lists of [name of a parameter, whether it is trained]}``."""
    counts = model.stepper.num_groups
    optimizers = [(str(i), one.param_groups[count:]) for i, (one, count) in enumerate(zip(model.optimizer_list, counts))]
    names = {p: name for name, p in named.items()}
    return {i: [[[names.get(p, "?"), p.requires_grad] for p in group["params"]] for group in groups]
            for i, groups in optimizers if groups}


@contextmanager
def completed(model, state, named):
    """Around the loading of a state to continue from. An optimizer that lacks groups of the file gets them, where their
    parameters are known by name and in no other group; they are trained again where they were.

    Yields:
        Messages about what was added.
    """
    notes, before = [], []
    try:
        for index, described in state.get("added_groups", {}).items():
            optimizer = model.optimizer_list[int(index)] if int(index) < len(model.optimizer_list) else None
            new = _lacking(optimizer, described, state.get(f"optimizer_list{index}"), named)
            for group in new:
                before.append((optimizer, [(p, p.requires_grad) for p, _ in group]))
                for p, is_trained in group:
                    p.requires_grad_(is_trained)
                optimizer.add_param_group({"params": [p for p, _ in group]})
            if new:
                notes.append(f"optimizer {index}: {len(new)} parameter group{'s' * (len(new) > 1)} added, as in the file")
        yield notes
    except BaseException:
        for optimizer, flags in reversed(before):
            del optimizer.param_groups[-1]
            for p, is_trained in flags:
                p.requires_grad_(is_trained)
        raise


def _lacking(optimizer, described, saved, named):
    """The groups ``[(parameter, whether it is trained), …]`` that the optimizer lacks; none where they do not fit."""
    if optimizer is None or saved is None:
        return []
    there = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in optimizer.param_groups]
    count = len(there) - len(here)
    if not 0 < count <= len(described) or there[:len(here)] != here:
        return []
    new = [[(named.get(name), is_trained) for name, is_trained in group] for group in described[-count:]]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    return [] if any(p is None or p in held for group in new for p, _ in group) else new

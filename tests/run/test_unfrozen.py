"""Layers that are unfrozen later and given to no optimizer are told, once, and all others are not."""

import pytest
import torch
from tiny import Tiny, tiny_model

from template import build_optimizer


def trainer_with_a_frozen_part(**attributes):
    model = tiny_model()
    first = next(part for part in model.modules() if isinstance(part, torch.nn.Linear))
    first.requires_grad_(False)
    trainer = Tiny(model, optimizer_list=build_optimizer("SGD", model, lr=0.1), **attributes)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.eval()
    return trainer, first


@pytest.mark.parametrize("preflight", [True, False])
def test_an_unfrozen_layer_in_no_optimizer_is_told_once(preflight, recwarn):
    trainer, first = trainer_with_a_frozen_part(preflight=preflight)
    first.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"2 parameters \(model_list\[0\]\..*weight.*were unfrozen and are in no optimizer"):
        trainer.train_loop()
    trainer.train_loop()  # a warning would be an error


def test_one_that_joins_an_optimizer_is_not(recwarn):
    trainer, first = trainer_with_a_frozen_part()
    first.requires_grad_(True)
    trainer.optimizer_list[0].add_param_group({"params": first.parameters(), "lr": 0.01})
    before = first.weight.detach().clone()
    trainer.train_loop()
    assert not torch.equal(first.weight, before) and not recwarn


def test_what_was_in_no_optimizer_from_the_start_is_told_by_check_init_alone(recwarn):
    model = tiny_model()
    first = next(part for part in model.modules() if isinstance(part, torch.nn.Linear))
    held = [p for p in model.parameters() if not any(p is q for q in first.parameters())]
    trainer = Tiny(model, optimizer_list=[torch.optim.SGD(held, 0.1)])
    with pytest.warns(UserWarning, match="are trainable but in no optimizer"):
        trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.train_loop()
    assert not recwarn

"""How a run lives.

- ``checks.py``: which mistakes are found before training?
- ``layers_and_schedulers.py``: which layers and schedulers would stop it late, or in torch's words?
- ``preflight.py``: which are found on the first batch?
- ``criterion_inputs.py``: is a criterion given what it takes?
- ``setup.py``: what does ``check_init`` build, and in which order?
- ``prepare.py``: how does a model get onto the device, and compiled?
- ``evaluation.py``: how is an evaluation scored?
- ``eval_predictions.py``: what do callbacks hear of the predictions in an evaluation?
- ``train_metrics.py``: how do the predictions of the training get their metrics?
- ``assignments.py``: what happens to a setting that is changed during the run?
- ``explain.py``: what is added to an error on the first batch?
- ``class_attributes.py``: what of a subclass's class body counts?
- ``checkpoints.py``: when is a run saved?
- ``pace.py``: how long is a run, and when is it evaluated within an epoch?
- ``lifetime.py``: how does a run go on, how is it left and closed?
- ``signals.py``: what happens at Ctrl-C and SIGTERM?
- ``requests.py``: what can a trainer be asked for around its loop?
- ``weights_for_use.py``: which weights are evaluated, kept as the best and handed out?
- ``predictions.py``: what do the models say of other data?
- ``trials.py``: how are several runs kept below one folder, and gone on with?
- ``defaults.py``: what do the default methods make of a batch?
- ``counting.py``: how much does a batch weigh?
- ``old_names.py``: what did templates before this one call differently?
- ``reports.py``: what does a trainer say of itself, and at the end of a run?
- ``as_found.py``: how is a trainer looked at by training it, and left as it was?
- ``copies.py``: what does a copy of a trainer hold?
- ``options.py``: how does a dataclass become command-line options?
"""

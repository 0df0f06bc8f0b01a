"""How an update is done.

- ``stepper.py``: how are gradients accumulated, scaled, clipped and applied?
- ``unlabelled.py``: how is an optimizer stepped without torch's label for profilers?
- ``closure.py``: how is an optimizer stepped that evaluates the loss by itself (LBFGS, SAM)?
- ``compiled_step.py``: how is an update done in one compiled graph?
- ``step_rules.py``: what do the optimizers of torch do to a weight, in such a graph?
- ``guard.py``: how is an update skipped whose loss or gradient is not finite?
- ``nominal_batch.py``: how many batches does an update take?
- ``optimizers.py``: how is an optimizer built by its name? ``build_optimizer``.
- ``param_groups.py``: which parameter gets which rate and weight decay? ``param_groups``.
- ``built_settings.py``: which settings of an optimizer has the script changed since a run began?
- ``fused.py``: which optimizers have a fused form, and how is one switched over to it?
- ``lr_scheduler.py``: which learning rates are there? ``WarmUpLR`` and the named schedules.
- ``schedule.py``: when does the learning rate change?
- ``rates_by_hand.py``: what does a rate that you set by hand do to a schedule?
- ``too_short.py``: which warm-up or schedule is longer than the run?
- ``new_groups.py``: which rates does a parameter group get that joins an optimizer during the run?
- ``user_schedulers.py``: what is known of schedulers that you built, and who steps them?
- ``resumed_schedules.py``: which schedule holds where a run goes on with another one than it began with?
- ``averages.py``: how is an average of the weights kept, and which updates count in it?
- ``schedule_free.py``: which optimizers train at one point and give another one for use?
"""

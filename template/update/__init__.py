"""How an update is done.

- ``stepper.py``: how are gradients accumulated, scaled, clipped and applied?
- ``guard.py``: how is an update skipped whose loss or gradient is not finite?
- ``lr_scheduler.py``: which learning rates are there? ``WarmUpLR`` and the named schedules.
- ``schedule.py``: when does the learning rate change?
"""

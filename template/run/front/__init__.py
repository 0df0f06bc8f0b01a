"""Behind ``KerasModel``: a trainer made of a network, a loss and the arguments of ``fit``.

- ``step_runner.py``: what does a step that was written for torchkeras call?
- ``fit_call.py``: what does a call of ``KerasModel.fit`` ask for, and how does a trainer get it?
- ``fit_checks.py``: what do people who come from Keras write, and what is to be written here?
- ``fit_callbacks.py``: who keeps its best weights in a file, and calls the callbacks of torchkeras?
- ``fit_by_loss.py``: how does its trainer call the network?
- ``fit_by_steps.py``: and where the step is the user's own?
- ``fit_processes.py``: how does such a model get into other processes?
"""

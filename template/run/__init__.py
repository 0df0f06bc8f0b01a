"""How a run lives.

- ``checks.py``: which mistakes are found before training?
- ``prepare.py``: how does a model get onto the device, and compiled?
- ``lifetime.py``: when is a run saved, and how does it end?
- ``requests.py``: what can a trainer be asked for around its loop?
- ``signals.py``: what happens at Ctrl-C and SIGTERM?
- ``defaults.py``: what do the default methods make of a batch?
- ``options.py``: how does a dataclass become command-line options?
"""

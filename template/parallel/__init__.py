"""Several processes that train as one.

- ``ranks.py``: how do the processes meet, and what do they tell each other?
- ``gradients.py``: how do their gradients become one? DistributedDataParallel, FSDP2, or an average.
"""

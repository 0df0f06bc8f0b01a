"""Several processes that train as one.

- ``ranks.py``: how do the processes meet, and what do they tell each other?
- ``exchange.py``: how does it get from one to the other?
- ``watch.py``: does a rank wait for another one that will never come?
- ``gradients.py``: how do their gradients become one? DistributedDataParallel, FSDP2, or an average.
- ``equality.py``: how do they come to hold the same weights, and who notices when they do not?
"""

"""Where batches come from.

- ``loaders.py``: how is any loader read in an order that depends on (seed, epoch) alone, starting at any batch?
- ``chained.py``: how are several loaders read one after the other? ``Chained``.
- ``in_memory.py``: how is data that fits in memory read by slicing? ``TensorLoader``.
- ``resized.py``: how are the same samples read in batches of another size?
- ``position.py``: where in an epoch does a run go on, also when its loader has changed?
- ``shares.py``: which batches does each of several processes get?
- ``limited.py``: how are the first batches of an epoch taken for all of it?
- ``agreement.py``: do all of them read the same data in the same order, or each its own? ``Divided``.
- ``nested.py``: how does a nested batch reach the device, and what is in it?
- ``open_files.py``: is a file open that forked workers would share?
- ``seeding.py``: where do random numbers come from, and how are they put back?
"""

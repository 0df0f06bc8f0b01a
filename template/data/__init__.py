"""Where batches come from.

- ``loaders.py``: how is any loader read in an order that depends on (seed, epoch) alone, starting at any batch?
- ``joint.py``: how is a batch of each of several loaders read in every step? A dict of loaders.
- ``chained.py``: how are several loaders read one after the other? ``Chained``.
- ``in_memory.py``: how is data that fits in memory read by slicing? ``TensorLoader``.
- ``resized.py``: how are the same samples read in batches of another size?
- ``workers.py``: what do a DataLoader's workers run, and when do they end?
- ``copied_ahead.py``: how does the next batch reach a GPU while it computes with this one?
- ``lengths.py``: how many samples and batches does a loader say it has?
- ``position.py``: where in an epoch does a run go on, also when its loader has changed?
- ``shares.py``: which batches does each of several processes get?
- ``limited.py``: how are the first batches of an epoch taken for all of it?
- ``agreement.py``: do all of them read the same data in the same order, or each its own? ``Divided``.
- ``nested.py``: how does a nested batch reach the device, and what is in it?
- ``open_files.py``: is a file open that forked workers would share?
- ``seeding.py``: where do random numbers come from, and how are they put back?
"""

"""What is kept of a run.

- ``files.py``: how is a checkpoint written, verified, read and found?
- ``state.py``: what does a checkpoint hold, and how is it put back?
- ``digests.py``: are two sets of weights the same to the last bit?
- ``added_groups.py``: which parameter groups joined an optimizer during the run?
- ``inner_optimizers.py``: what is kept of an optimizer within an optimizer (SAM)?
- ``own_objects.py``: which schedulers and generators does a person keep in attributes of the trainer?
- ``saver.py``: how is it written beside the training, and what happens when that fails?
- ``memory.py``: how much memory is free for states that wait for the disk?
- ``plain_data.py``: what may stand in a checkpoint, and how is it copied in memory?
- ``sharded.py``: how do several processes write their parts of divided weights (FSDP2)?
"""

"""Where the numbers of a run are sent: one tracker per file, each deletable. They are callbacks.

``base.py`` is what they share, and what your own is made from: what is sent, when, and how a resumed run goes on.
"""

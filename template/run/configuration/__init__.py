"""Settings from a YAML file and the command line, for ``tools/configure.py``.

- ``settings.py``: which settings does a trainer's class have?
- ``written_settings.py``: what was set in files and on the command line?
- ``objects_by_class.py``: how is an object made of the name of its class?
- ``shown_settings.py``: how are settings printed, and stored with a run?
- ``attribute_docs.py``: what does the source say of every attribute?
- ``yaml_files.py``: what stands in a file of settings, and in which line?
- ``typed_values.py``: what does a written value mean where a type is wanted?
"""

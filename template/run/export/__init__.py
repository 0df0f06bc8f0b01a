"""From a trained model to a file, for ``tools/export.py`` and ``tools/quantize.py``.

- ``one_module.py``: how does a whole ``inference`` become one graph, for exports?
- ``onnx_file.py``: how does an ONNX file come about, and how is it known to compute the same?
- ``calibration.py``: which range of values do 8-bit numbers stand for?
"""

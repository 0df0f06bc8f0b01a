"""CIFAR-10 with a small residual network: a larger subclass of ``TemplateModel`` than the top-level ``train.py``.

    python -m demo_cifar10.train --help
"""

"""What is measured.

- ``accumulators.py``: what can ``metric()`` return? ``Mean``, ``Stored``, ``Confusion``, and your own ``Metric``.
- ``confusion_scores.py``: how do F1, IoU, kappa and others follow from counts?
- ``multi_label.py``: and where a sample has several labels? ``MultiLabel``.
- ``top_k.py``: is the right class among the first k? ``TopK``.
- ``binary_scores.py``: how well do scores part two classes? ``BinaryScores``: AUROC, average precision, KS.
- ``regression.py``: how far are numbers off? ``Regression``: MAE, RMSE, R², Pearson.
- ``perplexity.py``: how well is the next token known? ``Perplexity``.
- ``by_group.py``: and for each slice of the data? ``by_group``.
- ``functions.py``: how do functions and torchmetrics' objects count beside them?
- ``epoch.py``: how do the values of batches become the values of an epoch, over all processes?
- ``train_totals.py``: and those of the training, whose epochs may be interrupted?
- ``best.py``: which value is the best one, and is more or less of it better?
- ``modes.py``: how are models looked at without changing them?
- ``one_forward.py``: how does one forward serve both the losses and the metrics of an evaluation batch?
- ``loss_forward.py``: and of a training batch?
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulators import Confusion as Confusion
    from .accumulators import Mean as Mean
    from .accumulators import Metric as Metric
    from .accumulators import Score as Score
    from .accumulators import Stored as Stored
else:
    def __getattr__(name: str) -> Any:  # ``from utils.metrics import Confusion`` was the old way
        if name not in ("Confusion", "Mean", "Metric", "Score", "Stored"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import accumulators
        return getattr(accumulators, name)

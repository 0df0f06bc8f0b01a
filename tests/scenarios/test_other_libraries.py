"""The callbacks that the docs show for other libraries bring the numbers which these libraries know, and no others."""

import importlib.util

import pytest
from test_docs import DOCS, blocks, project
from tiny import run_python

pytestmark = pytest.mark.slow

BLOCKS = {block.info.split()[-1]: block for page in DOCS for block in blocks(page) if block.info.startswith("python needs ")}
CHECKS = {
    "lightgbm": """
from sklearn.metrics import log_loss, roc_auc_score
assert [row["epoch"] for row in plot.rows] == list(range(1, 51))
for rounds in (1, 7, 50):
    for part, inputs, labels in (("train", x, y), ("eval", x_val, y_val)):
        predicted = booster.predict(inputs, num_iteration=rounds)
        row = plot.rows[rounds - 1]
        assert abs(row[f"{part}/auc"] - roc_auc_score(labels, predicted)) < 1e-9, (rounds, part)
        assert abs(row[f"{part}/binary_logloss"] - log_loss(labels, predicted)) < 1e-6, (rounds, part)
assert plot._look().startswith("epoch 50/50") and ", best auc 0.9" in plot._look()
from utils import History
history = History("history.csv", png=False)           # "fits in the place of plot"
sets = [lightgbm.Dataset(x, y), lightgbm.Dataset(x_val, y_val)]
lightgbm.train({"verbose": -1}, sets[0], 3, valid_sets=sets[1:], valid_names=["val"], callbacks=[log_to(history)])
history.close()
assert [list(row) for row in History("history.csv").rows] == [["epoch", "eval/l2", "seconds"]] * 3
""",
    "catboost": """
from sklearn.metrics import log_loss, roc_auc_score
assert [row["epoch"] for row in plot.rows] == list(range(1, 51))
kept = model.tree_count_                              # those up to the best one, of 50
predicted = model.predict_proba(x_val)[:, 1]
assert abs(plot.rows[kept - 1]["eval/AUC"] - roc_auc_score(y_val, predicted)) < 1e-9
assert abs(plot.rows[kept - 1]["eval/Logloss"] - log_loss(y_val, predicted)) < 1e-6
assert [row["train/Logloss"] for row in plot.rows] == model.get_evals_result()["learn"]["Logloss"]
assert max(row["eval/AUC"] for row in plot.rows) == model.get_best_score()["validation"]["AUC"] == plot._best["AUC"][1]
""",
    "transformers": """
assert [row["epoch"] for row in plot.rows] == [1, 2, 3]
assert [set(row) for row in plot.rows] == [{"epoch", "train/loss", "eval/loss"}] * 3
for name, column in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
    assert [row[column] for row in plot.rows] == [entry[name] for entry in trainer.state.log_history if name in entry]
model.eval()
model.cpu()
losses = [model(sample["input_ids"][None], labels=torch.tensor([sample["labels"]])).loss.item() for sample in data[:9]]
assert abs(plot.rows[-1]["eval/loss"] - sum(losses) / 9) < 1e-5
""",
    "lightning": """
assert [row["epoch"] for row in plot.rows] == [1, 2, 3]
assert [set(row) for row in plot.rows] == [{"epoch", "train/loss", "eval/loss"}] * 3
assert plot.rows[0]["train/loss"] > plot.rows[2]["train/loss"] and plot.rows[0]["eval/loss"] > plot.rows[2]["eval/loss"]
inputs, labels = loader.dataset.tensors
assert abs(plot.rows[-1]["eval/loss"] - cross_entropy(trainer.model.layer(inputs), labels).item()) < 1e-5
""",
}


def test_each_block_that_needs_another_library_is_checked():
    assert BLOCKS.keys() == CHECKS.keys()


@pytest.mark.parametrize("library", [
    pytest.param(library, marks=[pytest.mark.slow] * (library == "transformers")) for library in CHECKS])
def test_the_callback_of_the_docs_logs_what_the_library_measures(library, tmp_path):
    if importlib.util.find_spec(library) is None or library == "transformers" and not importlib.util.find_spec("accelerate"):
        pytest.skip(f"needs {library}: pip install {'transformers[torch]' if library == 'transformers' else library}")
    (tmp_path / "block.py").write_text(BLOCKS[library].code + CHECKS[library])
    run_python("block.py", cwd=project(tmp_path), env={"HF_HUB_OFFLINE": "1"})

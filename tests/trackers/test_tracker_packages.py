"""The real packages, offline: what they wrote of a run that was killed twice and resumed, read back by their own readers.

Their requirements do not go together, so each has an environment of its own: ``make trackers`` makes them and runs this.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tracker_job
from tiny import PATH

pytestmark = pytest.mark.slow

OPTIONS = {"Wandb": {"project": "p"}, "Trackio": {"project": "p"}, "SwanLab": {"project": "p"},
           "MLflow": {"experiment": "p"}}
PAUSES = {"Wandb": 6.0, "Trackio": 0.8}  # seconds after which a part of what was handed over is on the disk
_NO_CURVES = ("update", "epoch", "step", "timestamp")


@pytest.fixture(params=list(OPTIONS))
def name(request):
    if find_spec(request.param.lower()) is None:
        pytest.skip(f"{request.param.lower()} is not installed here: make trackers runs it in an environment of its own")
    return request.param


def run(name, update=0, pause=0.0, **options):
    """One process; returns what it printed."""
    env = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(Path("trackio").absolute()),
           "HOME": os.getcwd(), "NO_PROXY": "*"} | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    for key in ("WANDB_API_KEY", "WANDB_MODE", "SWANLAB_API_KEY", "SWANLAB_MODE"):
        env.pop(key, None)
    done = subprocess.run([sys.executable, "-m", "tracker_job", name, str(update), str(pause),
                           json.dumps(OPTIONS[name] | options)], env=env, capture_output=True, text=True, timeout=400,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == (-9 if update else 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def add(curves, name, x, value):
    if value is not None and name not in _NO_CURVES:
        assert x not in curves.setdefault(name, {}), f"{name} is there twice at {x}"
        curves[name][x] = value


def x_of(name, row):
    return int(row["epoch"] if name.startswith(("epoch/", "best/")) else row["update"])


def read_wandb():
    """Its offline files, by the format that its own writer has, and its messages. Its own reader is in ``wandb sync``."""
    from wandb.proto.wandb_internal_pb2 import Record

    curves, steps, config, media = {}, [], {}, []
    for path in sorted(Path("wandb").glob("offline-run-*/*.wandb")):
        for content in leveldb(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            for item in record.run.config.update:
                config[item.key] = json.loads(item.value_json)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if row:
                steps.append(row.pop("_step"))
            for key, value in row.items():
                if key.endswith("/_type"):  # of a picture, which is an entry of several parts
                    media.append((key.removesuffix("/_type"), row["update"]))
                elif not key.startswith("samples/") and not key.startswith("_"):
                    add(curves, key, x_of(key, row), value)
    assert len({path.stem for path in Path("wandb").glob("offline-run-*/*.wandb")}) == 1
    assert steps == list(range(len(steps)))  # so that wandb sync may append one file to the other
    return curves, config, media


def leveldb(data):
    """Records; source: https://github.com/google/leveldb/blob/main/doc/log_format.md"""
    blocks = [data[start:start + 32768] for start in range(0, len(data), 32768)]
    parts = b""
    for number, block in enumerate(blocks):
        place = 0 if number else 7  # behind the head of the file
        while place + 7 <= len(block):
            length, kind = int.from_bytes(block[place + 4:place + 6], "little"), block[place + 6]
            content = block[place + 7:place + 7 + length]
            if kind == 0 or len(content) < length:
                return
            parts = content if kind in (1, 2) else parts + content
            if kind in (1, 4):
                yield parts
            place += 7 + length


def read_trackio():
    import trackio

    trackio.utils.TRACKIO_DIR = Path("trackio")
    from trackio import sqlite_storage

    sqlite_storage.TRACKIO_DIR = Path("trackio")
    runs = sqlite_storage.SQLiteStorage.get_runs("p")
    assert len(runs) == 1
    curves, media = {}, []
    for row in sqlite_storage.SQLiteStorage.get_logs("p", runs[0]):
        for key, value in row.items():
            if isinstance(value, dict):
                media.append((key, row["step"]))
            else:
                add(curves, key, x_of(key, row | {"update": row["step"]}), value)
    return curves, sqlite_storage.SQLiteStorage.get_run_config("p", runs[0]), media


def read_swanlab():
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    curves, media = {}, []
    paths = sorted(Path("swanlog").glob("run-*/*.swanlab"))
    assert len({path.stem for path in paths}) == 1
    for path in paths:
        reader = DataStoreReader()
        if path.stat().st_size:
            reader.open(path)
            for content in reader:
                record = Record()
                record.ParseFromString(content)
                if record.HasField("scalar"):
                    add(curves, record.scalar.key, record.scalar.step, record.scalar.value.number)
                if record.HasField("media"):
                    media.append((record.media.key, record.media.step))
            reader.close()
    import yaml

    config = yaml.safe_load((paths[-1].parent / "files/config.yaml").read_text())
    return curves, {key: value["value"] for key, value in config.items()}, media


def read_mlflow():
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert len(found) == 1 and found[0].info.status == "FINISHED"
    curves, media = {}, []
    for key in found[0].data.metrics:
        for metric in client.get_metric_history(found[0].info.run_id, key):
            add(curves, key, metric.step, metric.value)
    for part in client.list_artifacts(found[0].info.run_id, "pictures/samples/noise"):
        media += [("samples/noise", int(Path(part.path).name))] * len(client.list_artifacts(found[0].info.run_id, part.path))
    config = found[0].data.params
    return curves, {"width": int(config["width"]), "data": {"name": config["data.name"]},
                    "settings": {"seed": int(config["settings.seed"])}}, media


READ = {"Wandb": read_wandb, "Trackio": read_trackio, "SwanLab": read_swanlab, "MLflow": read_mlflow}


def test_a_run_that_was_killed_twice_and_resumed_is_one_run_of_the_tracker_without_double_or_missing_points(name):
    expected = tracker_job.expected()
    run(name, 31, PAUSES.get(name, 0.0))
    run(name, 53)
    last = run(name)
    curves, config, media = READ[name]()
    assert curves == expected
    assert config["width"] == 16 and config["data"] == {"name": "tiny"} and config["settings"]["seed"] == 3
    evaluations = sorted(expected["eval/acc"])
    assert media == [("samples/noise", update) for update in evaluations]
    assert "nobody waits" not in last and "could not be sent" not in last
    assert last.count("There is no key") == (name in ("Wandb", "SwanLab"))  # and nobody was asked for one

"""The callbacks of docs/tracking.md, by what the clients read of the files that they wrote."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import study

import batchscale as bs

PAGE = (Path(__file__).parents[1] / "docs/tracking.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
VALUES = ["validation/error", "validation/loss"]


@pytest.fixture
def tracked(square, tmp_path, monkeypatch):
    """Runs the block of the page that names the client, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()

    def run(client: str) -> bs.Result:
        (block,) = [block for block in BLOCKS if f"import {client}\n" in block]
        tiny = study(square, batch_sizes=[4, 32], trials=2, max_steps=4, goal=bs.Goal(VALUES[0], 0))
        names = {"study": tiny}
        with pytest.warns(UserWarning, match="no trial reached"):
            exec(compile(block, "docs/tracking.md", "exec"), names)
        return names["result"]

    return run


def assert_tracked(found: dict[str, dict], result: bs.Result, *, exact=True) -> None:
    """Every trial is a run, with its hyperparameters and all of its values.

    Args:
      found: by a trial's name, `settings` and, by metric, `(step, value)` of each evaluation.
      result: of the study.
      exact: or in float32.
    """
    folder = result.folder.name
    names = {"/".join(map(str, (folder, *index))): index for index in result.trials.index}
    assert found.keys() == names.keys()
    assert len(found) == 4
    for name, index in names.items():
        settings = {key: float(value) for key, value in found[name]["settings"].items()}
        rate = result.trials.loc[index, "learning_rate"]
        assert settings == {"batch_size": index[0], "learning_rate": rate}
        rows = result.measurements.loc[index]
        for metric in rows:
            known = rows[metric].dropna()
            steps, values = zip(*sorted(found[name][metric]), strict=True)
            assert list(steps) == known.index.tolist()
            assert len(steps) > 1
            expected = known.to_numpy()
            np.testing.assert_array_equal(values, expected if exact else expected.astype("f4"))


def test_lines_of_json_hold_every_value(tracked):
    result = tracked("dataclasses, json")
    found: dict[str, dict] = {}
    for row in map(json.loads, Path("runs/lines.jsonl").read_text().splitlines()):
        name = "/".join(str(row[key]) for key in ("batch_size", "trial", "replicate"))
        settings = {"batch_size": row["batch_size"], **row["hyperparameters"]}
        run = found.setdefault(f"{Path(row['folder']).name}/{name}", {"settings": settings})
        for metric, value in row["values"].items():
            run.setdefault(metric, []).append((row["step"], value))
    assert_tracked(found, result)


@pytest.mark.slow
def test_wandb_holds_every_value(tracked):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    result = tracked("wandb")
    found: dict[str, dict] = {}
    for path in Path("runs/wandb").glob("offline-run-*/*.wandb"):
        run: dict = {}
        name = ""
        records = [Record.FromString(data) for data in log_records(path.read_bytes())]
        for record in records:
            if record.WhichOneof("record_type") == "run":
                name = record.run.display_name
                config = {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
                run["settings"] = {key: config[key] for key in ("batch_size", "learning_rate")}
            elif record.WhichOneof("record_type") == "history":
                row = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                for metric in row.keys() & set(result.measurements):
                    run.setdefault(metric, []).append((row["_step"], row[metric]))
        assert any(record.WhichOneof("record_type") == "exit" for record in records)
        found[name] = run
    assert_tracked(found, result)


def log_records(data: bytes) -> list[bytes]:
    """The records of a log in the format of LevelDB, of which a file of W&B is one."""
    place, records, record = 7, [], b""  # after the name and the version
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:  # too little for a header: the next block
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + size]
        if kind in (1, 4):  # whole, or the last part
            records.append(record)
            record = b""
        place += 7 + size
    return records


def test_tensorboard_holds_every_value(tracked):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = tracked("SummaryWriter")
    found: dict[str, dict] = {}
    for path in Path("runs/tensorboard").glob("**/events.out.*"):
        events = accumulator.EventAccumulator(str(path.parent)).Reload()
        (text,) = events.Tensors("hyperparameters/text_summary")
        run: dict = {"settings": ast.literal_eval(text.tensor_proto.string_val[0].decode())}
        for metric in events.Tags()["scalars"]:
            run[metric] = [(event.step, event.value) for event in events.Scalars(metric)]
        found[str(path.parent.relative_to("runs/tensorboard"))] = run
    assert_tracked(found, result, exact=False)


# Its store uses what SQLAlchemy will remove.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_mlflow_holds_every_value(tracked):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    result = tracked("mlflow")
    client = mlflow.MlflowClient("sqlite:///runs/mlflow.db")
    experiment = client.get_experiment_by_name("batchscale")
    found: dict[str, dict] = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.status == "FINISHED"
        found[run.info.run_name] = {"settings": run.data.params} | {
            metric: [
                (row.step, row.value) for row in client.get_metric_history(run.info.run_id, metric)
            ]
            for metric in run.data.metrics
        }
    assert_tracked(found, result)

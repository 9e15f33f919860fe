"""Where a run's metrics go beside metrics.csv: TensorBoard's files and, when asked, Weights & Biases or MLflow."""

import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from finetuning.config import schema as experiment
from finetuning.errors import UserError, printable
from finetuning.files import read_json, write_json
from finetuning.training.run_record import RUN_IDS

PROJECT = "asr-fine-tuning"
# No host name, user name or copy of the screen: a run is its metrics and settings
WANDB_SETTINGS = {"host": "", "x_disable_meta": True, "x_disable_machine_info": True, "console": "off", "quiet": True}
START = {
    "wandb": "type: wandb login, or set WANDB_MODE=offline",
    "mlflow": "look at MLFLOW_TRACKING_URI, or unset it to write into mlflow.db beside run.json",
}


class TensorBoardFiles(TensorBoardLogger):
    """TensorBoard's files, without the constants and counters that Lightning and NeMo log as curves."""

    def __init__(self, output: Path) -> None:
        """Take the folder of the run."""
        super().__init__(output, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics; the horizontal axis is the step already."""
        super().log_metrics({k: v for k, v in metrics.items() if k not in ("epoch", "global_step")}, step)


class TrackingService(Logger):
    """Passes metrics on to a tracking service; where that fails, it is left out and the training continues."""

    def __init__(self, service: WandbLogger | MLFlowLogger, name: str) -> None:
        """Take a `service` that has been started, and its name for messages."""
        self.service, self._name, self.is_lost = service, name, False

    @property
    def name(self) -> str:
        """Return the name of the service."""
        return self._name

    @property
    def version(self) -> str | None:
        """Return the id of the run."""
        return self.service.version

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Send nothing: NeMo's own configuration holds paths of this machine; start_tracking sends the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics."""
        if not self.is_lost:
            self._send(self.service.log_metrics, {k: v for k, v in metrics.items() if k != "global_step"}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run of the service."""
        if not self.is_lost:
            self._send(self.service.finalize, status)
            if isinstance(self.service, WandbLogger):
                self._send(self.service.experiment.finish, 0 if status == "success" else 1)

    def _send(self, send: Any, *values: Any) -> None:
        try:
            send(*values)
        except Exception as error:  # each service has its own
            self.is_lost = True
            print(f"{self.name} takes no more metrics ({_reason(error)}); metrics.csv and tensorboard/ have them all")


def start_tracking(config: experiment.Config, output: Path) -> TrackingService | None:
    """Start, or continue, the run of `training.logger` in the main process; None where no service is asked for.

    Raise UserError in one sentence where the service does not answer.
    """
    kind = config.training.logger
    if kind is None:
        return None
    found = read_json(output / RUN_IDS)
    known = found if isinstance(found, dict) else {}
    try:
        service = _service(kind, config.name, output, known.get(kind))
        if rank_zero_only.rank == 0:
            service.log_hyperparams(_settings(config))  # the first call: it starts the run
            write_json(output / RUN_IDS, {**known, kind: service.version})
    except Exception as error:  # each service has its own
        raise UserError(
            f"training.logger={kind} cannot start ({_reason(error)}); {START[kind]}, or type training.logger=null"
        ) from error
    return TrackingService(service, kind)


def _service(kind: str, name: str, output: Path, run_id: str | None) -> WandbLogger | MLFlowLogger:
    """Return Lightning's logger; where the metrics go is told by each service's own environment variables."""
    if kind == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return WandbLogger(name=name, save_dir=output, id=run_id, project=project, settings=WANDB_SETTINGS)
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    address = os.environ.get("MLFLOW_TRACKING_URI")
    local = {"tracking_uri": f"sqlite:///{output / 'mlflow.db'}", "artifact_location": (output / "mlruns").as_uri()}
    return MLFlowLogger(project, run_name=name, run_id=run_id, **({"tracking_uri": address} if address else local))


def _settings(config: experiment.Config) -> dict[str, Any]:
    """Return what the run is made from; of files and folders only the names."""
    free, tree = experiment.free_keys(experiment.Training), config.as_dict()
    training = {key: value for key, value in tree["training"].items() if key not in free}
    for sound in (training["noise"], training["room"]):
        sound["folder"] = Path(sound["folder"] or "").name or None
    return {"experiment": config.name, "base": Path(config.model.base or "").name or None, "training": training}


def _reason(error: Exception) -> str:
    """Return the first line of a message, without addresses, which may hold passwords."""
    text = re.sub(r"\S+://\S+", "…", printable(str(error))) or type(error).__name__
    return textwrap.shorten(text, 200, placeholder=" …")

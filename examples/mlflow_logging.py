"""Train a model and log its losses to MLflow, which needs `pip install mlflow`.

python examples/mlflow_logging.py DATA OUT

The environment variable MLFLOW_TRACKING_URI names MLflow's server or database. MLflow sends usage statistics to its
authors unless MLFLOW_DISABLE_TELEMETRY=true is set.
"""

import argparse
from pathlib import Path

import mlflow

import metalad


def log(step: metalad.TrainingStep) -> None:
    """Log one step of gradient descent to the active MLflow run."""
    mlflow.log_metric(f"{step.stage}/loss", step.loss, step=step.step)
    if step.validation_loss is not None:  # the previous epoch's; the first epoch has none
        mlflow.log_metric(f"{step.stage}/validation_loss", step.validation_loss, step=step.step)


def main() -> None:
    """Write the run folder OUT and log to a new run of the experiment `metalad`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="a folder of good images, or a category such as MVTec AD's")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=int, help="train this many instead of the method's number")
    options = parser.parse_args()
    mlflow.set_experiment("metalad")
    with mlflow.start_run(run_name=options.out.name):
        # Only methods that train by gradient descent call the function; the default method is not one of them.
        metalad.train(options.data, options.out, method="metal", epochs=options.epochs, callback=log)


if __name__ == "__main__":
    main()

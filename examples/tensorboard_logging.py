"""Train a model and log its losses to TensorBoard, which needs `pip install tensorboard`.

python examples/tensorboard_logging.py DATA OUT
tensorboard --logdir OUT/tensorboard
"""

import argparse
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

import metalad


def main() -> None:
    """Write the run folder OUT/run and TensorBoard's files OUT/tensorboard."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="a folder of good images, or a category such as MVTec AD's")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=int, help="train this many instead of the method's number")
    options = parser.parse_args()

    with SummaryWriter(str(options.out / "tensorboard")) as writer:

        def log(step: metalad.TrainingStep) -> None:
            writer.add_scalar(f"{step.stage}/loss", step.loss, step.step)
            if step.validation_loss is not None:  # the previous epoch's; the first epoch has none
                writer.add_scalar(f"{step.stage}/validation_loss", step.validation_loss, step.step)

        # Only methods that train by gradient descent call the function; the default method is not one of them.
        metalad.train(options.data, options.out / "run", method="metal", epochs=options.epochs, callback=log)


if __name__ == "__main__":
    main()

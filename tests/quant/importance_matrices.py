"""Importance matrices for tests."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from quant.model import Model


def write_importance(path: Path, model: Model) -> None:
    """A matrix of this model, in which all weights matter."""
    writer = GGUFWriter(path, "imatrix")
    for tensor in model.tensors:
        if tensor.block is not None and len(tensor.shape) == 2:
            writer.add_tensor(f"{tensor.name}.in_sum2", np.ones((1, tensor.shape[0]), dtype=np.float32))
            writer.add_tensor(f"{tensor.name}.counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

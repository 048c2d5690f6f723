"""What every test starts from."""

from pathlib import Path

import pytest
import torch

from pictures import write_images

torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def tree(tmp_path) -> Path:
    """root/train and root/test with two classes; 4 + 2 images per class."""
    for split, n in (("train", 4), ("test", 2)):
        for seed, name in enumerate(("cat", "dog")):
            write_images(tmp_path / "pets" / split / name, n, seed=seed + 10 * n)
    return tmp_path / "pets"

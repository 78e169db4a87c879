"""Run compiled products and convolutions on NumPy arrays."""

from typing import Any

import numpy as np

from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix


def multiply(matrix: PackedMatrix, x: np.ndarray, y: np.ndarray, bias: np.ndarray | None = None, **kwargs: Any) -> None:
    """Write the product with the rows of `x` to `y`."""
    bias = np.zeros(matrix.shape[0], np.float32) if bias is None else bias
    matrix.compile_product(len(x), **kwargs)(bias.ctypes.data, x.ctypes.data, y.ctypes.data)


def convolve(
    matrix: PackedMatrix,
    sizes: tuple[int, ConvolutionWindow],
    arrays: tuple[np.ndarray, np.ndarray],
    bias: np.ndarray | None = None,
    threads: int = 1,
) -> None:
    """Convolve images. `sizes` are the number of images and the window, `arrays` are the planes and the result."""
    bias = np.zeros(matrix.shape[0], np.float32) if bias is None else bias
    matrix.compile_convolution(*sizes, threads=threads)(bias.ctypes.data, *(array.ctypes.data for array in arrays))

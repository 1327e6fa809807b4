"""Arrays that stand for those of libraries and devices that a test machine may lack."""

import types

import numpy as np


class CudaArray:
    """Stands for a cupy.ndarray where there is no GPU: all that is looked at before a launch."""

    def __init__(self, *shape, dtype="float32", device=0, address=0, like=None):
        twin = np.empty(shape, dtype) if like is None else like
        self.shape, self.dtype, self.strides, self.size = twin.shape, twin.dtype, twin.strides, twin.size
        self.flags = twin.flags
        self.data = types.SimpleNamespace(device_id=device, ptr=address)


CudaArray.__module__, CudaArray.__name__ = "cupy", "ndarray"


class Shelf:
    """Stands for an array of a library that is known by nothing but DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class StandardShelf(Shelf):
    """One that also follows the array API standard, so that its module need not be known."""

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=lambda array: StandardShelf(np.from_dlpack(array)))


Shelf.__module__, StandardShelf.__module__ = "shelf", "standard_shelf.arrays"


def shelf_module():
    """The library of `Shelf`, to be put in `sys.modules`."""
    module = types.ModuleType("shelf")
    module.from_dlpack = lambda array: Shelf(np.from_dlpack(array))
    return module

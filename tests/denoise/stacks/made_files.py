"""Files as microscopes and their programs write them, one of each kind, small."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

RESOLUTION = {"resolution": (15.4, 15.4), "resolutionunit": "CENTIMETER"}
IMAGEJ = {
    "axes": "TZCYX",
    "Info": "Objective: 63x\nµm per pixel: 0.065",
    "Labels": [f"frame {number}" for number in range(12)],
    "Ranges": (0.0, 4095.0, 100.0, 900.0),
    "LUTs": [np.stack([np.arange(256)] * 3).astype(np.uint8)] * 2,
    "mode": "composite",
    "unit": "um",
    "spacing": 0.3,
    "finterval": 0.5,
}
OME = {
    "PhysicalSizeX": 0.065,
    "PhysicalSizeXUnit": "µm",
    "Channel": {"Name": ["DAPI", "GFP µ"]},
    "Plane": {"PositionX": [float(number) for number in range(12)]},
}


def values(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return values that fill a type: extremes, fractions and negative ones where it has them."""
    rng = np.random.default_rng(len(shape))
    if np.dtype(dtype).kind == "f":
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 4, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: str  # that the file is opened with
    write: Callable[[Path, NDArray[Any]], object]
    planes: int


def _tiff(**options: Any) -> Callable[[Path, NDArray[Any]], object]:
    return lambda path, array: tifffile.imwrite(path, array, **options)


def _each_page_its_own(path: Path, array: NDArray[Any]) -> None:
    with tifffile.TiffWriter(path) as writer:
        for number, page in enumerate(array):
            writer.write(
                page,
                contiguous=False,
                metadata=None,
                photometric="minisblack",
                description=f"exposure {number}",
                datetime="2026:01:02 03:04:05",
                extratags=[(51123, 2, None, f'{{"stage": {number}}}', False), (65000, 12, 2, (0.5, number), False)],
            )


def _pyramid(path: Path, array: NDArray[Any]) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(array, subifds=1, metadata={"axes": "TYX"}, photometric="minisblack")
        writer.write(array[:, ::2, ::2], subfiletype=1, photometric="minisblack")


def _mrc(**header: Any) -> Callable[[Path, NDArray[Any]], object]:
    def write(path: Path, array: NDArray[Any]) -> None:
        import mrcfile

        with mrcfile.new(path) as mrc:
            mrc.set_data(array)
            mrc.set_extended_header(np.frombuffer(b"tilt angles " * 10, "V120"))
            mrc.voxel_size = 1.35
            mrc.add_label("made for a test")
            for key, value in header.items():
                mrc.header[key] = value

    return write


def _zarr(version: int, axes: str) -> Callable[[Path, NDArray[Any]], object]:
    def write(path: Path, array: NDArray[Any]) -> None:
        import zarr

        group = zarr.open_group(path, mode="w", zarr_format=version)
        for level, pixels in enumerate((array, array[..., ::2, ::2])):
            chunks = (2, *pixels.shape[1:-2], 16, 16)
            group.create_array(str(level), shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)[...] = pixels
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [0.1 * 2**level] * len(axes)}],
            }
            for level in range(2)
        ]
        image = {"axes": [{"name": axis, "unit": "micrometer"} for axis in axes], "datasets": datasets, "name": "cells"}
        group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}})

    return write


KINDS = [
    Kind("imagej.tif", (3, 2, 2, 20, 24), "uint16", "TZCYX", _tiff(imagej=True, metadata=IMAGEJ, **RESOLUTION), 12),
    Kind("imagej_float.tif", (4, 20, 24), "float32", "TYX", _tiff(imagej=True, metadata={"axes": "TYX"}), 4),
    Kind("imagej_rgb.tif", (4, 20, 24, 3), "uint8", "ZYXS", _tiff(imagej=True, metadata={"axes": "ZYXS"}), 4),
    Kind("imagej_one.tif", (20, 24), "float32", "YX", _tiff(imagej=True), 1),
    Kind("imagej_channels.tif", (4, 20, 24), "uint16", "CYX", _tiff(imagej=True, metadata={"axes": "CYX"}), 4),
    Kind("ome.tif", (3, 2, 2, 20, 24), "uint16", "TCZYX", _tiff(ome=True, metadata={**OME, "axes": "TCZYX"}), 12),
    Kind("ome_zct.tif", (2, 3, 2, 20, 24), "int16", "ZTCYX", _tiff(ome=True, metadata={"axes": "ZTCYX"}), 12),
    Kind("ome.btf.tif", (3, 20, 24), "float32", "TYX", _tiff(ome=True, bigtiff=True, metadata={"axes": "TYX"}), 3),
    Kind(
        "ome_deflated.tif",
        (3, 2, 20, 24),
        "float32",
        "TCYX",
        _tiff(ome=True, metadata={"axes": "TCYX"}, compression="zlib"),
        6,
    ),
    Kind("ome_pyramid.tif", (3, 32, 48), "uint16", "TYX", _pyramid, 3),
    Kind("pages.tif", (5, 20, 24), "uint8", "IYX", _tiff(metadata=None, photometric="minisblack", **RESOLUTION), 5),
    Kind("pages_own.tif", (5, 20, 24), "uint16", "IYX", _each_page_its_own, 5),
    Kind("pages_big_endian.tif", (5, 20, 24), "int16", "QYX", _tiff(byteorder=">", photometric="minisblack"), 5),
    Kind("half.tif", (5, 20, 24), "float16", "QYX", _tiff(photometric="minisblack"), 5),
    Kind("bigtiff.tif", (5, 20, 24), "float32", "QYX", _tiff(bigtiff=True, photometric="minisblack"), 5),
    Kind(
        "deflated.tif",
        (5, 20, 24),
        "uint16",
        "QYX",
        _tiff(compression="zlib", predictor=True, photometric="minisblack"),
        5,
    ),
    Kind("lzw.tif", (5, 20, 24), "uint16", "QYX", _tiff(compression="lzw", photometric="minisblack"), 5),
    Kind("lzw_float.tif", (2, 20, 24), "float32", "QYX", _tiff(compression="lzw", predictor=3), 2),
    Kind("zstd_tiled.tif", (2, 40, 56), "uint16", "QYX", _tiff(compression="zstd", tile=(16, 32)), 2),
    Kind("one_file_one_page.tif", (5, 20, 24), "uint16", "QYX", _tiff(truncate=True, photometric="minisblack"), 5),
    Kind("named_axes.tif", (5, 20, 24), "int8", "TYX", _tiff(metadata={"axes": "TYX", "site": 3}), 5),
    Kind("white_is_zero.tif", (5, 20, 24), "uint8", "QYX", _tiff(photometric="miniswhite"), 5),
    Kind("two_stains.tif", (20, 24, 2), "uint8", "YXS", _tiff(photometric="minisblack", planarconfig="contig"), 2),
    Kind("apart.tif", (4, 3, 20, 24), "uint16", "QSYX", _tiff(photometric="rgb", planarconfig="separate"), 4),
    Kind("one_float.tif", (20, 24), "float32", "YX", _tiff(), 1),
    Kind("one_signed.tif", (20, 24), "int16", "YX", _tiff(), 1),
    Kind("array.npy", (5, 20, 24), "float32", "ZYX", np.save, 5),
    Kind("array_c.npy", (3, 2, 20, 24, 3), "uint8", "TZYXS", np.save, 6),
    Kind("fortran.npy", (5, 20, 24), ">i2", "ZYX", lambda path, array: np.save(path, np.asfortranarray(array)), 5),
    Kind("array.npz", (5, 20, 24), "float16", "ZYX", lambda path, array: np.savez_compressed(path, movie=array), 5),
    Kind("zarr2.ome.zarr", (3, 2, 20, 24), "uint16", "TCYX", _zarr(2, "tcyx"), 6),
    Kind("zarr3.ome.zarr", (5, 20, 24), "float32", "ZYX", _zarr(3, "zyx"), 5),
    Kind("volume.mrc", (5, 20, 24), "float32", "ZYX", _mrc(), 5),
    Kind("movie.mrcs", (5, 20, 24), "int16", "ZYX", _mrc(ispg=0), 5),
    Kind("half.mrc", (5, 20, 24), "float16", "ZYX", _mrc(), 5),
]

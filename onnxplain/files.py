"""Data read from files, and results written to files, for the command line."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from onnxplain.errors import ArgumentError, DataError, MissingPackageError, ShapeError

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
TABLES = {".csv", ".parquet"}
ARRAYS = {".npy", ".npz"}
READABLE = ARRAYS | TABLES | IMAGES
RESULTS = {".npz", ".csv", ".parquet", ".nc"}
STREAMED = {"", ".zarr"}  # folders that are written batch by batch
PLOTS = {".png", ".pdf", ".svg", ".jpg", ".jpeg", ".html"}

MAPPED_BYTES = 2**26  # larger .npy files are read where they are used

# What NumPy raises for damaged files; MemoryError where a header lies about the size.
UNREADABLE = (OSError, ValueError, EOFError, MemoryError, BadZipFile, ZlibError)

IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names by the number of channels


# Reading


def read_data(
    paths: Sequence[Path],
    input_names: Sequence[str],
    input_dims: Sequence[tuple],
    *,
    columns: Sequence[str] | None = None,
    resize: bool = False,
) -> list[np.ndarray]:
    """Return one array per input of the model from a file, or one array from several images."""
    kinds = {path.suffix.lower() for path in paths}
    if kinds <= IMAGES:
        return [read_images(paths, single(input_dims, paths[0]), resize)]
    if len(paths) > 1:
        raise ArgumentError("several files as data are read only if all of them are images")
    path, kind = paths[0], kinds.pop()
    if kind in TABLES:
        return [fold_rows(read_table(path, columns)[0], single(input_dims, path))]
    if kind == ".npz":
        return read_npz(path, input_names)
    if kind == ".npy":
        single(input_dims, path)
        return [read_npy(path)]
    raise ArgumentError(
        f"{path}: data of type {kind or '(none)'!r} are not read; {known(READABLE)}"
    )


def single(input_dims: Sequence[tuple], path: Path) -> tuple:
    """Return the shape of the only input, or say how several are given."""
    if len(input_dims) == 1:
        return input_dims[0]
    raise ArgumentError(
        f"{path} holds one array, the model has {len(input_dims)} inputs; "
        "give an .npz file with one array per input"
    )


def read_npy(path: Path) -> np.ndarray:
    """Return the array in a .npy file, never unpickling anything."""
    try:
        if path.stat().st_size > MAPPED_BYTES:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as .npy data: {error}") from error


def read_npz(path: Path, input_names: Sequence[str]) -> list[np.ndarray]:
    """Return the arrays named like the inputs, or the only array for the only input."""
    try:
        # NumPy reads an archive bit by bit: it has to stay open.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            return [archive[name] for name in chosen(archive.files, input_names, path)]
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as .npz data: {error}") from error


def chosen(keys: Sequence[str], input_names: Sequence[str], path: Path) -> Sequence[str]:
    """Return which arrays of an archive to use."""
    if set(input_names) <= set(keys):
        return input_names
    if len(input_names) == len(keys) == 1:
        return keys
    raise DataError(
        f"{path} has arrays {list(keys)}, expected one named like each input of the model: "
        f"{list(input_names)}"
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the values of a table (rows, columns), all numeric, and the names of the columns."""
    import pandas as pd

    need_package_for(path)
    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # parser errors of pandas and pyarrow are ValueErrors
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if columns:
        missing = [name for name in columns if name not in table]
        if missing:
            raise DataError(f"{path} has no columns {missing}; it has {list(table.columns)}")
        table = table[list(columns)]
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise DataError(
            f"{path}: columns {text} are not numeric; choose those to use with --columns"
        )
    return table.to_numpy(), [str(name) for name in table]


def fold_rows(values: np.ndarray, input_dim: tuple) -> np.ndarray:
    """Return rows of a table in the shape of the input: a row holds one flattened instance."""
    fixed = all(isinstance(n, int) for n in input_dim)
    if fixed and values.shape[1] != int(np.prod(input_dim)):
        raise ShapeError(
            f"the table has {values.shape[1]} columns, the model expects {int(np.prod(input_dim))} "
            f"values per row (shape {tuple(input_dim)}); choose columns with --columns"
        )
    return values.reshape(len(values), *input_dim) if fixed else values


def read_images(paths: Sequence[Path], input_dim: tuple, resize: bool) -> np.ndarray:
    """Return images as (n, height, width, channels) of type uint8, in the colours of the model."""
    channels, height, width = image_layout(input_dim)
    return np.stack([read_image(path, channels, (width, height), resize) for path in paths])


def image_layout(input_dim: tuple) -> tuple[int, Any, Any]:
    """Return channels, height and width of an image input, wherever its channels stand."""
    if len(input_dim) == 3:
        if input_dim[0] in IMAGE_MODES:
            return input_dim
        if input_dim[2] in IMAGE_MODES:
            return input_dim[2], input_dim[0], input_dim[1]
    raise ShapeError(
        f"the model's input has shape {tuple(input_dim)}: no image of 1, 3 or 4 channels"
    )


def read_image(path: Path, channels: int, size: tuple, resize: bool) -> np.ndarray:
    """Return one image as (height, width, channels)."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert(IMAGE_MODES[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if all(isinstance(n, int) for n in size) and image.size != size:
        if not resize:
            raise ShapeError(
                f"{path} has {image.width}x{image.height} pixels, the model expects "
                f"{size[0]}x{size[1]}; give images of that size, or --resize"
            )
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def normalise(x: np.ndarray, scale, mean, std, channel_axis: int) -> np.ndarray:
    """Return (x / scale - mean) / std, mean and std one number or one per channel."""
    if scale is None and mean is None and std is None:
        return x
    x = x.astype(np.result_type(x, np.float32), copy=False)
    if scale is not None:
        x = x / x.dtype.type(scale)
    if mean is not None:
        x = x - along(channel_axis, mean, x, "--mean")
    if std is not None:
        x = x / along(channel_axis, std, x, "--std")
    return x


def along(axis: int, values: Sequence[float], x: np.ndarray, option: str) -> np.ndarray:
    """Return values as an array that broadcasts along one axis of x."""
    if len(values) not in (1, x.shape[axis]):
        raise ArgumentError(
            f"{option} has {len(values)} values; expected one, or one for each of the "
            f"{x.shape[axis]} channels"
        )
    shape = [1] * x.ndim
    shape[axis] = len(values)
    return np.asarray(values, x.dtype).reshape(shape)


# Writing


def check_target(path: Path, kinds: set[str], sources: Sequence[Path]) -> None:
    """Raise if a file cannot be written or would replace one that is read; before any work."""
    if path.suffix.lower() not in kinds:
        raise ArgumentError(f"{path}: cannot write {path.suffix or 'no type'!r}; {known(kinds)}")
    if any(path.resolve() == source.resolve() for source in sources):
        raise ArgumentError(f"{path} is read as well: writing would destroy it; name another file")
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder; name a file")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}") from error
    if not existed:
        path.unlink()
    need_package_for(path)


def need_package_for(path: Path) -> None:
    """Raise if the package behind a file type is not installed."""
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise MissingPackageError(
            f"{path}: .parquet needs pyarrow: pip install 'onnxplain[parquet]'"
        )
    if path.suffix.lower() in (".html", ".htm"):
        from onnxplain.plots.plotly import check_plotly

        check_plotly(str(path))


def known(kinds: set[str]) -> str:
    return "known types: " + ", ".join(sorted(kinds))


def write_result(method: Any, path: Path) -> None:
    """Write the result of a method in the format that the file's ending names."""
    write = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet, ".nc": write_netcdf}
    try:
        write[path.suffix.lower()](method, path)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror or error}") from error


def write_npz(method: Any, path: Path) -> None:
    method.save(path)


def write_csv(method: Any, path: Path) -> None:
    method.get_result("data.frame").to_csv(path, index=False)


def write_parquet(method: Any, path: Path) -> None:
    method.get_result("data.frame").to_parquet(path, index=False)


def write_netcdf(method: Any, path: Path) -> None:
    """Write labelled data: netCDF-4 where h5netcdf is installed, else netCDF-3 through SciPy."""
    import xarray as xr

    data = method.get_result("xarray")
    groups = isinstance(data, xr.DataTree)  # netCDF-3 has no groups
    if find_spec("h5netcdf") and find_spec("h5py"):
        data.to_netcdf(path, engine="h5netcdf")
    elif groups:
        raise MissingPackageError(
            f"{path}: several inputs or outputs need netCDF-4: pip install 'onnxplain[netcdf]'"
        )
    else:
        data.to_netcdf(path, engine="scipy")


def write_plot(method: Any, path: Path, data_idx: Sequence[int], **selection: Any) -> None:
    """Draw some rows of a result and write the picture."""
    interactive = path.suffix.lower() == ".html"
    figure = method.plot(data_idx=list(data_idx), as_plotly=interactive, **selection)
    try:
        figure.save(path)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror or error}") from error

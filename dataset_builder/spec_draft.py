"""Drafting a spec from what an inspection found; what only a person knows is left as a marked gap."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dataset_builder.inspection import Found, reason
from dataset_builder.yaml_check import GAP
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES
from em_bench_eval.volume_io import is_remote

HEAD = f"""# A spec for `em-bench build --spec`. Fill in every {GAP}: the build names each that is left.
# Paths are relative to this file. Sizes are in nm and in the order z, y, x.
source:
  name: {{name}}            # short: it stands in every row that is built from this
  title: {GAP}
  licence: {GAP}            # an SPDX identifier such as CC-BY-4.0, or: none stated
  modality: {GAP}           # FIB-SEM, SBF-SEM, ssTEM, ...
  redistributable: false   # true: em-bench publish may upload the pixels
  # citation: |            # BibTeX
  #   @article{{{{key, author = {{{{...}}}}, title = {{{{...}}}}, year = {{{{...}}}}}}}}
volumes:
"""
ORGANELLE_HELP = f"{', '.join(ORGANELLES)}, background, other:NAME (another structure) or ignore (not annotated)"


def draft(found: list[Found], spec: Path) -> str:
    """Write a spec over the volumes that were found: each image with the label files of its shape.

    Raises ``InputError`` if no volume could be opened.
    """
    images = [one for one in found if one.kind == "image"]
    labels = [one for one in found if one.kind in ("semantic labels", "instances")]
    if not images and not labels:
        raise InputError(
            "no spec can be drafted",
            found="no image and no labels",
            expected="a path with both",
            remedy="name several paths: em-bench inspect IMAGE LABELS --draft spec.yaml",
        )
    name = re.sub(r"[^a-z0-9]+", "_", spec.absolute().parent.name.lower()).strip("_") or "my_data"
    name = name if name[0].isalpha() else f"my_{name}"
    parts = [HEAD.format(name=f"{name}_data")]
    for number, image in enumerate(images or [None], start=1):
        fitting = [one for one in labels if image is None or _shape(one) == _shape(image)]
        parts.append(_volume(number, image, fitting, spec))
    return "".join(parts) + _left_out(found, images, labels, spec)


def _left_out(found: list[Found], images: list[Found], labels: list[Found], spec: Path) -> str:
    """Name what no volume of the draft has: labels of another size than every image, and what cannot be opened."""
    sizes = {_shape(image): _size(image) for image in images}
    strange = [one for one in labels if images and _shape(one) not in sizes]
    lines = [f"#   {_path(one, spec)}: {one.kind}, {_size(one)}" for one in strange]
    if lines:
        images_have = f"the images have {', '.join(sizes.values())}"
        lines.insert(0, f"# labels whose size (z, y, x) no image has; {images_have}:")
        lines.append("# (a part of a larger image is named {path: ..., box: [[z0, z1], [y0, y1], [x0, x1]]})")
    faults = [f"#   {_path(one, spec)}: {reason(one)}" for one in found if one.fault is not None]
    return "".join(f"{line}\n" for line in lines + ["# what cannot be opened:"] * bool(faults) + faults)


def write_draft(text: str, spec: Path) -> None:
    """Write a draft under a new name; raises ``InputError`` if the file exists, and nothing is half-written."""
    if spec.exists():
        raise InputError(f"{spec} exists", expected="a new name", remedy="choose another --draft, or move it away")
    partial = spec.with_name(f".{spec.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, spec)  # unlike os.replace, never over a file that has appeared meanwhile
    except FileExistsError as error:
        raise InputError(f"{spec} exists", expected="a new name", remedy="choose another --draft") from error
    except OSError as error:
        raise InputError(f"{spec} cannot be written", found=error.strerror, remedy="choose another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def _volume(number: int, image: Found | None, labels: list[Found], spec: Path) -> str:
    lines = [f"  - id: volume{number}"]
    if image is None or image.opened is None:
        lines.append(f"    image: {GAP}           # a folder of slices or a file")
    else:
        lines.append(f"    image: {_path(image, spec)}  # {image.opened.format}, {_size(image)}, {image.opened.dtype}")
        lines += [f"    # look at this: {doubt}" for doubt in image.doubts]
    lines += [
        f"    specimen: {GAP}        # volumes of one animal or culture share it: none of it is in test and in training"
    ]
    lines += [f"    cell_type: {GAP}", *_voxel_size(image, labels), *_labels(labels, spec)]
    lines += [
        "    annotated:             # each organelle that was annotated completely, and how:",
        f"      {GAP}: {GAP}         # mito: manual (or refined: a model's, corrected; or model: a model's)",
        "    # ignore: mask.tif      # where it is not 0, nobody annotated; or {path: mask.tif, values: [255]}",
        "    # extras: {lysosomes: ids.tif, vesicles: {path: classes.tif, values: [4]}}  # beside the five",
        "    # domain: out           # the specimen only tests; in: it trains too",
        "    # fold: test            # a published division: train, validation or test",
        "    # frame: cell 3         # where volumes are parts of a larger one: its name, and where this one begins",
        "    # origin_nm: [0, 0, 0]  # parts of one file (box: ...) need neither",
        *_intensity(image),
    ]
    return "\n".join(lines) + "\n"


def _labels(labels: list[Found], spec: Path) -> list[str]:
    if not labels:
        return [
            "    labels:",
            f"      - path: {GAP}",
            f"        instances: {GAP}   # one id per instance of this organelle; or values: {{1: mito, 2: nucleus}}",
        ]
    lines = ["    labels:               # where files overlap, the first wins"]
    for one in labels:
        lines.append(f"      - path: {_path(one, spec)}")
        if one.kind == "instances":
            lines.append(
                f"        instances: {GAP}   # the organelle; or {{1-40: mito, 41: nucleus}}; or a table ids.csv"
            )
            continue
        values = [value for value in (one.sample.values if one.sample else ()) if value != 0]
        lines.append(f"        values:            # {ORGANELLE_HELP}")
        lines += [f"          {value}: {GAP}" for value in values]
        lines.append(
            "          # rest: other      # every value that is not named; without it such a value is an error"
        )
    return lines


def _voxel_size(image: Found | None, labels: list[Found]) -> list[str]:
    stated = [(one, one.opened.voxel_size_nm) for one in (image, *labels) if one is not None and one.opened is not None]
    for one, size in stated:
        if size is not None:
            edges = ", ".join(f"{edge:g}" for edge in size)
            return [f"    voxel_size_nm: [{edges}]  # as {Path(one.location).name} states it"]
    return [f"    voxel_size_nm: [{GAP}, {GAP}, {GAP}]  # z, y, x; the files do not state it"]


def _intensity(image: Found | None) -> list[str]:
    if image is None or image.opened is None or image.sample is None or image.opened.dtype == "uint8":
        return ["    # intensity: {invert: true}   # if membranes are bright"]
    low, high = image.sample.percentiles[0], image.sample.percentiles[-1]
    return [
        f"    intensity:             # {image.opened.dtype} becomes 8 bits: these intensities become 0 and 255",
        f"      window: [{low:.6g}, {high:.6g}]   # or percentiles: [0.1, 99.9]",
        "      invert: false        # true if membranes are bright",
    ]


def _path(one: Found, spec: Path) -> str:
    text = one.location if is_remote(one.location) else os.path.relpath(one.location, spec.absolute().parent)
    return text if re.fullmatch(r"[\w./~+-]+(:[\w./+-]+)?", text) else "'" + text.replace("'", "''") + "'"


def _size(one: Found) -> str:
    return " x ".join(map(str, _shape(one) or ()))


def _shape(one: Found) -> tuple[int, ...] | None:
    return None if one.opened is None else one.opened.shape

"""The commands that belong to an exported folder, with its own names filled in."""

from __future__ import annotations

from baselines.external.nnunet_layout import IGNORE, Layout

TRAINED = """# nnU-Net export of {dataset}, configuration {config}

{counts}

{labels}

```bash
DATASET={dataset}  # its folder, or its name on the Hub
export nnUNet_raw=$PWD/nnUNet_raw nnUNet_preprocessed=$PWD/nnUNet_preprocessed nnUNet_results=$PWD/nnUNet_results
nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity -c {network}
nnUNetv2_train {number} {network} 0
nnUNetv2_predict -i nnUNet_raw/{folder}/imagesTs -o predictionsTs -d {number} -c {network} -f 0 --save_probabilities
em-bench import predictionsTs --probabilities --dataset $DATASET --config {config} --split test --cases cases.json \\
  --model nnunet --out predictions/nnunet
em-bench score predictions/nnunet $DATASET --config {config} --split test
```

Fold 0 of `nnUNet_preprocessed/{folder}/splits_final.json` is the benchmark's own division into train and validation;
the other folds do not exist here. `labelsTs` and `instancesTs` are the reference of the test images.
"""

TEST_ONLY = """# Test images of {dataset}, configuration {config}

{counts}

Predict the files of `nnUNet_raw/{folder}/imagesTs` with any program, name each result like its image (with or without
`_0000`), and read them back:

```bash
DATASET={dataset}  # its folder, or its name on the Hub
em-bench import RESULTS --instances --organelle mito --dataset $DATASET --config {config} --split test \\
  --cases cases.json --model NAME --out predictions/NAME
em-bench score predictions/NAME $DATASET --config {config} --split test
```
"""


def readme(layout: Layout, number: int, folder: str, test_only: bool) -> str:
    """Return the text of ``README.md``."""
    return (TEST_ONLY if test_only else TRAINED).format(
        dataset=layout.dataset,
        config=layout.config,
        number=number,
        folder=folder,
        network="2d" if layout.dimension == "2d" else "3d_fullres",
        counts=counts(layout),
        labels=labels(layout),
    )


def counts(layout: Layout) -> str:
    """Say in a line how many cases of what there are."""
    numbers = ", ".join(f"{len(layout.of(fold))} {fold}" for fold in ("train", "validation", "test") if layout.of(fold))
    size = "native pixels" if layout.pixel_nm is None else f"pixels of {layout.pixel_nm:g} nm"
    what = "images" if layout.dimension == "2d" else "volumes"
    return f"{len(layout.cases)} {what} ({numbers}), {layout.file_ending}, {size}; {', '.join(layout.organelles)}."


def labels(layout: Layout) -> str:
    """Say what is ignored, and why."""
    training = layout.of("train", "validation")
    partly = [case for case in training if not set(layout.organelles) <= set(case.annotated)]
    lines = [f"Labels: {', '.join(f'{number} {name}' for name, number in layout.labels.items())}."]
    if partly:
        lines.append(
            f"In {len(partly)} of {len(training)} training cases not all of these organelles are annotated. What is "
            "not labelled there may be one of them, so it is ignored: such a case teaches what an organelle looks "
            "like, but not what is none. Exporting one organelle at a time (--organelle mito) loses nothing."
        )
    if IGNORE in layout.labels and not partly:
        lines.append("Ignored: regions that nobody annotated.")
    spacings = {round(nm, 3) for case in training for nm in case.file_spacing_nm(layout.pixel_nm)[1:]}
    if layout.reader == "NaturalImage2DIO" and len(spacings) > 1:
        lines.append(
            f"Pixels of {min(spacings):g} to {max(spacings):g} nm are mixed, and this format does not tell nnU-Net: "
            "export with --pixel-nm 8, or as NIfTI."
        )
    return "\n".join(lines)

"""Sizes of files, and what the text examples measured."""

from measured.records import made_by, markdown, megabytes, percent, records_of

TRAINED_NETWORKS = {"resnet20": "ResNet-20, trained", "digits-cnn": "small CNN, trained"}
FILES = {
    "fp32": "**fggp**",
    "bound": "bound",
    "gzip -9": "gzip -9",
    "zstd -19": "zstd -19",
    "xz -6": "xz -6",
    "bf16": "fggp, bf16 values",
}
"""Columns of the table of file sizes: how many times smaller each is than the dense file."""


def file_rows() -> list[tuple[float, dict[str, int]]]:
    """Bytes of VGG-19's files by sparsity, pruned by magnitude."""
    found = records_of("benchmarks/file.ndjson", model="vgg19")
    return [
        (m["sparsity"], m["bytes"]) for m in (found[-1]["measured"] if found else ()) if m["pruned_by"] == "magnitude"
    ]


def file_sizes() -> str | None:
    """The files of VGG-19 and of small trained networks at three sparsities, beside general compressors."""
    trained = records_of("benchmarks/file.ndjson", model="trained")
    rows = [("VGG-19", sparsity, sizes) for sparsity, sizes in file_rows()]
    for m in trained[-1]["measured"] if trained else ():
        rows.append((TRAINED_NETWORKS[m["model"]], m["sparsity"], m["bytes"]))
    cells = [
        [
            network,
            percent(sparsity),
            megabytes(sizes["dense"]),
            megabytes(sizes["fp32"]),
            *(f"{sizes['dense'] / sizes[name]:.1f}×" for name in FILES),
        ]
        for network, sparsity, sizes in rows
    ]
    head = ["network", "sparsity", "dense file", "small file", *FILES.values()]
    return markdown(head, cells) if rows and trained else None


def text() -> str | None:
    """Accuracy and perplexity of the examples with text, dense and pruned: the last record of each model."""
    found = {record["run"]["model"]: record for record in records_of("text/text.ndjson")}
    if not found:
        return None
    rows = []
    for model, record in found.items():
        run = record["run"]
        (measure,) = {"accuracy", "perplexity"} & {*run}
        rows.append(
            [
                f"{model}, {measure}",
                percent(run["sparsity"]),
                *(f"{run[measure][name]:.1f}" for name in ("dense", "pruned", "pruned, net.fggp")),
                *(megabytes(run["bytes"][name]) for name in ("dense.pt", "small.safetensors", "net.fggp")),
            ]
        )
    head = ["", "sparsity", "dense", "pruned", "net.fggp", "dense file", "small file", "net.fggp's size"]
    return f"{markdown(head, rows)}\n\n{made_by(record)}"

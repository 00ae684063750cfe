"""The table of networks of timm and Transformers in docs/runtime.md, from the record of benchmarks/networks.py."""

from measured.records import Json, by_network, engine_cells, made_by, markdown, records_of, times_faster

ENGINES = {"onnxruntime": "ONNX Runtime, ms", "openvino": "OpenVINO, ms", "fggp": "fggp, ms"}
DENSE = ("onnxruntime", "openvino")


def networks() -> str | None:
    """Each network: what is left to PyTorch, how exact it is, its times, and where it is slower than dense, why."""
    found = records_of("benchmarks/networks.ndjson", benchmark="networks")
    if not found:
        return None
    last = {model: (own, record) for record in found for (model, _, _), own in by_network(record)}
    rows = [_row(model, own) for model, (own, _) in last.items()]
    head = ["network", "left to PyTorch", "deviation", *ENGINES.values(), "× the fastest dense", "slowest steps"]
    conditions = dict.fromkeys(made_by(record) for _, record in last.values())
    return f"{markdown(head, rows)}\n\n{' '.join(conditions)}"


def _row(model: str, own: dict[str, Json]) -> list[str]:
    ours, dense = own["fggp"], [name for name in DENSE if "ms" in own.get(name, {})]
    if "error" in ours:
        return [model, "it raised an error", "–", *engine_cells(own, dense), "–", "–", ""]
    left = ", ".join(f"{count} × `{operator}`" for operator, count in ours["left"].items()) or "nothing"
    faster = times_faster(own, *dense) if dense else "–"
    slower = bool(dense) and float(ours["ms"]) > min(float(own[name]["ms"]) for name in dense)
    cells = dict(zip([*dense, "fggp"], engine_cells(own, [*dense, "fggp"]), strict=True))
    return [
        model,
        left,
        f"{ours['deviation']:.0e}",
        *(cells.get(name, "–") for name in ENGINES),
        faster,
        _slowest(ours) if slower else "",
    ]


def _slowest(ours: Json) -> str:
    return ", ".join(f"{step} {ms / ours['ms_of_steps']:.0%}" for step, ms in ours.get("slowest", {}).items())

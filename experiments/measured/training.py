"""Mask updates and training."""

from statistics import median

from measured.records import LAB_NETWORKS, Json, made_by, markdown, percent, records_of

MEGA = 2**20
TRAINING_NETWORKS = {"vgg19": "VGG-19, 128", "resnet50": "ResNet-50, 64", "mlp-4096": "MLP of 4096, 256"}
UPDATES = {
    "fggp: FGGP": "**fggp, FGGP** (two Top-K steps)",
    "fggp: GMP": "fggp, GMP (one Top-K step)",
    "concatenate + sorted topk": "concatenate and sorted `topk`, as research code does",
    "torch.nn.utils.prune.global_unstructured": "`torch.nn.utils.prune.global_unstructured`",
    "concatenate + torch.kthvalue": "concatenate and `torch.kthvalue`",
    "concatenate + np.partition": "concatenate and NumPy's `partition`",
}


def _update_records() -> list[Json]:
    """The last record of each network; both or none."""
    found = [records_of("benchmarks/update.ndjson", model=name)[-1:] for name in LAB_NETWORKS]
    return [record for own in found for record in own] if all(found) else []


def update() -> str | None:
    """One mask update beside other tools."""
    records = _update_records()
    if not records:
        return None
    head = ["one update"]
    for record in records:
        name = LAB_NETWORKS[record["model"]]
        head += [f"{name}, {record['weights'] / 1e6:.1f} M weights", "× FGGP's time", "extra memory"]
    rows = []
    for contender, title in UPDATES.items():
        row = [title]
        for record in records:
            own, ours = (median(record["update_seconds"][name]) for name in (contender, "fggp: FGGP"))
            factor = "" if contender == "fggp: FGGP" else f"{own / ours:.2g}×"
            row += [
                f"{1e3 * own:,.0f} ms",
                factor,
                f"{record['extra_bytes'][contender] / record['weights']:.1f} B/weight",
            ]
        rows.append(row)
    return f"{markdown(head, rows)}\n\n{made_by(records[-1])}"


def steps() -> str | None:
    """An SGD step between updates, with and without a pruner."""
    rows = [
        [
            LAB_NETWORKS[record["model"]],
            *(f"{1e3 * median(record['step_seconds'][name]):.1f} ms" for name in ("bare step", "step with pruner")),
        ]
        for record in _update_records()
    ]
    return markdown(["", "without pruner", "with pruner"], rows) if rows else None


def loop() -> str | None:
    """The training loop beside a bare one."""
    found = records_of("benchmarks/loop.ndjson")
    if not found:
        return None
    speeds = {name: median(turns) for name, turns in found[-1]["images_per_second"].items()}
    names = {"bare": "bare", "lab, dense": "`fggp train`", "lab, FGGP to 95 %": "`fggp train`, FGGP pruning to 95 %"}
    rows = [
        [title, f"{speeds[name]:,.0f}", "" if name == "bare" else f"{100 * speeds[name] / speeds['bare']:.1f} %"]
        for name, title in names.items()
    ]
    return f"{markdown(['loop', 'images per second', 'share of the bare loop'], rows)}\n\n{made_by(found[-1])}"


def training() -> str | None:
    """Training steps that skip pruned weights beside dense ones."""
    found = {record["network"]: record for record in records_of("benchmarks/training.ndjson", scope="layer")}
    if not found:
        return None
    kinds = [f"{how} {kind}" for how in ("dense", "accelerated") for kind in ("bf16", "fp32")]
    others = [f"SparseProp fp32, {sparsity}" for sparsity in ("90%", "95%", "98%")]
    beside = any(each["case"] in others for record in found.values() for each in record["measured"])
    rows = []
    for network, title in TRAINING_NETWORKS.items():
        if network not in found:
            continue
        cases = {each["case"]: each for each in found[network]["measured"]}
        for sparsity in ("90%", "95%", "98%"):
            own = [cases[kind if kind in cases else f"{kind}, {sparsity}"] for kind in kinds]
            fastest = max(own[2:], key=lambda case: case["times_faster"])
            texts = [f"**{c['median_ms']:,.0f}**" if c is fastest else f"{c['median_ms']:,.0f}" for c in own]
            texts.append(f"{fastest['times_faster']:.1f}×")
            if beside:
                other = cases.get(f"SparseProp fp32, {sparsity}")
                texts.append(f"{other['median_ms']:,.0f}" if other else "–")
            rows.append([title, sparsity.replace("%", " %"), *texts])
            title = ""
    head = ["network, batch", "sparsity", "dense bf16", "dense fp32", "accelerated bf16", "accelerated fp32", "faster"]
    head += ["SparseProp fp32"] if beside else []
    conditions = dict.fromkeys(made_by(found[network]) for network in TRAINING_NETWORKS if network in found)
    return f"{markdown(head, rows)}\n\n{' '.join(conditions)}"


def whole_runs() -> str | None:
    """Whole runs of `fggp train`, with and without --accelerate: the last record of each."""
    found = {(r["model"], r["execution"]): r for r in records_of("training-speed/records.jsonl")}
    rows = []
    for model in dict.fromkeys(model for model, _ in found):
        if not {(model, "eager"), (model, "accelerated")} <= found.keys():
            continue
        both = dense, fast = found[model, "eager"], found[model, "accelerated"]
        done = int(dense["settings"]["prune_end"])  # epochs
        late = [median(record["curve"]["images_per_second"][done:]) for record in both]
        rows.append(
            [
                f"{LAB_NETWORKS.get(model, model)}, {dense['steps']:,} steps of {dense['settings']['batch_size']}",
                percent(dense["settings"]["sparsity"]),
                *(f"{record['wall_seconds']:,.0f} s" for record in both),
                f"{dense['wall_seconds'] / fast['wall_seconds']:.2g}×",
                f"{late[1] / late[0]:.2g}×",
                " / ".join(f"{record['test_accuracy']:.1f}" for record in both),
            ]
        )
    if not rows:
        return None
    head = ["run", "to", "plain", "`--accelerate`", "faster", "once pruned", "test accuracy, %"]
    return f"{markdown(head, rows)}\n\n{made_by(fast)}"


def scale() -> str | None:
    """Time, memory and exactness of an update by the number of weights, under the picture that `scale.py` draws."""
    records = {(r["contender"], r["dtype"], r["weights"]): r for r in records_of("benchmarks/scale.ndjson")}
    if not records:
        return None
    sizes = sorted({weights for _, _, weights in records})
    series = list(dict.fromkeys(key[:2] for key in records))

    def seconds(record: Json) -> str:
        value = median(record["seconds"])
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"

    def share(record: Json) -> str:
        per_weight = {"fp32": 9, "bf16": 5}[record["dtype"]]  # weight, gradient and a mask of one byte
        return f"{100 * record['extra_bytes'] / record['weights'] / per_weight:.0f} %"

    def surplus(record: Json) -> str:
        worst = max(record["kept_too_many"], key=abs)
        return "exact" if worst == 0 else f"{worst:+,}".replace("-", "−")

    parts = ["![Time and extra memory of one mask update by the number of weights](images/scale.png)"]
    for title, cell in {"one update": seconds, "extra memory": share, "kept too many": surplus}.items():
        rows = []
        for contender, dtype in series:
            own = [records.get((contender, dtype, weights)) for weights in sizes]
            texts = ["–" if r is None else f"*{r['stopped']}*" if "stopped" in r else cell(r) for r in own]
            rows.append([contender, dtype, *texts])
        names = [f"{w // (1024 * MEGA)} G" if w >= 1024 * MEGA else f"{w // MEGA} M" for w in sizes]
        parts.append(markdown([title, "weights", *names], rows))
    return "\n\n".join([*parts, made_by(next(reversed(records.values())))])

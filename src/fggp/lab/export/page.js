/* The page: it takes a drawing or a picture, and shows the network's answer. What fggp.js exports is in scope. */
{
    const DRAWN = "[1,8,8]"; /* the shape of scikit-learn's digits, which are drawn; other images are pictures */
    const SHOWN = 5; /* classes of a picture */
    const PEN = 0.045; /* of the pad's side */
    const element = (id) => document.getElementById(id);
    const about = JSON.parse(element("about").textContent);
    const context = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

    const fail = (error) => {
        element("answer").className = "error";
        element("answer").textContent = String(error.message ?? error);
        element("classes").replaceChildren();
    };

    const unpacked = (id) => {
        const bytes = Uint8Array.from(atob(element(id).textContent), (c) => c.charCodeAt(0));
        return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
    };

    const wasm = await unpacked("wasm").arrayBuffer().then((bytes) => WebAssembly.compile(bytes));
    const net = await load(unpacked("network"), { wasm }).catch((error) => {
        element("task").textContent = "The network cannot be loaded";
        fail(error);
        throw error;
    });
    const image = JSON.parse(net.metadata.input);
    const [channels, height, width] = image.shape;
    const draws = JSON.stringify(image.shape) === DRAWN;

    /* ---- From pixels to an answer ---- */

    /** What the network sees, from RGBA pixels. */
    function normalised(pixels) {
        const x = new Float32Array(channels * height * width);
        for (let pixel = 0; pixel < height * width; pixel++) {
            const [red, green, blue] = pixels.subarray(4 * pixel, 4 * pixel + 3);
            const values = channels === 1 ? [0.299 * red + 0.587 * green + 0.114 * blue] : [red, green, blue];
            values.forEach((value, channel) => {
                x[channel * height * width + pixel] = (value - image.mean[channel]) / image.std[channel];
            });
        }
        return new Tensor(x, [1, channels, height, width]);
    }

    function shares(scores) {
        const most = Math.max(...scores);
        const powers = Array.from(scores, (score) => Math.exp(score - most));
        const sum = powers.reduce((a, b) => a + b, 0);
        return powers.map((power) => power / sum);
    }

    /** Classify what is on the small canvas. */
    function classify() {
        try {
            const seen = element("seen");
            const y = net.run(normalised(context(seen).getImageData(0, 0, width, height).data));
            show(shares(y.data));
        } catch (error) {
            fail(error);
        }
    }

    function show(all) {
        const ranked = all.map((share, index) => ({ share, name: image.classes[index] ?? String(index) }));
        const best = ranked.reduce((a, b) => (b.share > a.share ? b : a));
        if (!draws) ranked.sort((a, b) => b.share - a.share).splice(SHOWN);
        element("answer").className = best.name.length > 3 ? "long" : "";
        element("answer").textContent = best.name;
        element("classes").replaceChildren(...ranked.map((entry) => rowOf(entry, entry === best)));
    }

    function rowOf({ name, share }, isBest) {
        const row = document.createElement("li");
        const [left, right] = [document.createElement("span"), document.createElement("span")];
        left.textContent = name;
        right.textContent = share === null ? "" : `${(100 * share).toFixed(share > 0.0995 ? 0 : 1)} %`;
        row.append(left, right);
        row.classList.toggle("best", isBest);
        row.style.setProperty("--share", `${100 * (share ?? 0)}%`);
        return row;
    }

    function clear() {
        element("answer").className = "";
        element("answer").textContent = "\u00a0";
        const names = draws ? image.classes : [];
        element("classes").replaceChildren(...names.map((name) => rowOf({ name, share: null }, false)));
        const seen = context(element("seen"));
        seen.fillStyle = "#000";
        seen.fillRect(0, 0, width, height);
    }

    /* ---- Drawing ---- */

    const strokes = []; /* lists of points [x, y] from 0 to 1 */

    function trace(target, points) {
        target.beginPath();
        points.forEach(([x, y], i) => (i ? target.lineTo(x, y) : target.moveTo(x, y)));
        if (points.length === 1) target.lineTo(...points[0]); /* a dot */
        target.stroke();
    }

    function paint() {
        const pad = element("pad");
        const target = context(pad);
        target.setTransform(pad.width, 0, 0, pad.height, 0, 0);
        target.clearRect(0, 0, 1, 1);
        Object.assign(target, { lineWidth: PEN, lineCap: "round", lineJoin: "round" });
        target.strokeStyle = getComputedStyle(pad).color;
        for (const points of strokes) trace(target, points);
    }

    /* Roughly as the training images were made from scans: cut out, stretched to the full height, and each pixel the
     * share of ink in its cell, in sixteenths. Narrow digits were widened. */
    function reduce() {
        const CELL = 16;
        const NARROW = 3.6; /* pixels */
        const all = strokes.flat();
        const [left, right, top, bottom] = [0, 0, 1, 1].flatMap((axis, i) =>
            i % 2 ? [Math.max(...all.map((p) => p[axis])) + PEN / 2] : [Math.min(...all.map((p) => p[axis])) - PEN / 2],
        );
        const tall = Math.max(bottom - top, 0.5 * (right - left)); /* a dash is no tall digit */
        const scaleY = height / tall;
        const natural = (right - left) * scaleY;
        const scaleX = Math.min(Math.max(natural, Math.min(NARROW, 2 * natural)), width) / (right - left);
        const large = context(new OffscreenCanvas(width * CELL, height * CELL));
        large.setTransform(
            scaleX * CELL, 0, 0, scaleY * CELL,
            (width / 2 - (scaleX * (left + right)) / 2) * CELL, (height / 2 - (scaleY * (top + bottom)) / 2) * CELL,
        );
        /* A pen of even width on the page would be thin where a digit is drawn large. */
        const thickness = 1.25 / scaleY;
        Object.assign(large, { lineWidth: thickness, lineCap: "round", lineJoin: "round" });
        for (const points of strokes) trace(large, points);
        const ink = large.getImageData(0, 0, width * CELL, height * CELL).data;
        const small = new ImageData(width, height);
        for (let y = 0; y < height; y++)
            for (let x = 0; x < width; x++) {
                let sum = 0;
                for (let i = 0; i < CELL * CELL; i++) {
                    const [row, column] = [y * CELL + Math.floor(i / CELL), x * CELL + (i % CELL)];
                    sum += ink[4 * (row * width * CELL + column) + 3] / 255;
                }
                const value = 15 * Math.round((16 * sum) / (CELL * CELL));
                small.data.set([value, value, value, 255], 4 * (y * width + x));
            }
        context(element("seen")).putImageData(small, 0, 0);
        classify();
    }

    function startDrawing() {
        const pad = element("pad");
        const point = (event) => {
            const box = pad.getBoundingClientRect();
            return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
        };
        let drawing = false;
        let waiting = false;
        const refresh = () => {
            if (waiting) return;
            waiting = true;
            requestAnimationFrame(() => {
                waiting = false;
                paint();
                if (strokes.length) reduce();
            });
        };
        pad.addEventListener("pointerdown", (event) => {
            if (event.button !== 0) return;
            pad.setPointerCapture(event.pointerId);
            drawing = true;
            strokes.push([point(event)]);
            refresh();
        });
        pad.addEventListener("pointermove", (event) => {
            if (!drawing) return;
            const events = event.getCoalescedEvents?.() ?? [];
            strokes.at(-1).push(...(events.length ? events : [event]).map(point));
            refresh();
        });
        for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (drawing = false));
        const erase = () => {
            strokes.length = 0;
            paint();
            clear();
        };
        element("clear").addEventListener("click", erase);
        addEventListener("keydown", (event) => event.key === "Escape" && erase());
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
        element("task").textContent = "Draw a digit";
        pad.hidden = element("clear").hidden = false;
        paint();
    }

    /* ---- Pictures ---- */

    async function take(file) {
        let bitmap;
        try {
            bitmap = await createImageBitmap(file);
        } catch {
            return fail(`${file.name || "this"} is not a picture that the browser can read`);
        }
        /* As in training: scaled and cropped in the centre. */
        const scale = Math.min(bitmap.width / width, bitmap.height / height);
        const [w, h] = [width * scale, height * scale];
        const target = context(element("seen"));
        target.imageSmoothingQuality = "high";
        target.fillStyle = "#fff";
        target.fillRect(0, 0, width, height);
        target.drawImage(bitmap, (bitmap.width - w) / 2, (bitmap.height - h) / 2, w, h, 0, 0, width, height);
        const picture = element("picture");
        URL.revokeObjectURL(picture.src);
        picture.src = URL.createObjectURL(file);
        picture.hidden = false;
        classify();
    }

    function startPictures() {
        const drop = element("drop");
        const first = (list) => [...(list ?? [])].find((file) => file.type.startsWith("image/")) ?? list?.[0];
        const given = (list) => first(list) && take(first(list));
        element("file").addEventListener("change", (event) => given(event.target.files));
        addEventListener("paste", (event) => given(event.clipboardData.files));
        addEventListener("dragover", (event) => {
            event.preventDefault();
            drop.classList.add("over");
        });
        addEventListener("dragleave", () => drop.classList.remove("over"));
        addEventListener("drop", (event) => {
            event.preventDefault();
            drop.classList.remove("over");
            given(event.dataTransfer.files);
        });
        element("task").textContent = "Drop a picture";
        drop.hidden = false;
    }

    /* ---- Facts ---- */

    const number = (x) => x.toLocaleString("en", { maximumSignificantDigits: 3 });
    const bytes = (x) => (x < 1e6 ? `${number(x / 1e3)} kB` : `${number(x / 1e6)} MB`);
    const milliseconds = (x) => `${x < 100 ? x.toPrecision(2) : Math.round(x)} ms`;
    const factor = (x) => (x < 10 ? x.toFixed(1) : Math.round(x));

    /** The same network without zeros. Its time does not depend on its values, so they are random. */
    function dense() {
        const tensors = {};
        for (const [name, { type, shape, values }] of Object.entries(about.tensors)) {
            const count = shape.reduce((a, b) => a * b, 1);
            const fanIn = shape.length > 1 ? count / shape[0] : 1;
            let data;
            if (type === "F32") data = Float32Array.from({ length: count }, () => (Math.random() - 0.5) * Math.sqrt(12 / fanIn));
            else data = type === "I64" ? BigInt64Array.from(values, BigInt) : Uint8Array.from(values, Number);
            tensors[name] = new Tensor(data, shape);
        }
        return build(about.description, tensors, { wasm });
    }

    const rest = () => new Promise((resolve) => setTimeout(resolve));
    const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

    /** Milliseconds of a run. A browser's clock is coarse, so a turn is several runs. */
    function turn(network, x) {
        const start = performance.now();
        let runs = 0;
        do {
            network.run(x);
            runs++;
        } while (performance.now() - start < 20);
        return (performance.now() - start) / runs;
    }

    async function measure() {
        const TURNS = 7;
        const x = normalised(context(element("seen")).getImageData(0, 0, width, height).data);
        const networks = [net, await dense()];
        const times = networks.map(() => []);
        for (let i = 0; i < 1 + TURNS; i++)
            for (const [k, network] of networks.entries()) {
                await rest(); /* the page stays usable */
                const time = turn(network, x);
                if (i > 0) times[k].push(time); /* the first turn warms up */
            }
        networks[1].free();
        const [pruned, full] = times.map(median);
        element("time").textContent = milliseconds(pruned);
        element("time-dense").innerHTML = `dense ${milliseconds(full)}, <b>${factor(full / pruned)}×</b>`;
    }

    /* ---- Start ---- */

    Object.assign(element("seen"), { width, height });
    element("hint").textContent = `What the network sees: ${width}\u00a0×\u00a0${height} pixels`;
    element("size").textContent = bytes(about.bytes);
    element("size-dense").innerHTML = `dense ${bytes(about.denseBytes)}, <b>${factor(about.denseBytes / about.bytes)}×</b>`;
    element("weights").textContent = about.weightsLeft.toLocaleString("en");
    const share = 100 * (1 - about.weightsLeft / about.weights);
    element("weights-dense").innerHTML = `of ${about.weights.toLocaleString("en")}, <b>${number(share)} %</b> are zero`;
    element("note").textContent =
        "Time: for one image, in this browser, on one thread; the dense network runs in the same library. " +
        "The page holds everything that it needs, and loads and sends nothing.";
    clear();
    if (draws) startDrawing();
    else startPictures();
    await rest();
    await measure();
    document.documentElement.dataset.ready = "measured";
}

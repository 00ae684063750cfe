// The part of benchmarks/web.py that Node runs: FOLDER MODULES NETWORK,… SECONDS TURNS. It prints JSON.
import { readFileSync, statSync } from "node:fs";
import { pathToFileURL } from "node:url";
import * as fggp from "../web/fggp.js";

const [folder, modules, networks, seconds, turns] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${modules}/dist/ort.wasm.min.mjs`).href);
ort.env.wasm.numThreads = 1;

const floats = (file) => new Float32Array(new Uint8Array(readFileSync(`${folder}/${file}`)).buffer);
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const difference = (a, b) => Math.hypot(...a.map((x, i) => x - b[i])) / Math.hypot(...b);

async function engines(name) {
    const x = floats(`${name}.x`);
    const made = [];
    for (const sparsity of ["0.0", "0.9", "0.95"]) {
        const file = `${folder}/${name}-${sparsity}.fggp`;
        const net = await fggp.load(file);
        const input = new fggp.Tensor(x, [1, 3, 32, 32]);
        const off = difference(net.run(input).data, floats(`${name}-${sparsity}.y`));
        made.push({ engine: "fggp", sparsity: Number(sparsity), bytes: statSync(file).size, off, run: () => net.run(input) });
    }
    const file = `${folder}/${name}.onnx`;
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(file)), {
        executionProviders: ["wasm"],
        freeDimensionOverrides: { batch: 1 },
    });
    const input = { x: new ort.Tensor("float32", x, [1, 3, 32, 32]) };
    const [output] = Object.values(await session.run(input));
    const off = difference(output.data, floats(`${name}-0.0.y`));
    made.push({ engine: "onnxruntime-web", sparsity: 0, bytes: statSync(file).size, off, run: () => session.run(input) });
    return made;
}

const measured = [];
for (const model of networks.split(",")) {
    const all = await engines(model);
    for (const { engine, off } of all) if (!(off < 1e-4)) throw new Error(`${engine} computes something else: ${model}, ${off}`);
    const times = all.map(() => []);
    for (let turn = 0; turn <= turns; turn++)
        for (let place = 0; place < all.length; place++) {
            const k = (place + turn) % all.length; // none is always first
            const { run } = all[k];
            const own = [];
            for (const end = performance.now() + 1000 * seconds; performance.now() < end || own.length < 3; ) {
                const start = performance.now();
                await run();
                own.push(performance.now() - start);
            }
            if (turn > 0) times[k].push(median(own)); // the first turn warms up
        }
    for (const [k, { engine, sparsity, bytes, off }] of all.entries())
        measured.push({ model, sparsity, engine, ms: median(times[k]), turns_ms: times[k], bytes, difference: off });
}
console.log(JSON.stringify({ node: process.version, measured }));
process.exit();

/**
 * Networks that fggp wrote, in browsers and in Node: libfggp as WebAssembly.
 *
 *     const net = await fggp.load("net.fggp");
 *     const y = net.run(x);    // y.data, y.shape
 *
 * fggp.d.ts describes what is exported.
 */

/* As in fggp.h: its types by their names in a description, and the places in fggp_array. */
const TYPES = [
    { name: "F32", code: 0, Array: Float32Array },
    { name: "I64", code: 1, Array: BigInt64Array },
    { name: "BOOL", code: 2, Array: Uint8Array },
];
const ARRAY = { bytes: 20, name: 0, type: 4, rank: 8, shape: 12, data: 16 };
const OK = 0;

/** What the library refuses: a damaged file, a wrong input. */
export class FggpError extends Error {
    name = "FggpError";
}

/** Numbers and their shape. */
export class Tensor {
    constructor(data, shape) {
        const count = shape.reduce((product, size) => product * size, 1);
        if (data.length !== count)
            throw new FggpError(`a tensor of shape [${shape.join(", ")}] has ${count} numbers; ${data.length} were given`);
        this.data = data;
        this.shape = shape;
    }
}

/** Load a network: from an address or a file, or from bytes. */
export async function load(source, options = {}) {
    const [module, bytes] = await Promise.all([compile(options.wasm), read(source)]);
    return Network.load(await Library.open(module), bytes);
}

/** Make a network of a description and the tensors that it names. */
export async function build(description, tensors, options = {}) {
    return Network.build(await Library.open(await compile(options.wasm)), description, tensors);
}

/** A network. Each has memory of its own, which is given back when nothing refers to the network any more. */
export class Network {
    #library;
    #handle;

    static load(library, bytes) {
        return new Network(library, (network) =>
            library.using((memory) => library.fggp_load_bytes(memory.copy(bytes), BigInt(bytes.length), network)),
        );
    }

    static build(library, description, tensors) {
        return new Network(library, (network) =>
            library.using((memory) => {
                const text = new TextEncoder().encode(JSON.stringify(description));
                const arrays = memory.arrays(
                    Object.entries(tensors).map(([name, { data, shape }]) => {
                        const type = TYPES.find((type) => data instanceof type.Array);
                        if (!type) throw new FggpError(`the tensor "${name}" must be a Float32Array, BigInt64Array or Uint8Array`);
                        return { name, type, data, shape };
                    }),
                );
                const count = Object.keys(tensors).length;
                return library.fggp_build(memory.copy(text), BigInt(text.length), arrays, count, network);
            }),
        );
    }

    constructor(library, make) {
        this.#library = library;
        this.#handle = library.using((memory) => {
            const place = memory.reserve(4);
            library.view().setUint32(place, 0, true);
            const status = make(place);
            const handle = library.view().getUint32(place, true);
            if (status !== OK) {
                const message = library.text(library.fggp_error(handle));
                library.fggp_free(handle);
                throw new FggpError(message);
            }
            return handle;
        });
        Object.assign(this, JSON.parse(library.text(library.fggp_describe(this.#handle))));
    }

    /** Run the network. */
    run(inputs) {
        return this.#call(inputs, (library, memory, arrays) => {
            const [outputs, count] = [memory.reserve(4), memory.reserve(4)];
            const { length } = this.inputs;
            this.#check(library.fggp_run(this.#handle, arrays, length, 1, outputs, count));
            const made = library.outputs(library.view().getUint32(outputs, true), library.view().getInt32(count, true));
            return made.length === 1 ? made[0][1] : Object.fromEntries(made);
        });
    }

    /** Run the network a few times, and return what it does and how long each step takes. */
    profile(inputs) {
        return this.#call(inputs, (library, memory, arrays) => {
            const profile = memory.reserve(4);
            this.#check(library.fggp_profile(this.#handle, arrays, this.inputs.length, 1, profile));
            return JSON.parse(library.text(library.view().getUint32(profile, true)));
        });
    }

    /** Give the memory back now. The network cannot be used afterwards. */
    free() {
        this.#library = null; /* the memory goes with the instance */
    }

    #call(inputs, action) {
        const library = this.#library;
        if (!library) throw new FggpError("the network was freed");
        const given = named(this.inputs, inputs).map(([input, value]) => tensorOf(input, value, this.#image()));
        try {
            return library.using((memory) => action(library, memory, memory.arrays(given)));
        } catch (error) {
            if (error instanceof WebAssembly.RuntimeError) this.free(); /* it stopped half-way */
            throw error;
        }
    }

    /* The shape of the images that a classifier was trained on, if `fggp export` wrote it into the file. */
    #image() {
        return this.inputs.length === 1 && this.metadata.input ? JSON.parse(this.metadata.input).shape : [];
    }

    #check(status) {
        if (status !== OK) throw new FggpError(this.#library.text(this.#library.fggp_error(this.#handle)));
    }
}

/** An instance of the WebAssembly module: the functions of fggp.h and their memory. */
class Library {
    static async open(module) {
        let memory;
        const wasi_snapshot_preview1 = systemOf(() => memory);
        const { exports } = await WebAssembly.instantiate(module, { wasi_snapshot_preview1 });
        memory = exports.memory;
        exports._initialize();
        return Object.assign(new Library(), exports);
    }

    /* Memory that grows has a new buffer: views of it are made when they are needed. */
    view() {
        return new DataView(this.memory.buffer);
    }

    text(signed) {
        const address = signed >>> 0;
        const bytes = new Uint8Array(this.memory.buffer);
        return new TextDecoder().decode(bytes.subarray(address, bytes.indexOf(0, address)));
    }

    /** Call an action with an allocator whose memory is freed afterwards. */
    using(action) {
        const blocks = new Allocator(this);
        try {
            return action(blocks);
        } finally {
            blocks.free();
        }
    }

    /** Copies of the library's arrays: pairs of a name and a tensor. */
    outputs(address, count) {
        return Array.from({ length: count }, (_, i) => {
            const view = this.view();
            const at = (place) => view.getUint32(address + i * ARRAY.bytes + place, true);
            const type = TYPES[at(ARRAY.type)];
            const shape = Array.from({ length: at(ARRAY.rank) }, (_, axis) =>
                Number(view.getBigInt64(at(ARRAY.shape) + 8 * axis, true)),
            );
            const count = shape.reduce((product, size) => product * size, 1);
            return [this.text(at(ARRAY.name)), new Tensor(new type.Array(this.memory.buffer, at(ARRAY.data), count).slice(), shape)];
        });
    }
}

/** Blocks of the library's memory that are freed together. */
class Allocator {
    #library;
    #blocks = [];

    constructor(library) {
        this.#library = library;
    }

    reserve(bytes) {
        const address = this.#library.malloc(Math.max(bytes, 1)) >>> 0; // WebAssembly's addresses are signed
        if (!address) throw new FggpError("out of memory");
        this.#blocks.push(address);
        return address;
    }

    copy(data) {
        const address = this.reserve(data.byteLength);
        const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
        new Uint8Array(this.#library.memory.buffer).set(bytes, address);
        return address;
    }

    /** An array of fggp_array. */
    arrays(tensors) {
        const address = this.reserve(tensors.length * ARRAY.bytes);
        tensors.forEach(({ name, type, data, shape }, i) => {
            const places = {
                name: this.copy(new TextEncoder().encode(name + "\0")),
                type: type.code,
                rank: shape.length,
                shape: this.copy(BigInt64Array.from(shape, BigInt)),
                data: this.copy(data),
            };
            for (const [place, value] of Object.entries(places))
                this.#library.view().setUint32(address + i * ARRAY.bytes + ARRAY[place], value, true);
        });
        return address;
    }

    free() {
        for (const block of this.#blocks) this.#library.free(block);
    }
}

/* The network's inputs with what is given for them. */
function named(inputs, given) {
    if (given instanceof Tensor || isArray(given)) {
        if (inputs.length !== 1)
            throw new FggpError(`the network has ${inputs.length} inputs: give an object with ${listed(inputs)}`);
        return [[inputs[0], given]];
    }
    if (typeof given !== "object" || given === null)
        throw new FggpError(`the input must be an array, a Tensor, or an object with ${listed(inputs)}`);
    for (const name of Object.keys(given))
        if (!inputs.some((input) => input.name === name))
            throw new FggpError(`the network has no input "${name}"; it has ${listed(inputs)}`);
    return inputs.map((input) => {
        if (!(input.name in given)) throw new FggpError(`the input "${input.name}" is missing`);
        return [input, given[input.name]];
    });
}

const isArray = (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
const listed = (inputs) => inputs.map((input) => `"${input.name}"`).join(", ");

/* What is given for an input, as an array of the input's type with a shape. */
function tensorOf({ name, type: typeName, shape }, given, image) {
    const sizes = shape.length === image.length + 1 ? [shape[0], ...image] : shape;
    const type = TYPES.find((type) => type.name === typeName);
    const numbers = given instanceof Tensor ? given.data : given;
    if (!isArray(numbers)) throw new FggpError(`the input "${name}" must be an array or a Tensor`);
    const data = converted(name, type, numbers);
    return { name, type, data, shape: given instanceof Tensor ? given.shape : inferred(name, sizes, data.length) };
}

/* Floats become float32, whole numbers become int64 or floats; what would lose more is refused. */
function converted(name, type, numbers) {
    if (numbers instanceof type.Array) return numbers;
    if (type.name === "F32" && !isBig(numbers)) return Float32Array.from(numbers);
    const values = Array.from(numbers);
    if (type.name === "I64" && values.every((x) => typeof x === "bigint" || Number.isSafeInteger(x)))
        return BigInt64Array.from(values, BigInt);
    if (type.name === "BOOL" && values.every((x) => x === true || x === false || x === 0 || x === 1))
        return Uint8Array.from(values, Number);
    const wanted = { F32: "numbers", I64: "whole numbers", BOOL: "truth values" }[type.name];
    throw new FggpError(`the input "${name}" must be a ${type.Array.name} or ${wanted}`);
}

const isBig = (numbers) => numbers instanceof BigInt64Array || numbers instanceof BigUint64Array || typeof numbers[0] === "bigint";

/* The shape of an array without one: a single size may be unknown. */
function inferred(name, sizes, length) {
    const known = sizes.filter(Number.isInteger).reduce((product, size) => product * size, 1);
    const unknown = sizes.filter((size) => !Number.isInteger(size));
    const text = `[${sizes.join(", ")}]`;
    if (unknown.length > 1) throw new FggpError(`the input "${name}" has the shape ${text}: give new Tensor(data, shape)`);
    if (unknown.length === 0 ? length !== known : length % known !== 0)
        throw new FggpError(`the input "${name}" has the shape ${text}, which ${length} numbers do not fill`);
    return sizes.map((size) => (Number.isInteger(size) ? size : length / known));
}

let ours; /* the module beside this file, compiled once */

async function compile(wasm) {
    if (wasm instanceof WebAssembly.Module) return wasm;
    if (wasm !== undefined) return WebAssembly.compile(await read(wasm));
    ours ??= read(new URL("fggp.wasm", import.meta.url)).then(WebAssembly.compile);
    return ours;
}

async function read(source) {
    if (source instanceof ArrayBuffer) return new Uint8Array(source);
    if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
    if (typeof source?.arrayBuffer === "function") return new Uint8Array(await source.arrayBuffer()); /* Blob, Response */
    const address = String(source);
    if (globalThis.process?.versions?.node && !/^(https?|data|blob):/.test(address)) {
        const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ "node:fs/promises");
        return readFile(address.startsWith("file:") ? new URL(address) : address);
    }
    const response = await fetch(address);
    if (!response.ok) throw new FggpError(`${address} cannot be read: ${response.status} ${response.statusText}`);
    return new Uint8Array(await response.arrayBuffer());
}

/* The part of an operating system that the C library asks for: a clock. */
function systemOf(memory) {
    const NOT_SUPPORTED = 52;
    const known = {
        clock_time_get(clock, precision, result) {
            const now = clock === 0 ? Date.now() : performance.now();
            new DataView(memory().buffer).setBigUint64(result, BigInt(Math.round(now * 1e6)), true);
            return 0;
        },
        proc_exit() {
            throw new WebAssembly.RuntimeError("the library gave up");
        },
    };
    return new Proxy(known, { get: (all, name) => all[name] ?? (() => NOT_SUPPORTED) });
}

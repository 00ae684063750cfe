/** Where bytes come from: an address, the path of a file in Node, or the bytes themselves. */
export type Source = string | URL | ArrayBuffer | ArrayBufferView | Blob | Response;

export interface Options {
    /** The WebAssembly module. Default: fggp.wasm beside fggp.js. */
    wasm?: Source | WebAssembly.Module;
}

/** float32, int64, and booleans as bytes that are 0 or 1. */
export type TypedArray = Float32Array | BigInt64Array | Uint8Array;

/**
 * What can be given for an input. An array of another type is converted if nothing is lost but the precision of floats.
 * Its shape is inferred if at most one size is unknown; that of images is known from files of `fggp export`.
 */
export type Input = Tensor | ArrayLike<number> | ArrayLike<bigint> | ArrayLike<boolean>;

/** What the library refuses; the message says what is wrong and what would be right. */
export class FggpError extends Error {}

/** Numbers in row-major order, and their shape. */
export class Tensor<Data extends ArrayLike<unknown> = TypedArray> {
    constructor(data: Data, shape: readonly number[]);
    readonly data: Data;
    readonly shape: readonly number[];
}

export interface InputInfo {
    readonly name: string;
    readonly type: "F32" | "I64" | "BOOL";
    /** Sizes; one that is free is a name, and is the same wherever the name occurs. */
    readonly shape: readonly (number | string)[];
}

/** A step of a run: some of the network's operators, or a conversion between layouts. */
export interface Step {
    readonly names: readonly string[];
    readonly operators: readonly string[];
    readonly runs: "kernels" | "operator" | "conversion";
    readonly milliseconds: number;
}

export interface Profile {
    /** A large batch may go through the network in pieces of so many images. */
    readonly images: number;
    /** Bytes of the values between operations. */
    readonly memory: number;
    /** How often parts of the network have been timed to choose between plans. */
    readonly trials: number;
    readonly steps: readonly Step[];
}

export class Network {
    private constructor();
    readonly inputs: readonly InputInfo[];
    /** Names, in the network's order. */
    readonly outputs: readonly string[];
    /** The file's texts by name. */
    readonly metadata: Readonly<Record<string, string>>;

    /**
     * Run the network. The first run with inputs of new shapes takes longer.
     *
     * @param inputs for the only input, or by name.
     * @returns the only output, or all by name: copies, which stay.
     * @throws FggpError if an input is missing, unknown, or of a wrong type or shape.
     */
    run(inputs: Input): Tensor;
    run(inputs: Readonly<Record<string, Input>>): Tensor | Record<string, Tensor>;
    /** Run the network a few times, and return what it does and how long each step takes. */
    profile(inputs: Input | Readonly<Record<string, Input>>): Profile;
    /** Give the memory back now, not when nothing refers to the network any more. */
    free(): void;
}

/**
 * Load a network file.
 *
 * @throws FggpError if the file is damaged, of a newer version, or no network.
 */
export function load(source: Source, options?: Options): Promise<Network>;

/** Make a network of a description (docs/network-file.md) and the tensors that it names. */
export function build(
    description: object,
    tensors: Readonly<Record<string, Tensor>>,
    options?: Options,
): Promise<Network>;

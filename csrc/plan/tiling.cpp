#include "plan/tiling.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "plan/memory.h"
#include "runtime/convolution.h"
#include "runtime/program.h"
#include "runtime/quantized_tiles.h"
#include "runtime/strided.h"
#include "runtime/tiles.h"

namespace fggp {
namespace {

/* Bytes of input under one tile that all output channels read before the next chunk of input channels: what fits the
 * first-level cache, or the second-level cache; 0: the whole input. */
constexpr int64_t WORKING_SET_BYTES[] = {32 << 10, 128 << 10, 0};
constexpr int64_t MIN_CHUNK = 4;
/* Trials of the tilings that stay to the end, of which there are at most so many. */
constexpr int ROUNDS = 5;
constexpr size_t FINALISTS = 2;
/* A tiling that takes this multiple of the best one's time is not tried again. */
constexpr double RULED_OUT_RATIO = 1.3;

int64_t parts_of(int64_t width, int64_t most) { return (width + most - 1) / most; }
/* The size of the parts if a width is divided as evenly as possible into the fewest parts of at most `most`. */
int64_t even_part(int64_t width, int64_t most) { return parts_of(width, parts_of(width, most)); }

/* The number of input channels whose pixels under one tile take about so many bytes; 0: all channels. */
int64_t channels_per_chunk(const Convolve &c, const ActivationLayout &in, int64_t rows, int64_t columns,
                           int64_t working_set) {
    int64_t inputs = c.weight.inputs;
    int64_t down = (rows - 1) * c.stride + c.weight.rows, across = (columns - 1) * c.stride + c.weight.columns;
    int64_t chunk = working_set ? working_set / (down * across * in.lanes * 4) : inputs;
    return even_part(inputs, std::min(std::max(chunk, MIN_CHUNK), inputs));
}

/* Tilings worth trying, the most promising first. */
std::vector<Tiling> candidate_tilings(const std::vector<Convolve> &chain, const std::vector<Storage> &storages) {
    const ActivationLayout &out = storages[chain[0].out].layout;
    if (out.lanes == 1) { /* a single image's input is small, and each weight is read once */
        int64_t vectors = parts_of((out.height - 1) * out.row + out.width, LANES);
        int64_t columns = even_part(vectors, std::min(MAX_COLUMNS, REGISTERS));
        int64_t rows = std::max<int64_t>(1, std::min({(int64_t)2, parts_of(vectors, columns), REGISTERS / columns}));
        return {{rows, columns, {chain[0].weight.inputs}}};
    }
    bool flat = true;
    for (auto &c : chain)
        flat = flat && c.stride == 1 && storages[c.out].layout.row == out.width && storages[c.input].layout.row == out.width;
    std::vector<Tiling> found;
    for (int64_t most : {4, 8}) {
        int64_t columns = even_part(flat ? out.width * out.height : out.width, most);
        for (int64_t registers : {REGISTERS, REGISTERS / 2}) {
            int64_t most_rows = chain[0].stride > 1 ? MAX_STRIDED_ROWS : MAX_ROWS;
            int64_t rows = std::max<int64_t>(1, std::min<int64_t>(most_rows, registers / columns));
            for (int64_t working_set : WORKING_SET_BYTES) {
                Tiling tiling{rows, columns, {}};
                for (auto &c : chain)
                    tiling.chunks.push_back(channels_per_chunk(c, storages[c.input].layout, rows, columns, working_set));
                if (std::find(found.begin(), found.end(), tiling) == found.end()) found.push_back(tiling);
            }
        }
    }
    return found;
}

/* Everything that the best tiling of a chain depends on, with its numbers of weights rounded to powers of two. */
std::string timing_key(const std::vector<Convolve> &chain, const std::vector<Storage> &storages, int threads) {
    std::string key = std::to_string(threads);
    auto add = [&](int64_t number) { key += "," + std::to_string(number); };
    for (auto &c : chain) {
        auto &weight = c.weight;
        for (int64_t number : {weight.outputs, weight.inputs, weight.rows, weight.columns, c.stride}) add(number);
        add((int64_t)std::round(std::log2(std::max<double>(1, (double)weight.nonzeros()))));
        for (int storage : {c.input, c.out}) {
            auto &layout = storages[storage].layout;
            for (int64_t number : {layout.lanes, layout.groups, layout.height, layout.width, layout.row, layout.plane}) add(number);
        }
        add(c.activation.kind);
        add(c.quantized ? 1 + c.quantized_as.returns_bytes : 0);
        add(c.residual < 0 ? 0 : storages[c.out].may_overwrite == c.residual ? 1 : 2);
    }
    return key;
}

/* Memory of its own for what a chain reads and writes. */
class TrialMemory final : public Locations {
  public:
    TrialMemory(const std::vector<Convolve> &chain, const std::vector<Storage> &storages) : storages(storages) {
        int64_t bytes = 0;
        auto place = [&](int storage) {
            if (storage < 0 || offsets.count(storage)) return;
            offsets[storage] = bytes;
            bytes += (storages[storage].bytes + 63) / 64 * 64;
        };
        for (auto &c : chain) {
            place(c.input);
            place(c.residual);
            if (c.residual >= 0 && storages[c.out].may_overwrite == c.residual) offsets[c.out] = offsets[c.residual];
            place(c.out);
        }
        block = std::make_unique<Block>(bytes);
    }
    float *address(int storage) const override { return (float *)(block->data + offsets.at(storage)); }
    fggp_tensor tensor(int storage) const override { return storages[storage].layout.tensor(address(storage)); }

  private:
    const std::vector<Storage> &storages;
    std::map<int, int64_t> offsets;
    std::unique_ptr<Block> block;
};

} // namespace

void add_chain(const std::vector<Convolve> &chain, const Tiling &tiling, const Locations &at, PackedWeights &weights,
               Operations &operations, Entries *kept) {
    std::vector<fggp_conv> convs;
    weights.reserve(chain.size()); /* so that they stay where they are */
    for (size_t i = 0; i < chain.size(); i++) {
        const Convolve &c = chain[i];
        fggp_conv conv{};
        conv.in = at.tensor(c.input);
        conv.out = at.tensor(c.out);
        if (c.residual >= 0) conv.residual = at.tensor(c.residual);
        ActivationLayout in; /* as far as offsets depend on it */
        in.lanes = conv.in.lanes, in.plane = conv.in.plane, in.row = conv.in.row;
        weights.push_back(c.weight.pack(in, c.padding, c.dilation, tiling.chunks[i]));
        auto &entries = weights.back().entries;
        conv.entries = kept ? kept->keep(entries) : entries.data();
        if (kept) std::vector<fggp_entry>().swap(entries);
        conv.starts = weights.back().starts.data();
        conv.bias = weights.back().bias.data();
        conv.activation = c.activation;
        conv.chunks = (int32_t)parts_of(c.weight.inputs, tiling.chunks[i]);
        conv.stride = (int32_t)c.stride;
        conv.tile_rows = (int32_t)tiling.rows;
        conv.tile_columns = (int32_t)tiling.columns;
        if (c.quantized) {
            weights.back().quantized = c.quantized;
            weights.back().quantized_as = c.quantized_as;
            weights.back().quantized_as.first = c.quantized->first.data();
            weights.back().quantized_as.scale = c.quantized->scale.data();
            conv.quantized = &weights.back().quantized_as;
        }
        convs.push_back(conv);
    }
    auto &out = convs[0].out;
    if (out.lanes == 1 && out.height * (int64_t)out.width == 1)
        operations.emplace_back(convs[0].quantized ? new_quantized_product(convs[0]) : new_product(convs[0]));
    else if (out.lanes == 1 && chain[0].stride == 2) /* never quantised */
        operations.emplace_back(new_strided(convs[0]));
    else
        operations.emplace_back(new_convolution(convs.data(), (int)convs.size()));
}

bool can_append(const Step &step, const Step &next, const std::vector<Storage> &storages) {
    if (step.chain.empty() || next.chain.size() != 1) return false;
    auto &last = step.chain.back();
    return storages[last.out].layout.lanes > 1 && next.chain[0].pointwise() && next.chain[0].input == last.out;
}

Tiling Tuner::forced_tiling(const std::vector<Convolve> &chain, const std::vector<Storage> &storages,
                            const std::vector<Tiling> &candidates) const {
    if (forced.candidate >= 0) return candidates[forced.candidate % candidates.size()];
    auto &out = storages[chain[0].out].layout;
    bool whole = out.lanes == 1 && (out.height * out.width == 1 || chain[0].stride == 2); /* these take no other */
    if (!forced.rows || whole) return candidates[0];
    int64_t columns = std::min<int64_t>({std::max<int64_t>(forced.columns, 1), MAX_COLUMNS, REGISTERS});
    Tiling tiling{std::min<int64_t>({forced.rows, MAX_ROWS, REGISTERS / columns}), columns, {}};
    for (auto &c : chain) tiling.chunks.push_back(std::min(std::max<int64_t>(forced.channels, 1), c.weight.inputs));
    return tiling;
}

/* Tilings worth trying. Of a longer chain's only those with a tile that is the best one for one of its parts. */
std::vector<Tiling> Tuner::candidates_of(const std::vector<Convolve> &chain, const std::vector<Storage> &storages,
                                         int threads) {
    std::vector<Tiling> all = candidate_tilings(chain, storages), likely;
    if (chain.size() == 1 || forced.any()) return all;
    const Tiling first = choose({chain.begin(), chain.end() - 1}, storages, threads).tiling;
    const Tiling last = choose({chain.back()}, storages, threads).tiling;
    for (auto &tiling : all)
        for (auto *part : {&first, &last})
            if (tiling.rows == part->rows && tiling.columns == part->columns) {
                likely.push_back(tiling);
                break;
            }
    return likely.empty() ? all : likely;
}

Tuner::Best Tuner::choose(const std::vector<Convolve> &chain, const std::vector<Storage> &storages, int threads) {
    std::string key = timing_key(chain, storages, threads);
    int64_t nonzeros = 1;
    for (auto &c : chain) nonzeros += c.weight.nonzeros();
    auto known = found.find(key);
    if (known == found.end()) {
        std::vector<Tiling> candidates = candidates_of(chain, storages, threads);
        Best best{0, candidates[0]};
        double length = (double)chain.size();
        if (forced.any())
            best = {forced.chains ? 1 : length * length, forced_tiling(chain, storages, candidates)};
        else if (candidates.size() > 1 || chain.size() > 1)
            best = try_out(chain, storages, candidates, threads);
        known = found.emplace(key, Found{best, nonzeros}).first;
    }
    Best best = known->second.best;
    if (!forced.any()) best.seconds *= (double)nonzeros / (double)known->second.nonzeros;
    return best;
}

/* The fastest of some tilings. The slower half takes no part in the next round. */
Tuner::Best Tuner::try_out(const std::vector<Convolve> &chain, const std::vector<Storage> &storages,
                           const std::vector<Tiling> &candidates, int threads) {
    TrialMemory memory(chain, storages);
    std::vector<Program> programs(candidates.size());
    std::vector<PackedWeights> weights(candidates.size());
    std::vector<size_t> left;
    for (size_t i = 0; i < candidates.size(); i++) {
        add_chain(chain, candidates[i], memory, weights[i], programs[i].operations);
        left.push_back(i);
    }
    auto run = [&](size_t i) {
        auto start = std::chrono::steady_clock::now();
        programs[i].run({nullptr, INT32_MAX}, threads, nullptr);
        trial_count++;
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    std::vector<double> seconds(candidates.size(), INFINITY);
    run(0); /* the first use of memory takes longer */
    for (int round = 0; round < ROUNDS; round++) {
        /* In turns, so that a short disturbance slows one trial of each tiling and not all trials of one. */
        for (size_t i : left) seconds[i] = std::min(seconds[i], run(i));
        std::sort(left.begin(), left.end(), [&](size_t a, size_t b) { return seconds[a] < seconds[b]; });
        size_t most = std::max(FINALISTS, (left.size() + 1) / 2);
        while (left.size() > most || seconds[left.back()] > RULED_OUT_RATIO * seconds[left[0]]) left.pop_back();
    }
    return {seconds[left[0]], candidates[left[0]]};
}

} // namespace fggp

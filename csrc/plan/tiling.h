/* How a chain of convolutions is divided into tiles and chunks for registers and caches: the fastest by trial. */
#ifndef FGGP_PLAN_TILING_H
#define FGGP_PLAN_TILING_H

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plan/memory.h"
#include "plan/steps.h"

namespace fggp {

struct Tiling {
    int64_t rows, columns;       /* of a tile, whose sums stay in registers: rows of so many vectors */
    std::vector<int64_t> chunks; /* for each convolution, the number of input channels in a chunk */
    bool operator==(const Tiling &other) const {
        return rows == other.rows && columns == other.columns && chunks == other.chunks;
    }
};

/* The weights of a chain's convolutions, which its operation reads. */
typedef std::vector<PackedWeight> PackedWeights;

/* Append the operation of a chain. The weights must outlive it, and the entries, if there are any, to which those of the
 * weights are moved. */
void add_chain(const std::vector<Convolve> &, const Tiling &, const Locations &, PackedWeights &, Operations &,
               Entries * = nullptr);

/* Whether a step's products, and those of the next step, may run together tile by tile. */
bool can_append(const Step &, const Step &next, const std::vector<Storage> &);

/* What is done without trials, so that results are always the same; for tests. */
struct ForcedTilings {
    bool first = false;                          /* the first candidate */
    int64_t candidate = -1;                      /* the candidate of this number, from the start again after the last */
    int64_t rows = 0, columns = 0, channels = 0; /* a tile, and the input channels of a chunk; rows 0: not forced */
    bool chains = true;                          /* fuse whatever can be, or else nothing */
    bool any() const { return first || candidate >= 0 || rows > 0; }
};

/* Finds the fastest tiling by trial, once for each shape of convolution, number of threads and number of weights, rounded
 * to a power of two. */
class Tuner {
  public:
    explicit Tuner(const ForcedTilings &forced) : forced(forced) {}
    struct Best {
        /* 0 if a single convolution has only one candidate. If the trials were of another number of weights, it is taken
         * to grow with that. */
        double seconds;
        Tiling tiling;
    };
    Best choose(const std::vector<Convolve> &, const std::vector<Storage> &, int threads);
    int64_t trials() const { return trial_count; } /* how many chains were run */

  private:
    struct Found {
        Best best;
        int64_t nonzeros;
    };
    std::vector<Tiling> candidates_of(const std::vector<Convolve> &, const std::vector<Storage> &, int threads);
    Best try_out(const std::vector<Convolve> &, const std::vector<Storage> &, const std::vector<Tiling> &candidates,
                 int threads);
    Tiling forced_tiling(const std::vector<Convolve> &, const std::vector<Storage> &,
                         const std::vector<Tiling> &candidates) const;

    const ForcedTilings forced;
    std::map<std::string, Found> found;
    int64_t trial_count = 0;
};

} // namespace fggp
#endif

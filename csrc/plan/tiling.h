/* How a chain of convolutions is divided into tiles and chunks for registers and caches: the fastest by trial. */
#ifndef FGGP_PLAN_TILING_H
#define FGGP_PLAN_TILING_H

#include <map>
#include <memory>
#include <string>
#include <vector>

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

/* Append the operation of a chain. The weights must outlive it. */
void add_chain(const std::vector<Convolve> &, const Tiling &, const Locations &, PackedWeights &, Operations &);

/* Whether a step's products, and those of the next step, may run together tile by tile. */
bool can_append(const Step &, const Step &next, const std::vector<Storage> &);

/* Finds the fastest tiling by trial, once for each shape of convolution and number of threads. */
class Tuner {
  public:
    /* first: take the first candidate, without trials, and fuse whatever can be; so that the results are always the
     * same, for tests. */
    explicit Tuner(bool first) : first(first) {}
    struct Best {
        double seconds; /* 0 if there is only one candidate */
        Tiling tiling;
    };
    const Best &choose(const std::vector<Convolve> &, const std::vector<Storage> &, int threads);

  private:
    const bool first;
    std::map<std::string, Best> found;
};

} // namespace fggp
#endif

/* A network prepared for inputs of certain shapes: its memory, and the program that computes it. */
#ifndef FGGP_PLAN_PLAN_H
#define FGGP_PLAN_PLAN_H

#include <memory>
#include <string>
#include <vector>

#include "network/graph.h"
#include "network/types.h"
#include "plan/lowering.h"
#include "plan/memory.h"
#include "plan/tiling.h"
#include "runtime/program.h"

namespace fggp {

struct PlanSetting {
    int threads = 1;
    int64_t batch = 1; /* dimension 0 of the network's images */
    int lanes = 1;     /* the number of images in a cell for such a batch: 1 or a vector's */
    bool separate_memory = false; /* reuse no memory; slow, for tests to compare with */
};

class Plan {
  public:
    /* Throws Refused: the shapes do not fit the network. `graph` and what `choose` returns must outlive the plan. */
    Plan(const Graph &graph, const std::vector<TensorType> &inputs, const PlanSetting &, const ChooseProduct &choose,
         Tuner &);

    const std::vector<TensorType> inputs;
    const PlanSetting setting;
    bool kernels_only;       /* everything runs in the kernels' layout */
    bool has_lanes;          /* whether the number of lanes matters */
    /* Whether no image's output depends on another image, if dimension 0 of all inputs is the images: known only where
     * everything runs in the kernels' layout. */
    bool images_independent;
    bool any_images; /* whether it can run on fewer images then */

    /* Run the network on inputs of these types, or on fewer images if it can. addresses: where to write each output;
     * empty: to the plan's memory. seconds: NULL, or a number for each operation of `steps` to add its time to. */
    void run(const std::vector<Array> &given, int64_t images, int threads, const std::vector<void *> &addresses,
             double *seconds = nullptr);
    std::vector<Array> outputs; /* in the plan's memory */

    struct StepRecord { /* for tables */
        Runner runner;
        std::vector<const Node *> nodes;
        size_t operations;
    };
    std::vector<StepRecord> steps;
    int64_t memory_bytes() const { return memory->bytes; }

  private:
    void fuse_products(std::vector<Step> &, const std::vector<Storage> &, Tuner &);

    std::unique_ptr<Memory> memory;
    /* They own numbers that operations read. */
    std::vector<PackedWeights> weights;
    std::unique_ptr<Entries> entries;
    std::vector<std::function<void(const Locations &, Operations &)>> kept;
    std::vector<void *> slots;
    std::vector<int> output_slots; /* -1: a constant */
    /* Whether each output is stored from the kernels' layout at the end, and so may be stored elsewhere: nothing else
     * reads it where it is. */
    std::vector<bool> stored;
    Program program;
};

} // namespace fggp
#endif

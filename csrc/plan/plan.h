/* A network prepared for inputs of certain shapes: the memory of all its tensors, and the program that computes them. */
#ifndef FGGP_PLAN_PLAN_H
#define FGGP_PLAN_PLAN_H

#include <vector>

#include "network/graph.h"
#include "network/types.h"
#include "runtime/program.h"

namespace fggp {

class Plan {
  public:
    /* Throws Refused: the shapes do not fit the network. `graph` must outlive the plan. */
    Plan(const Graph &graph, const std::vector<TensorType> &inputs, int threads);

    const std::vector<TensorType> inputs;
    /* Run the network on inputs of these types. Returns its outputs, in the plan's memory. */
    const std::vector<Array> &run(const std::vector<Array> &given, int threads);

  private:
    std::vector<std::vector<float>> memory;
    std::vector<Array> values; /* by number */
    std::vector<Array> outputs;
    Program program;
};

} // namespace fggp
#endif

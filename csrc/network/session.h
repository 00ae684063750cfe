/* A network ready to run: a plan for each set of input shapes that has come, the least recently used of which are
 * dropped. */
#ifndef FGGP_NETWORK_SESSION_H
#define FGGP_NETWORK_SESSION_H

#include <list>
#include <memory>
#include <vector>

#include "network/graph.h"
#include "plan/plan.h"

namespace fggp {

class Session {
  public:
    explicit Session(std::unique_ptr<Graph> graph) : graph(std::move(graph)) {}

    /* Run the network. Returns its outputs, whose memory is the session's, until the next run. Throws Refused. */
    const std::vector<Array> &run(const std::vector<Array> &inputs, int threads);

    const std::unique_ptr<Graph> graph;

  private:
    std::list<std::unique_ptr<Plan>> plans; /* the most recently used first */
};

} // namespace fggp
#endif

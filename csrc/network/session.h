/* A network ready to run: a plan for each set of input shapes that has come, the least recently used of which are
 * dropped. */
#ifndef FGGP_NETWORK_SESSION_H
#define FGGP_NETWORK_SESSION_H

#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "network/graph.h"
#include "plan/choice.h"
#include "plan/plan.h"

namespace fggp {

class Session {
  public:
    explicit Session(std::unique_ptr<Graph> graph);

    /* Run the network. Returns its outputs, whose memory is the session's, until the next run. Throws Refused. */
    const std::vector<Array> &run(const std::vector<Array> &inputs, int threads);

    /* Run it a few times. Returns what it does, as an object in JSON, which fggp.h describes at fggp_profile. */
    std::string profile(const std::vector<Array> &inputs, int threads);

    const std::unique_ptr<Graph> graph;

  private:
    int64_t batch_of(const std::vector<TensorType> &) const;
    int64_t piece_of(const std::vector<TensorType> &, int64_t batch, int threads);
    Plan &plan_for(const std::vector<TensorType> &, int64_t batch, int lanes, int threads);
    Plan &best_plan(const std::vector<Array> &, const std::vector<TensorType> &, int64_t batch, int threads);
    void run_in_pieces(const std::vector<Array> &, const std::vector<TensorType> &, int64_t batch, int64_t piece,
                       int threads);

    ProductChoice choice;
    Tuner tuner;
    bool separate_memory = false, may_split; /* images may be independent */
    std::list<std::unique_ptr<Plan>> plans; /* the most recently used first */
    std::map<std::vector<Shape>, int> lanes; /* the faster number of lanes for inputs of these shapes */
    int forced_lanes = 0;
    std::vector<Array> outputs;
    std::vector<std::vector<char>> memory; /* of outputs of runs in pieces */
};

} // namespace fggp
#endif

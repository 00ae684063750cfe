#include "network/session.h"

namespace fggp {

/* Each plan holds memory for its activations and its own copy of the non-zero weights. */
constexpr size_t PLANS_KEPT = 8;

const std::vector<Array> &Session::run(const std::vector<Array> &inputs, int threads) {
    std::vector<TensorType> types;
    for (auto &input : inputs) types.push_back(input.type);
    auto plan = plans.begin();
    while (plan != plans.end() && (*plan)->inputs != types) plan++;
    if (plan == plans.end()) {
        plans.push_front(std::make_unique<Plan>(*graph, types, threads));
        if (plans.size() > PLANS_KEPT) plans.pop_back();
    } else
        plans.splice(plans.begin(), plans, plan);
    try {
        return plans.front()->run(inputs, threads);
    } catch (const Failed &failed) {
        throw Refused(failed.what());
    }
}

} // namespace fggp

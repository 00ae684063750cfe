/* Choosing which products the sparse kernels run: those that are clearly sparse, and others by measurement.
 *
 * A product is a convolution or a linear layer. Its density is the share of non-zero weights. */
#ifndef FGGP_PLAN_CHOICE_H
#define FGGP_PLAN_CHOICE_H

#include <map>
#include <memory>
#include <string>

#include "plan/plan.h"

namespace fggp {

enum class Products { MEASURED, KERNELS, OPERATORS };

class ProductChoice {
  public:
    /* KERNELS or OPERATORS: all products run there, where they can. */
    explicit ProductChoice(Products products) : products(products) {}

    /* The weight of a product if the kernels shall run it; otherwise NULL. The node's network must outlive this. */
    const SparseWeight *choose(const Node &, Kind, const std::vector<TensorType> &types, const PlanSetting &, Tuner &);

  private:
    bool is_faster(const Node &, const SparseWeight &, Kind, const std::vector<TensorType> &, const PlanSetting &, Tuner &);
    bool measure(const Node &, const SparseWeight &, bool images, const std::vector<TensorType> &, const PlanSetting &,
                 Tuner &);

    Products products;
    std::map<const Node *, std::unique_ptr<SparseWeight>> weights; /* NULL: clearly dense */
    std::map<std::string, bool> measured;
};

} // namespace fggp
#endif

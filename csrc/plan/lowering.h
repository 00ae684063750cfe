/* Lowering a network to steps: what the kernels run, in which layouts, and what runs on tensors in row-major order. */
#ifndef FGGP_PLAN_LOWERING_H
#define FGGP_PLAN_LOWERING_H

#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "network/graph.h"
#include "plan/steps.h"

namespace fggp {

/* Whether this is a convolution or linear layer that the kernels can run if its weight is sparse. */
bool is_sparse_product(const Node &, const std::vector<TensorType> &types);
/* Returns the weight of such a product if the kernels shall run it; otherwise NULL. */
typedef std::function<const SparseWeight *(const Node &, Kind, const std::vector<TensorType> &types)> ChooseProduct;

/* Where a tensor in row-major order is. */
struct Place {
    enum Where { NOWHERE, INPUT, STORAGE, CONSTANT } where = NOWHERE;
    int index = -1; /* of an input or a storage */
    const Constant *constant = nullptr;
};

class Lowering {
  public:
    /* batch: dimension 0 of the network's images. lanes: the number of images in a cell for such a batch, 1 or a
     * vector's. `graph` and what `choose` returns must outlive this. */
    Lowering(const Graph &graph, const std::vector<TensorType> &inputs, int64_t batch, int lanes,
             const ChooseProduct &choose);

    std::vector<TensorType> types; /* of the values */
    std::vector<Storage> storages;
    std::vector<Step> steps;
    std::vector<Place> outputs; /* of the network */

    bool kernels_only = true; /* everything runs in the kernels' layout */
    bool has_tokens = false;  /* something reads all images as one */
    bool has_lanes = false;   /* the number of lanes matters */
    bool copies_inputs() const { return !copied.empty(); } /* all of their images */

    /* The number of a tensor's address in a program's slots: the inputs first, then the storages. */
    int slot_of(const Place &place) const {
        return place.where == Place::INPUT ? place.index : (int)graph.inputs.size() + place.index;
    }

  private:
    typedef std::pair<int, Kind> Key; /* a value, and how it is read */
    enum class Native { NONE, PRODUCT, POOL, ADAPTIVE_AVERAGE, SUM, GATE, AFFINE, NORM, COPY, FLATTEN, ALIAS, QUANTIZE, DEQUANTIZE };
    /* How the kernels run an operation, and how they read its inputs and its output. */
    struct Choice {
        Native native = Native::NONE;
        Kind in = Kind::IMAGES, out = Kind::IMAGES;
        const SparseWeight *weight = nullptr; /* of a product */
    };
    /* A tensor in the kernels' layout. Several values may be one. */
    struct Activation {
        ImageSizes sizes;
        int lanes;
        bool bytes = false; /* U8 */
        int padding = -1;   /* what stands for zero around its pixels, of U8; -1: nothing that matters */
        Margin margin;      /* what its readers need */
        int64_t row = 0;  /* the length of rows where several activations share it; 0: none */
        int storage = -1; /* -1: none yet */
    };
    /* The attributes of a convolution or pool, in two dimensions. */
    struct Window {
        Pair kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
    };

    const TensorType *type_of(const Node &, size_t input) const; /* NULL: absent */
    Window window_of(const Node &) const;
    Choice product_choice(const Node &) const;
    Choice native_choice(const Node &, Kind) const;
    Choice quantized_choice(const Node &, Kind) const;
    Choice quantize_choice(const Node &) const;
    int affine_constant(const Node &, Kind) const;
    void exclude_readers_of_constants();
    void choose_native(const ChooseProduct &);
    Activation &activation(int value, Kind);
    const Activation &activation(int value, Kind kind) const { return activations[numbers.at({value, kind})]; }

    void choose_margins();
    bool needs_unfolding(const Node &) const;
    bool strided(const Node &) const;
    bool to_one_pixel(const Node &) const;
    bool too_large(const Node &) const;
    bool other_padding(const Node &) const;

    ActivationLayout layout_of(const Activation &) const;
    ActivationLayout unfolded_layout(const Node &) const;
    int new_storage(const ActivationLayout &, int may_overwrite = -1);
    int input_storage(int value, Kind);
    int output_storage(const Node &, int may_overwrite = -1);
    Place row_major(int value);
    Place in_memory(int value);

    void lower(const Node &, const Choice &);
    void lower_quantized(const Node &, const Choice &, const std::vector<int> &reads);
    void quantize_product(const Node &, Convolve &) const;
    void lower_product(const Node &, const Choice &, const std::vector<int> &reads);
    static fggp_pool pool_of(const Window &, const fggp_tensor &in, const fggp_tensor &out);
    void lower_pool(const Node &, int read);
    void lower_affine(const Node &, Kind, int read);
    void lower_norm(const Node &, int read);
    std::vector<int64_t> channel_index(const Node &, Kind) const;
    void lower_copy(const Node &, Kind, const std::vector<int> &reads);
    void lower_operator(const Node &);
    typedef std::function<Operation *(const std::vector<fggp_tensor> &reads, const fggp_tensor &out)> Make;
    void add_step(const Node *, const std::vector<int> &reads, int out, const Make &);

    const Graph &graph;
    Sizes sizes;
    int64_t batch;
    int lanes;
    std::map<const Node *, Choice> chosen;
    std::set<const Node *> excluded; /* too large for the kernels, between two paddings, or of constants */
    std::map<int, const Node *> quantized_readers; /* of a value, the first quantised product that the kernels can run */
    std::set<Key> made;              /* what the kernels produce */
    std::map<Key, int> numbers;      /* of activations */
    std::vector<Activation> activations;
    std::vector<Place> places; /* of each value in row-major order */
    std::map<int, int> copied; /* the storages of inputs that operators read */
};

} // namespace fggp
#endif

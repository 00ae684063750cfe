/* The tensors of a small file: its index lists them, and its frames hold what is in them. */
#ifndef FGGP_FILE_TENSORS_H
#define FGGP_FILE_TENSORS_H

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "file/frames.h"
#include "network/graph.h"
#include "network/json.h"

namespace fggp {

struct Tensors {
    std::vector<std::unique_ptr<Constant>> constants;
    std::map<std::string, std::string> ties; /* from the name of a tied tensor to that of the constant */
};

/* Read all tensors.
 *
 * tensors, frames: the entries of the index. data: the frames. limit: the most bytes that all tensors may take with
 * their zeros, so that few bytes cannot claim much memory. Throws Refused. */
Tensors read_tensors(const json::Value &tensors, const json::Value &frames, Span data, int64_t limit);

} // namespace fggp
#endif

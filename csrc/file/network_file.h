/* The network file (docs/network-file.md): a small file whose index describes a network, too. */
#ifndef FGGP_FILE_NETWORK_FILE_H
#define FGGP_FILE_NETWORK_FILE_H

#include <memory>

#include "file/envelope.h"
#include "network/graph.h"

namespace fggp {

struct NetworkFile {
    std::unique_ptr<Graph> graph;
    Metadata metadata;
};

/* Read a network from the bytes of a file, which are not needed afterwards and are not trusted. Throws Refused. */
NetworkFile read_network_file(Span file);

} // namespace fggp
#endif

/* The small file's envelope (docs/small-file.md): a header with metadata, the data, and a checksum of all. */
#ifndef FGGP_FILE_ENVELOPE_H
#define FGGP_FILE_ENVELOPE_H

#include <string>
#include <utility>
#include <vector>

#include "file/frames.h"

namespace fggp {

typedef std::vector<std::pair<std::string, std::string>> Metadata;

struct Envelope {
    Metadata metadata; /* in the file's order, without the format's version */
    Span data;         /* between header and checksum, in the bytes that were given */
};

/* Throws Refused, which says what is wrong: no file of fggp's, another version or byte order, cut short, or damaged. */
Envelope open_envelope(Span file);

} // namespace fggp
#endif

/* What fggp needs of zstd: one frame, decompressed at once. Frames are not trusted. */
#ifndef FGGP_ZSTD_DECODE_H
#define FGGP_ZSTD_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The size that the frame at the beginning of these bytes claims for its content; -1: there is no frame, or it names
 * no size. */
int64_t fggp_zstd_content_size(const void *frame, size_t size);

enum { FGGP_ZSTD_OK, FGGP_ZSTD_DAMAGED, FGGP_ZSTD_OUT_OF_MEMORY };
/* Decompress bytes that are one frame, whose content has exactly `content_size` bytes. */
int fggp_zstd_decode(const void *frame, size_t size, void *content, size_t content_size);

#ifdef __cplusplus
}
#endif
#endif

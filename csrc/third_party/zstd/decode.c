/* The zstd decoder as fggp compiles it: all functions static, so that what is not called is left out and no other copy
 * of zstd in the process can meet this one, and one variant of each loop, which halves its size. */
#define ZSTDLIB_VISIBLE static
#define ZSTDERRORLIB_VISIBLE static
#define HUF_FORCE_DECOMPRESS_X1 1
#define ZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT 1
#define ZSTD_NO_INLINE 1
#define DYNAMIC_BMI2 0
#include "zstddeclib.c"

#include "decode.h"

int64_t fggp_zstd_content_size(const void *frame, size_t size) {
    unsigned long long claimed = ZSTD_getFrameContentSize(frame, size);
    return claimed > INT64_MAX ? -1 : (int64_t)claimed; /* both of zstd's error codes are larger */
}

int fggp_zstd_decode(const void *frame, size_t size, void *content, size_t content_size) {
    if (ZSTD_findFrameCompressedSize(frame, size) != size) return FGGP_ZSTD_DAMAGED;
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) return FGGP_ZSTD_OUT_OF_MEMORY;
    size_t made = ZSTD_decompressDCtx(context, content, content_size, frame, size);
    ZSTD_freeDCtx(context);
    return made == content_size ? FGGP_ZSTD_OK : FGGP_ZSTD_DAMAGED;
}

/* The zstd decoder as fggp compiles it: one variant of each loop, which halves its size, and its interface static, so
 * that what is not called is left out. */
#define ZSTDLIB_VISIBLE static
#define ZSTDERRORLIB_VISIBLE static
#define HUF_FORCE_DECOMPRESS_X1 1
#define ZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT 1
#define ZSTD_NO_INLINE 1
#define DYNAMIC_BMI2 0
/* A program with a static libfggp may have another copy of zstd. These are the names that remain. */
#define ERR_getErrorString fggp_ERR_getErrorString
#define FSE_buildDTable_wksp fggp_FSE_buildDTable_wksp
#define FSE_decompress_wksp_bmi2 fggp_FSE_decompress_wksp_bmi2
#define FSE_getErrorName fggp_FSE_getErrorName
#define FSE_isError fggp_FSE_isError
#define FSE_readNCount fggp_FSE_readNCount
#define FSE_readNCount_bmi2 fggp_FSE_readNCount_bmi2
#define FSE_versionNumber fggp_FSE_versionNumber
#define HUF_decompress1X1_DCtx_wksp fggp_HUF_decompress1X1_DCtx_wksp
#define HUF_decompress1X_DCtx_wksp fggp_HUF_decompress1X_DCtx_wksp
#define HUF_decompress1X_usingDTable fggp_HUF_decompress1X_usingDTable
#define HUF_decompress4X_hufOnly_wksp fggp_HUF_decompress4X_hufOnly_wksp
#define HUF_decompress4X_usingDTable fggp_HUF_decompress4X_usingDTable
#define HUF_getErrorName fggp_HUF_getErrorName
#define HUF_isError fggp_HUF_isError
#define HUF_readDTableX1_wksp fggp_HUF_readDTableX1_wksp
#define HUF_readStats fggp_HUF_readStats
#define HUF_readStats_wksp fggp_HUF_readStats_wksp
#define HUF_selectDecoder fggp_HUF_selectDecoder
#define ZSTD_DDict_dictContent fggp_ZSTD_DDict_dictContent
#define ZSTD_DDict_dictSize fggp_ZSTD_DDict_dictSize
#define ZSTD_buildFSETable fggp_ZSTD_buildFSETable
#define ZSTD_checkContinuity fggp_ZSTD_checkContinuity
#define ZSTD_copyDDictParameters fggp_ZSTD_copyDDictParameters
#define ZSTD_decodeLiteralsBlock_wrapper fggp_ZSTD_decodeLiteralsBlock_wrapper
#define ZSTD_decodeSeqHeaders fggp_ZSTD_decodeSeqHeaders
#define ZSTD_decompressBlock_deprecated fggp_ZSTD_decompressBlock_deprecated
#define ZSTD_decompressBlock_internal fggp_ZSTD_decompressBlock_internal
#define ZSTD_getcBlockSize fggp_ZSTD_getcBlockSize
#define ZSTD_loadDEntropy fggp_ZSTD_loadDEntropy
#define g_debuglevel fggp_g_debuglevel
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

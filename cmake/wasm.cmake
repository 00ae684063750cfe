# A toolchain file: compile to WebAssembly with Zig's Clang. ZIG is the folder of the package ziglang, which `make web`
# installs: pinned, so that the committed module can be made again.
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR wasm32)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# What all browsers have had since 2023.
set(target -target wasm32-wasi -mcpu=generic+simd128+bulk_memory+nontrapping_fptoint+sign_ext+exception_handling)
set(CMAKE_C_COMPILER ${ZIG}/zig cc ${target})
set(CMAKE_CXX_COMPILER ${ZIG}/zig c++ ${target} -fwasm-exceptions)

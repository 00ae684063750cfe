# A toolchain file: compile for another system with Zig's Clang, which brings the C and C++ libraries of each.
# ZIG is the folder of the Python package ziglang, and ZIG_TARGET one of Zig's targets, such as x86_64-linux-gnu.2.28.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)
string(REGEX MATCH "^([^-]+)-([^-.]+)" _ "${ZIG_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 STREQUAL "linux")
    set(CMAKE_SYSTEM_NAME Linux)
elseif(CMAKE_MATCH_2 STREQUAL "macos")
    set(CMAKE_SYSTEM_NAME Darwin)
    set(CMAKE_INSTALL_NAME_TOOL true) # CMake insists on one; the libraries are opened by their path, whatever their name
elseif(CMAKE_MATCH_2 STREQUAL "windows")
    set(CMAKE_SYSTEM_NAME Windows)
else()
    message(FATAL_ERROR "ZIG_TARGET is ${ZIG_TARGET}; it must be PROCESSOR-linux-…, -macos-… or -windows-…")
endif()
# Without -mcpu, Zig would compile for the processor that it runs on where that is of the same kind.
set(CMAKE_C_COMPILER ${ZIG}/zig cc -target ${ZIG_TARGET} -mcpu=baseline)
set(CMAKE_CXX_COMPILER ${ZIG}/zig c++ -target ${ZIG_TARGET} -mcpu=baseline)
# Tools that would strip the libraries of other systems are missing, so the linker does it.
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)

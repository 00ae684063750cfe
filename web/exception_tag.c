/* The tag of C++'s exceptions, which compiled code refers to and LLVM's C++ library leaves to the platform. */
__asm__(".globl __cpp_exception\n"
        ".tagtype __cpp_exception i32\n"
        "__cpp_exception:\n");

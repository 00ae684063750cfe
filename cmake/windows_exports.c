/* What Zig's start-up code would show of itself in a DLL's interface, and programs that link to it could take for theirs. */
__asm__(".section .drectve,\"yni\"\n"
        ".ascii \" -exclude-symbols:_CRT_INIT,__mingw_module_is_dll,__unw_getcontext,atexit,unw_getcontext\"\n");

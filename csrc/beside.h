/* Opening a library that lies in the folder of this one, on Windows and elsewhere. */
#ifndef FGGP_BESIDE_H
#define FGGP_BESIDE_H

#include <stdio.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace fggp {

/* A library that is never closed. */
class Beside {
  public:
    char path[4096]; /* its file, in UTF-8 */
    char error[8192] = ""; /* why it was not opened */

    /* `own` lies in the calling library; `name` is the file to open. */
    Beside(const void *own, const char *name) {
        if (!own_path(own) || strlen(path) + strlen(name) >= sizeof path) {
            snprintf(error, sizeof error, "libfggp does not know which folder it lies in");
            return;
        }
        char *folder_end = path;
        for (char *p = path; *p; p++)
            if (*p == '/' || *p == SEPARATOR) folder_end = p + 1;
        strcpy(folder_end, name);
        open();
    }

    /* Whether the library was opened and has the function. */
    template <class Function> bool find(Function &function, const char *name) const {
        function = handle ? (Function)address(name) : nullptr;
        return function;
    }

  private:
#ifdef _WIN32
    static constexpr char SEPARATOR = '\\';
    HMODULE handle = nullptr;

    bool own_path(const void *own) {
        HMODULE module;
        wchar_t found[sizeof path];
        constexpr DWORD BY_ADDRESS = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
        if (!GetModuleHandleExW(BY_ADDRESS, (LPCWSTR)own, &module)) return false;
        DWORD length = GetModuleFileNameW(module, found, sizeof path);
        if (!length || length == sizeof path) return false; /* not known, or cut off */
        return WideCharToMultiByte(CP_UTF8, 0, found, -1, path, sizeof path, nullptr, nullptr);
    }
    void open() {
        wchar_t wide[sizeof path];
        MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, sizeof path);
        handle = LoadLibraryW(wide);
        if (!handle) snprintf(error, sizeof error, "%s cannot be loaded: Windows error %lu", path, GetLastError());
    }
    void *address(const char *name) const { return (void *)GetProcAddress(handle, name); }
#else
    static constexpr char SEPARATOR = '/';
    void *handle = nullptr;

    bool own_path(const void *own) {
        Dl_info found;
        if (!dladdr(own, &found) || strlen(found.dli_fname) >= sizeof path) return false;
        strcpy(path, found.dli_fname);
        return true;
    }
    void open() {
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!handle) snprintf(error, sizeof error, "%s", dlerror());
    }
    void *address(const char *name) const { return dlsym(handle, name); }
#endif
};

} // namespace fggp
#endif

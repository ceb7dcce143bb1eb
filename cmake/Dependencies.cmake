# Looks for every package once and gives each an INTERFACE target hr_dep_<name>, which is empty
# where the package is missing, and a variable HR_HAVE_<NAME> (0 or 1), which is also a macro for
# the sources.
#
#   hr_dep_threads hr_dep_math hr_dep_hwloc hr_dep_isal hr_dep_xxhash hr_dep_uring hr_dep_faiss
#   hr_dep_blas hr_dep_cjson hr_dep_zstd hr_dep_cmocka hr_dep_cuda
include(CheckCSourceCompiles)
find_package(PkgConfig QUIET)

function(hr_dep name)
    add_library(hr_dep_${name} INTERFACE)
endfunction()

# hr_find_pkg(NAME module): pkg-config module -> hr_dep_<name>, HR_HAVE_<NAME>
macro(hr_find_pkg NAME module)
    string(TOLOWER ${NAME} hr_lower)
    hr_dep(${hr_lower})
    set(HR_HAVE_${NAME} 0)
    if(PKG_CONFIG_FOUND)
        pkg_check_modules(HR_PC_${NAME} QUIET IMPORTED_TARGET ${module})
        if(HR_PC_${NAME}_FOUND)
            set(HR_HAVE_${NAME} 1)
            set(HR_VERSION_${NAME} ${HR_PC_${NAME}_VERSION})
            target_link_libraries(hr_dep_${hr_lower} INTERFACE PkgConfig::HR_PC_${NAME})
        endif()
    endif()
endmacro()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
hr_dep(threads)
target_link_libraries(hr_dep_threads INTERFACE Threads::Threads)
hr_dep(math)
target_link_libraries(hr_dep_math INTERFACE m)

hr_find_pkg(HWLOC hwloc)
hr_find_pkg(ISAL libisal)
hr_find_pkg(XXHASH libxxhash)
hr_find_pkg(CJSON libcjson)
hr_find_pkg(ZSTD libzstd)
hr_find_pkg(CMOCKA cmocka)
# Debian's openblas.pc is an alternative that may be absent; cblas.h with libopenblas is what is
# needed.
hr_find_pkg(BLAS openblas)

if(HEADRACE_IO_URING)
    hr_find_pkg(URING liburing)
    if(NOT HR_HAVE_URING)
        message(STATUS "liburing not found: the file tier will use pread and pwrite threads")
    endif()
else()
    hr_dep(uring)
    set(HR_HAVE_URING 0)
endif()

# FAISS is called through its C API. A real C library comes first: a target of a project around this one, or libfaiss_c where
# a program links with it. Debian has the C headers beside the C++ library alone: index/faiss_bridge.cpp then defines what they
# declare (HR_FAISS_BRIDGE). Link order for static libraries: what needs, then what is needed.
hr_dep(faiss)
set(HR_HAVE_FAISS 0)
set(HR_FAISS_BRIDGE 0)
if(HEADRACE_FAISS AND HR_HAVE_BLAS)
    if(TARGET faiss_c)
        set(HR_HAVE_FAISS 1)
        target_link_libraries(hr_dep_faiss INTERFACE faiss_c)
    else()
        find_library(HR_FAISS_C_LIBRARY faiss_c)
        mark_as_advanced(HR_FAISS_C_LIBRARY)
        if(HR_FAISS_C_LIBRARY)
            set(CMAKE_REQUIRED_LIBRARIES ${HR_FAISS_C_LIBRARY})
            check_c_source_compiles("#include <faiss/c_api/index_factory_c.h>
                int main(void) { FaissIndex *i; return faiss_index_factory(&i, 8, \"Flat\", METRIC_L2); }"
                HR_FAISS_C_WORKS)
            unset(CMAKE_REQUIRED_LIBRARIES)
        endif()
        if(HR_FAISS_C_WORKS)
            set(HR_HAVE_FAISS 1)
            set(HR_VERSION_FAISS "(libfaiss_c)")
            target_link_libraries(hr_dep_faiss INTERFACE ${HR_FAISS_C_LIBRARY})
        endif()
    endif()
    if(NOT HR_HAVE_FAISS AND CMAKE_CXX_COMPILER)
        # FAISS's package needs OpenMP to have been found first.
        find_package(OpenMP QUIET COMPONENTS C CXX)
        if(OpenMP_CXX_FOUND)
            find_package(faiss CONFIG QUIET)
        endif()
        if(TARGET faiss)
            set(HR_HAVE_FAISS 1)
            set(HR_FAISS_BRIDGE 1)
            set(HR_VERSION_FAISS "${faiss_VERSION} (C API by the bridge)")
            target_link_libraries(hr_dep_faiss INTERFACE faiss hr_dep_blas gomp stdc++ m)
        endif()
    endif()
endif()

hr_dep(cuda)
set(HR_HAVE_CUDA 0)
if(NOT HEADRACE_CUDA STREQUAL "OFF")
    # What tools/deps.sh cuda installs; a compiler in CUDACXX or in the path comes first.
    if(NOT DEFINED ENV{CUDACXX} AND NOT CMAKE_CUDA_COMPILER)
        find_program(HEADRACE_NVCC nvcc PATHS $ENV{HEADRACE_CACHE}/cuda/nvidia/cu13/bin
            $ENV{XDG_CACHE_HOME}/headrace/cuda/nvidia/cu13/bin
            $ENV{HOME}/.cache/headrace/cuda/nvidia/cu13/bin)
        mark_as_advanced(HEADRACE_NVCC)
        if(HEADRACE_NVCC)
            set(CMAKE_CUDA_COMPILER ${HEADRACE_NVCC})
        endif()
    endif()
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        # One architecture is enough to know that the kernels compile; the preset cuda has them all.
        # Not "native", which needs a GPU to configure.
        if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
            set(CMAKE_CUDA_ARCHITECTURES 90-real)
        endif()
        enable_language(CUDA)
        find_package(CUDAToolkit REQUIRED)
        set(HR_HAVE_CUDA 1)
        set(HR_VERSION_CUDA "${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
        target_link_libraries(hr_dep_cuda INTERFACE CUDA::cudart_static)
    elseif(HEADRACE_CUDA STREQUAL "ON")
        message(FATAL_ERROR
            "HEADRACE_CUDA is ON but no CUDA compiler was found; set CUDACXX or use AUTO")
    endif()
endif()

# Reference scripts of the tests want Python with NumPy; the virtual environment that
# tools/deps.sh makes comes first. Empty: none.
if(HEADRACE_TESTS AND NOT HEADRACE_PYTHON)
    if(DEFINED ENV{HEADRACE_CACHE})
        set(hr_cache $ENV{HEADRACE_CACHE})
    elseif(DEFINED ENV{XDG_CACHE_HOME})
        set(hr_cache $ENV{XDG_CACHE_HOME}/headrace)
    else()
        set(hr_cache $ENV{HOME}/.cache/headrace)
    endif()
    foreach(candidate $ENV{HEADRACE_PYTHON} ${hr_cache}/venv/bin/python3 /usr/bin/python3 python3)
        execute_process(COMMAND ${candidate} -c "import numpy"
            RESULT_VARIABLE hr_result OUTPUT_QUIET ERROR_QUIET)
        if(hr_result EQUAL 0)
            set(HEADRACE_PYTHON ${candidate}
                CACHE STRING "Python with NumPy, for reference scripts of the tests" FORCE)
            break()
        endif()
    endforeach()
endif()

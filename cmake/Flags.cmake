# hr_flags: how our own sources are compiled. Never installed.
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

# Frame pointers and line tables cost about a per cent and make every profile and crash readable.
set(hr_opt "-O3 -g1 -fno-omit-frame-pointer -DNDEBUG")
if(NOT HEADRACE_RELEASE_FLAGS_SET)
    set(CMAKE_C_FLAGS_RELEASE "${hr_opt}" CACHE STRING "" FORCE)
    set(CMAKE_CXX_FLAGS_RELEASE "${hr_opt}" CACHE STRING "" FORCE)
    set(HEADRACE_RELEASE_FLAGS_SET 1 CACHE INTERNAL "")
endif()

add_library(hr_flags INTERFACE)
target_include_directories(hr_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(hr_flags INTERFACE hr_dep_threads hr_dep_math)
target_compile_definitions(hr_flags INTERFACE
    _GNU_SOURCE
    HR_VERSION_STRING="${PROJECT_VERSION}"
    HR_HAVE_HWLOC=${HR_HAVE_HWLOC} HR_HAVE_ISAL=${HR_HAVE_ISAL} HR_HAVE_XXHASH=${HR_HAVE_XXHASH}
    HR_HAVE_CJSON=${HR_HAVE_CJSON} HR_HAVE_ZSTD=${HR_HAVE_ZSTD} HR_HAVE_BLAS=${HR_HAVE_BLAS}
    HR_HAVE_URING=${HR_HAVE_URING} HR_HAVE_FAISS=${HR_HAVE_FAISS} HR_HAVE_CUDA=${HR_HAVE_CUDA})
# C and C++ share the headers; both are compiled with -Wshadow.
set(hr_warnings -Wall -Wextra -Wshadow -Wpointer-arith -Wvla)
set(hr_warnings_c ${hr_warnings} -Wstrict-prototypes -Wmissing-prototypes)
if(HEADRACE_WERROR)
    list(APPEND hr_warnings -Werror)
    list(APPEND hr_warnings_c -Werror)
endif()
# Nobody reads errno of a mathematical function or traps on one; without these flags sqrtf and
# friends do not vectorise.
target_compile_options(hr_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:C>:${hr_warnings_c};-fno-math-errno;-fno-trapping-math>"
    "$<$<COMPILE_LANGUAGE:CXX>:${hr_warnings};-fno-math-errno;-fno-trapping-math>")

if(HEADRACE_SANITIZE STREQUAL "address")
    set(hr_sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(HEADRACE_SANITIZE STREQUAL "fuzzer")
    set(hr_sanitize -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(HEADRACE_SANITIZE STREQUAL "thread")
    set(hr_sanitize -fsanitize=thread -fno-omit-frame-pointer)
endif()
if(HEADRACE_SANITIZE)
    # Applied to every target, generated or imported objects apart, so that no part escapes.
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${hr_sanitize}>")
    string(REPLACE ";" " " hr_sanitize "${hr_sanitize}")
    add_link_options("SHELL:${hr_sanitize}")
    target_compile_definitions(hr_flags INTERFACE HR_SANITIZE=1 HR_ASSERTS=1)
endif()
target_compile_definitions(hr_flags INTERFACE $<$<CONFIG:Debug>:HR_ASSERTS=1>)

# Public headers only: what the engine, the tool and the examples compile against.
add_library(headrace_headers INTERFACE)
target_include_directories(headrace_headers INTERFACE ${PROJECT_SOURCE_DIR}/include)

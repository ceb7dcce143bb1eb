# libheadrace.so and libheadrace.a, made of the same objects.
if(NOT hr_objects)
    message(FATAL_ERROR "no part of the library is there")
endif()

add_library(headrace SHARED ${hr_objects})
set_target_properties(headrace PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION 0 EXPORT_NAME headrace LINKER_LANGUAGE C
    LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/headrace.map)
target_link_options(headrace PRIVATE
    -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/headrace.map -Wl,--as-needed)
if(NOT HEADRACE_SANITIZE)
    target_link_options(headrace PRIVATE -Wl,-z,defs)
endif()
target_link_libraries(headrace PRIVATE hr_link_deps)
target_include_directories(headrace INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)

add_library(headrace_static STATIC ${hr_objects})
set_target_properties(headrace_static PROPERTIES OUTPUT_NAME headrace LINKER_LANGUAGE C)
target_link_libraries(headrace_static INTERFACE $<BUILD_INTERFACE:hr_link_deps>)
target_include_directories(headrace_static INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)

add_library(headrace::headrace ALIAS headrace)
add_library(headrace::headrace_static ALIAS headrace_static)

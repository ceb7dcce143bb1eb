# cmake --install: headers, both libraries, pkg-config file, CMake package, the tool.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(hr_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/headrace)

install(DIRECTORY include/headrace DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
    FILES_MATCHING PATTERN "*.h")
install(TARGETS headrace headrace_static EXPORT headrace-targets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT headrace-targets NAMESPACE headrace:: DESTINATION ${hr_package_dir})
if(TARGET headrace_cli)
    # The installed tool finds the library beside it, wherever the prefix was moved to.
    set_target_properties(headrace_cli PROPERTIES
        INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
    install(TARGETS headrace_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# What a static link needs besides libheadrace.a. The shared library carries its own dependencies.
set(hr_linked)
foreach(part base kernels index offload runtime)
    if(TARGET hr_${part})
        get_target_property(hr_part_linked hr_${part} INTERFACE_LINK_LIBRARIES)
        list(APPEND hr_linked ${hr_part_linked})
    endif()
endforeach()
set(hr_static_libs)
set(hr_faiss_libs "-lfaiss_c")
if(HR_FAISS_BRIDGE)
    set(hr_faiss_libs "-lfaiss -lopenblas -lgomp -lstdc++")
endif()
foreach(pair "FAISS;${hr_faiss_libs}" "HWLOC;-lhwloc" "ISAL;-lisal" "URING;-luring"
        "BLAS;-lopenblas" "XXHASH;-lxxhash" "ZSTD;-lzstd")
    list(GET pair 0 hr_name)
    list(GET pair 1 hr_lib)
    string(TOLOWER ${hr_name} hr_lower)
    if(HR_HAVE_${hr_name} AND "hr_dep_${hr_lower}" IN_LIST hr_linked)
        string(APPEND hr_static_libs "${hr_lib} ")
    endif()
endforeach()
string(APPEND hr_static_libs "-pthread -lm")

# Relative to the file itself, so that "cmake --install --prefix" and a moved prefix work.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    set(hr_pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
    file(RELATIVE_PATH hr_up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
    string(REGEX REPLACE "/$" "" hr_up "${hr_up}")
    set(hr_pc_prefix "\${pcfiledir}/${hr_up}")
endif()
configure_file(cmake/headrace.pc.in headrace.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/headrace.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

configure_package_config_file(cmake/headraceConfig.cmake.in headraceConfig.cmake
    INSTALL_DESTINATION ${hr_package_dir})
write_basic_package_version_file(headraceConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
    ${PROJECT_BINARY_DIR}/headraceConfig.cmake ${PROJECT_BINARY_DIR}/headraceConfigVersion.cmake
    DESTINATION ${hr_package_dir})

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
set(hr_static_libs)
foreach(pair "HWLOC;hwloc" "ISAL;isal" "URING;uring" "BLAS;openblas")
    list(GET pair 0 hr_name)
    list(GET pair 1 hr_lib)
    if(HR_HAVE_${hr_name})
        string(APPEND hr_static_libs " -l${hr_lib}")
    endif()
endforeach()
if(HR_HAVE_FAISS)
    string(PREPEND hr_static_libs " -lfaiss -lgomp -lstdc++")
endif()
string(APPEND hr_static_libs " -pthread -lm")
string(STRIP "${hr_static_libs}" hr_static_libs)

configure_file(cmake/headrace.pc.in headrace.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/headrace.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

configure_package_config_file(cmake/headraceConfig.cmake.in headraceConfig.cmake
    INSTALL_DESTINATION ${hr_package_dir})
write_basic_package_version_file(headraceConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
    ${PROJECT_BINARY_DIR}/headraceConfig.cmake ${PROJECT_BINARY_DIR}/headraceConfigVersion.cmake
    DESTINATION ${hr_package_dir})

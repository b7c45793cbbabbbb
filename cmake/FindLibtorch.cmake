# libtorch out of the PyPI wheel `torch`, linked directly. The wheel's own find_package(Torch) wants a CUDA toolkit, so
# this module names the two libraries itself and finds the two small CUDA libraries that they need beside them.
# Result: Libtorch::Libtorch.
set(_torch "${PITH_TORCH_DIR}")
if(NOT _torch)
  file(GLOB _candidates "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
  if(_candidates)
    list(GET _candidates 0 _torch)
  endif()
endif()
if(NOT _torch OR NOT EXISTS "${_torch}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "libtorch not found (looked in '${_torch}'). Run `make setup`, or pass -DPITH_TORCH_DIR=.../site-packages/torch, "
                      "or configure without tensors: -DPITH_ENGINE=OFF.")
endif()
file(READ "${_torch}/version.py" _version_text)
string(REGEX MATCH "__version__ = '([0-9]+\\.[0-9]+)" _ "${_version_text}")
set(Libtorch_VERSION "${CMAKE_MATCH_1}")
if(Libtorch_VERSION VERSION_LESS 2.11 OR Libtorch_VERSION VERSION_GREATER 2.15)
  message(WARNING "torch ${Libtorch_VERSION} found; Pith is tested with 2.11 to 2.15")
endif()
get_filename_component(_site "${_torch}" DIRECTORY)
file(GLOB _nvidia LIST_DIRECTORIES true "${_site}/nvidia/*/lib")

add_library(Libtorch::Libtorch INTERFACE IMPORTED)
target_include_directories(Libtorch::Libtorch SYSTEM INTERFACE "${_torch}/include")
target_compile_definitions(Libtorch::Libtorch INTERFACE AT_PER_OPERATOR_HEADERS)
target_link_libraries(Libtorch::Libtorch INTERFACE "${_torch}/lib/libtorch_cpu.so" "${_torch}/lib/libc10.so")
target_link_options(Libtorch::Libtorch INTERFACE "-Wl,-rpath,${_torch}/lib" "-Wl,--disable-new-dtags"
                    "-Wl,--allow-shlib-undefined")
foreach(_dir ${_nvidia})
  target_link_options(Libtorch::Libtorch INTERFACE "-Wl,-rpath,${_dir}")
endforeach()
set(Libtorch_FOUND TRUE)
set(PITH_TORCH_LIB_DIR "${_torch}/lib" CACHE INTERNAL "")

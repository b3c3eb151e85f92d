# Writes the explicit instantiations of kernel launchers into the build tree, each translation unit twice:
# as .cu for nvcc and as .cpp for the simt build.

set(LLMJP_FAMILIES)
set(LLMJP_CUDA_INSTANTIATIONS)
set(LLMJP_SIMT_INSTANTIATIONS)
set(LLMJP_INSTANTIATION_COUNT 0)

# llmjp_instantiate(<family> <header> <function> <parameter struct> <types>...), where <types> is a comma-separated
# list of element types. One translation unit for each first type.
macro(llmjp_instantiate family header function struct)
  set(first_types)
  foreach(types ${ARGN})
    string(REGEX REPLACE ",.*" "" first "${types}")
    list(APPEND first_types ${first})
    string(REGEX REPLACE "b?float16" "llmjp::device::\\0" arguments "${types}")
    string(REPLACE "," ", " arguments "${arguments}")
    string(APPEND body_${first}
      "template void llmjp::${family}::${function}<${arguments}>(\n"
      "    const llmjp::${family}::${struct}&, llmjp::host::Stream);\n")
    math(EXPR LLMJP_INSTANTIATION_COUNT "${LLMJP_INSTANTIATION_COUNT} + 1")
  endforeach()
  list(REMOVE_DUPLICATES first_types)
  string(REGEX REPLACE "^launch_" "" stem "${function}")
  foreach(first IN LISTS first_types)
    set(unit "${CMAKE_BINARY_DIR}/generated/${family}/${stem}_${first}")
    set(text "#include \"${family}/${header}\"\n\n${body_${first}}")
    unset(body_${first})
    file(CONFIGURE OUTPUT "${unit}.cu" CONTENT "${text}" @ONLY)
    file(CONFIGURE OUTPUT "${unit}.cpp" CONTENT "${text}" @ONLY)
    list(APPEND LLMJP_CUDA_INSTANTIATIONS "${unit}.cu")
    list(APPEND LLMJP_SIMT_INSTANTIATIONS "${unit}.cpp")
  endforeach()
  list(APPEND LLMJP_FAMILIES ${family})
  list(REMOVE_DUPLICATES LLMJP_FAMILIES)
endmacro()

function(llmjp_report_instantiations)
  list(LENGTH LLMJP_CUDA_INSTANTIATIONS units)
  message(STATUS "Kernel launchers: ${LLMJP_INSTANTIATION_COUNT} instantiations in ${units} translation units")
endfunction()

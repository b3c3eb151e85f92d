# Asks the Python interpreter once where torch, pybind11 and its own headers are.
# Sets LLMJP_TORCH_ROOT, LLMJP_TORCH_VERSION, LLMJP_PYBIND11_INCLUDE, LLMJP_PYTHON_INCLUDE, LLMJP_EXT_SUFFIX,
# LLMJP_PYTHON_VERSION.
execute_process(
  COMMAND "${LLMJP_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/python_facts.py"
  OUTPUT_VARIABLE facts ERROR_VARIABLE reason RESULT_VARIABLE status
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
if(NOT status EQUAL 0)
  if(NOT reason)
    set(reason "the Python interpreter \"${LLMJP_PYTHON}\" (LLMJP_PYTHON) could not be run: ${status}.")
  endif()
  llmjp_stop("${reason}")
endif()
string(REPLACE "\n" ";" facts "${facts}")
foreach(fact IN LISTS facts)
  string(REGEX MATCH "^([A-Z0-9_]+)=(.*)$" matched "${fact}")
  set(LLMJP_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
endforeach()
message(STATUS "Python ${LLMJP_PYTHON_VERSION}, torch ${LLMJP_TORCH_VERSION} at ${LLMJP_TORCH_ROOT}")

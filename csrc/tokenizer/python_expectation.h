// Expected counts for Python: texts in, a NumPy array and the texts' log-likelihood out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tokenizer/expectation.h"
#include "tokenizer/python_lock.h"
#include "tokenizer/python_text.h"

namespace llmjp::tokenizer {

using Scores = pybind11::array_t<double, pybind11::array::c_style | pybind11::array::forcecast>;

// `scores`: by id, or None for the model's own.
inline pybind11::tuple expected_counts(const Model& model, const pybind11::object& sequence,
                                       const pybind11::object& scores) {
  namespace py = pybind11;
  const Texts texts(sequence);
  std::vector<double> own(model.spec.scores.begin(), model.spec.scores.end());
  if (!scores.is_none()) {
    const Scores given = Scores::ensure(scores);
    if (!given) throw py::error_already_set();
    if (given.ndim() != 1 || static_cast<size_t>(given.size()) != model.size()) {
      throw py::value_error("scores must be an array of " + std::to_string(model.size()) +
                            " numbers, one for each id, got one of shape " +
                            std::string(py::str(given.attr("shape"))));
    }
    own.assign(given.data(), given.data() + given.size());
    if (!std::all_of(own.begin(), own.end(), [](double score) { return std::isfinite(score); }))
      throw py::value_error("scores must be finite");
  }
  py::array_t<double> counts(static_cast<py::ssize_t>(model.size()));
  double* const out = counts.mutable_data();
  std::fill_n(out, model.size(), 0.0);
  double log_likelihood = 0.0;
  texts.located([&] {
    const Unlocked unlocked(texts.work);
    Expectation expectation(model, own.data(), out);
    for (const Text& text : texts.views) log_likelihood += expectation.add(text);
  });
  return py::make_tuple(counts, log_likelihood);
}

}  // namespace llmjp::tokenizer

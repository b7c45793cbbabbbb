// Chat templates: the subset of Jinja that the templates of language models use, as an interpreter with hard limits.
// A template comes from a model file and is not trusted: steps, nesting and output are bounded.
#pragma once

#include <pith/result.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer_spec.h"

namespace pith {

struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

/// The prompt text for `messages` by the model's own template; encode it with add_special = false and
/// parse_special = true. Fails when the model has no template, the template is wrong or uses what is not supported,
/// a limit is hit, or the template itself raises an error.
Result<std::string> render_chat(const TokenizerSpec& spec, std::span<const ChatMessage> messages,
                                bool add_generation_prompt);

/// The same for a template given as text.
Result<std::string> render_chat_template(std::string_view source, std::span<const ChatMessage> messages,
                                         bool add_generation_prompt, std::string_view bos_token,
                                         std::string_view eos_token);

}  // namespace pith

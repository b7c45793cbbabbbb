// pith export FILE --to gguf|hf|compressed-tensors|peft -o OUT: the same model for other programs.
#include "cli/pith/commands.h"
#include "formats/dtype.h"
#include "plan/size.h"
#include "runtime/export_compressed_tensors.h"
#include "runtime/export_peft.h"
#include "runtime/model_file.h"

namespace pith {

int export_command(const Arguments& arguments) {
  std::string path, to, output, dtype = "f16";
  bool force = false;
  const auto app =
      new_app("export",
              "Writes a model for other programs: a GGUF for llama.cpp (tensors on ggml's grids stay as "
              "they are), a Hugging Face "
              "folder with every tensor decoded, a compressed-tensors folder for transformers and vLLM "
              "(uniform grids stay packed), or a folder with the low-rank parts as a LoRA adapter of PEFT.",
              "pith export small.pith --to hf -o small-hf");
  app->add_option("FILE", path, "Model: .pith, .gguf, .safetensors or Hugging Face folder")->required();
  app->add_option("--to", to, "gguf, hf, compressed-tensors or peft")
      ->required()
      ->check(CLI::IsMember({"gguf", "hf", "compressed-tensors", "peft"}))
      ->type_name("FORMAT");
  app->add_option("-o,--output", output, "File or folder to write")->required()->type_name("OUT");
  app->add_option("--dtype", dtype, "Numbers of a folder: f16, bf16 or f32 [f16]")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->type_name("TYPE");
  app->add_flag("--force", force, "Overwrite the output");
  if (const auto code = parse_arguments(*app, arguments)) return *code;

  const auto model = open_model(path);
  if (!model.ok()) return fail(model.error());
  const DType type = dtype == "f32" ? DType::f32 : dtype == "bf16" ? DType::bf16 : DType::f16;
  Status status;
  if (to == "gguf") {
    status = write_gguf_model(*model, output, force);
  } else if (to == "hf") {
    status = write_hf_folder(*model, output, type, force);
  } else if (to == "peft") {
    status = write_peft(*model, output, type, force);
  } else {
    status = write_compressed_tensors(*model, output, type, force);
  }
  if (!status.ok()) return fail(status.error());
  return print_result(output + ": " + print_size(model_file_bytes(output)) + "\n");
}

}  // namespace pith

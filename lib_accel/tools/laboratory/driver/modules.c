// Modules: compiled GPU code as the driver loads it. A file for another card is refused.
#include "pretend.h"
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct module {
  int registers, stack;
  char *sections; // their names, of a cubin; a kernel's is `.text.` and its name
  size_t bytes;
};
struct function {
  char name[256];
  int registers, stack;
};

// In `.nv.info`: the stack (0x11) and the registers (0x2f) of a kernel.
static void read_info(const unsigned char *info, size_t bytes, struct module *found) {
  for (size_t at = 0; at + 4 <= bytes;) {
    const unsigned char *entry = info + at;
    unsigned size = entry[0] == 4 ? *(const uint16_t *)(entry + 2) : 0;
    if (entry[0] == 4 && size >= 8) {
      int value = *(const int *)(entry + 8);
      if (entry[1] == 0x11 && value > found->stack)
        found->stack = value;
      if (entry[1] == 0x2f)
        found->registers = value;
    }
    at += 4 + size;
  }
}

static void read_sections(const unsigned char *image, struct module *found) {
  const Elf64_Ehdr *header = (const void *)image;
  const Elf64_Shdr *sections = (const void *)(image + header->e_shoff);
  const char *names = (const char *)image + sections[header->e_shstrndx].sh_offset;
  found->bytes = sections[header->e_shstrndx].sh_size;
  found->sections = memcpy(malloc(found->bytes), names, found->bytes);
  for (int i = 0; i < header->e_shnum; i++)
    if (!strcmp(names + sections[i].sh_name, ".nv.info"))
      read_info(image + sections[i].sh_offset, sections[i].sh_size, found);
}

static int made_for(const Elf64_Ehdr *header) {
  int newer = header->e_ident[EI_OSABI] == 0x41;
  return (newer ? header->e_flags >> 8 : header->e_flags) & 0xff;
}

static int has(const struct module *module, const char *kernel) {
  char section[300];
  snprintf(section, sizeof section, ".text.%s", kernel);
  for (size_t at = 0; at < module->bytes; at += strlen(module->sections + at) + 1)
    if (!strcmp(module->sections + at, section))
      return 1;
  return !module->sections; // of what is no cubin nothing is known
}

static CUresult load(const void *image, CUmodule *loaded) {
  struct module *module = calloc(1, sizeof *module);
  module->registers = 32;
  if (!memcmp(image, ELFMAG, SELFMAG)) {
    int theirs = made_for(image), ours = card();
    say("module sm=%d", theirs);
    if (theirs / 10 != ours / 10 || theirs > ours)
      return CUDA_ERROR_NO_BINARY_FOR_GPU;
    read_sections(image, module);
  }
  *loaded = (CUmodule)module;
  return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUmodule *loaded, const void *image) { return load(image, loaded); }
API CUresult cuModuleLoadDataEx(CUmodule *loaded, const void *image, unsigned count,
                                CUjit_option *options, void **values) {
  return load(image, loaded);
}
API CUresult cuModuleLoadFatBinary(CUmodule *loaded, const void *image) {
  return load(image, loaded);
}
API CUresult cuModuleLoad(CUmodule *loaded, const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file)
    return CUDA_ERROR_FILE_NOT_FOUND;
  fseek(file, 0, SEEK_END);
  long bytes = ftell(file);
  rewind(file);
  char *image = malloc(bytes + 1);
  int whole = fread(image, 1, bytes, file) == (size_t)bytes;
  fclose(file);
  return whole ? load(image, loaded) : CUDA_ERROR_INVALID_IMAGE;
}
API CUresult cuModuleGetFunction(CUfunction *found, CUmodule from, const char *name) {
  const struct module *module = (const void *)from;
  if (!has(module, name))
    return CUDA_ERROR_NOT_FOUND;
  struct function *function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  function->registers = module->registers;
  function->stack = module->stack;
  say("function %s registers=%d stack=%d", name, function->registers, function->stack);
  *found = (CUfunction)function;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction of) {
  const struct function *function = (const void *)of;
  switch (attribute) {
  case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = function->registers; break;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = function->stack; break;
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
  default: *value = 0;
  }
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction of, CUfunction_attribute attribute, int value) {
  int most = card_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  int shared = attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  return shared && value > most ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction f, const CUlaunchConfig *c) {
  return *count = 1, CUDA_SUCCESS;
}
API CUresult cuLaunchKernel(CUfunction of, unsigned x, unsigned y, unsigned z, unsigned bx,
                            unsigned by, unsigned bz, unsigned shared, CUstream stream,
                            void **arguments, void **extra) {
  say("kernel %s grid=%u,%u,%u block=%u,%u,%u shared=%u stream=%p",
      ((const struct function *)of)->name, x, y, z, bx, by, bz, shared, stream);
  return CUDA_SUCCESS;
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction of, void **a, void **extra) {
  return cuLaunchKernel(of, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                        c->blockDimZ, c->sharedMemBytes, c->hStream, a, extra);
}

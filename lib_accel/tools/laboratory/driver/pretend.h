// A pretend CUDA driver, runtime and cuBLAS in one library. torch with CUDA, Triton and Inductor
// run on it unchanged: device memory is memory of the process, copies are real, kernels compute
// nothing and are written to a log. See laboratory.py for how it is built and used.
#ifndef PRETEND_H
#define PRETEND_H
#define _GNU_SOURCE
#include <cuda.h>
#include <driver_types.h>
#include <stddef.h>
#include <stdint.h>

// What torch may call; everything else is hidden.
#define API __attribute__((visibility("default")))

int card(void);                    // PRETEND_CARD, as 86 for compute capability 8.6
size_t card_bytes(void);           // PRETEND_BYTES of video memory, 24 GiB by default
int pages(void);                   // PRETEND_PAGES: whether there is more where that has run out
int card_attribute(int attribute); // by the numbers of CUdevice_attribute; 0 for one not known here

void say(const char *format, ...); // writes a line to the file PRETEND_LOG
int logging(void);
void *new_handle(void); // a value that no other stream, event, graph or descriptor has

struct range {
  char *start;
  size_t bytes;
  int host; // pinned memory of the host, not of the card
};
int find_range(const void *address, struct range *found); // returns whether there is one

#endif

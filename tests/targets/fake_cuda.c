/* A driver and a runtime of CUDA without a GPU: memory is the host's, kernels do nothing, and what is loaded is written
 * down. It shows which machine code a bundle hands to which GPU, and that it is launched; not what kernels compute.
 *
 *   FAKE_CAPABILITY   compute capability, as 90
 *   FAKE_LOG          a file: "load" with the first bytes of each module, "get" and "launch" of each kernel
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int capability(void) {
  const char *text = getenv("FAKE_CAPABILITY");
  return text ? atoi(text) : 90;
}

static void note(const char *what, const char *about) {
  const char *path = getenv("FAKE_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (!log) return;
  fprintf(log, "%s %s\n", what, about);
  fclose(log);
}

#define FINE(name) int name() { return 0; }

/* The driver. */
FINE(cuInit)
FINE(cuModuleUnload)
FINE(cuFuncSetAttribute)
FINE(cuTensorMapEncodeTiled)
int cuDeviceGet(int *device, int number) { *device = 0; return number; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake %d", capability()); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? capability() / 10 : attribute == 76 ? capability() % 10 : 1024;
  return device;
}
/* NVRTC asks for it: there is none. */
int cuGetExportTable(const void **table, const void *id) { *table = id ? NULL : id; return 500; }
int cuGetErrorName(int error, const char **text) { *text = "error"; return error * 0; }
int cuGetErrorString(int error, const char **text) { *text = "an error"; return error * 0; }
int cuModuleLoadData(void **module, const void *image) {
  const unsigned char *bytes = image;
  note("load", bytes[0] == 0x7f && !memcmp(bytes + 1, "ELF", 3) ? "cubin" : strstr(image, ".version") ? "ptx" : "other");
  if (bytes[0] == 0x7f) {
    char flags[32];
    /* e_flags of the ELF header hold the architecture. */
    snprintf(flags, sizeof flags, "%08x", *(const unsigned *)(bytes + 48));
    note("flags", flags);
  }
  *module = malloc(8);
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  note("get", name);
  *function = strdup(name);
  return module == NULL;
}
int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) {
  note("launch", function);
  return config == NULL || arguments == NULL || extra != NULL;
}

/* The runtime. */
FINE(cudaEventCreate)
FINE(cudaEventDestroy)
FINE(cudaEventElapsedTime)
FINE(cudaEventRecord)
FINE(cudaEventSynchronize)
FINE(cudaGetLastError)
FINE(cudaGraphDestroy)
FINE(cudaGraphExecDestroy)
FINE(cudaGraphInstantiate)
FINE(cudaPeekAtLastError)
FINE(cudaSetDevice)
FINE(cudaStreamBeginCapture)
FINE(cudaStreamDestroy)
FINE(cudaStreamSynchronize)
FINE(cudaStreamWaitEvent)
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; *graph = malloc(8); note("graph", "captured"); return 0; }
int cudaGraphLaunch(void *graph, void *stream) { (void)stream; note("graph", "launched"); return graph != NULL; }
int cudaStreamCreate(void **stream) { *stream = malloc(8); return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { (void)flags; return cudaStreamCreate(stream); }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { return cuDeviceGetAttribute(value, attribute, device); }
int cudaGetDeviceProperties(void *properties, int device) { memset(properties, 0, 256); return device; }
const char *cudaGetErrorName(int error) { (void)error; return "error"; }
const char *cudaGetErrorString(int error) { (void)error; return "an error"; }
int cudaMemGetInfo(size_t *unused, size_t *all) { *unused = *all = (size_t)1 << 34; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaMalloc(void **place, size_t size) { *place = aligned_alloc(256, (size + 255) / 256 * 256); memset(*place, 0, size); return 0; }
int cudaMallocHost(void **place, size_t size) { return cudaMalloc(place, size); }
int cudaFree(void *place) { free(place); return 0; }
int cudaFreeHost(void *place) { free(place); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  (void)kind; (void)stream;
  memcpy(to, from, size);
  return 0;
}
int cudaMemcpyPeerAsync(void *to, int there, const void *from, int here, size_t size, void *stream) {
  return cudaMemcpyAsync(to, from, size, there + here, stream);
}

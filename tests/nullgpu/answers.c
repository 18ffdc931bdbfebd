/* What the null GPU answers where "success" alone is not enough. Device memory is host memory, a
   copy is a memcpy, and a kernel does nothing. stub.py adds `int NAME(void) { return 0; }` for
   every other CUDA, cuBLAS and NCCL call of torch. No CUDA header is included: the signatures
   below are those of the binary interface, which stay the same between versions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
struct dim3 { unsigned x, y, z; };
enum { SUCCESS = 0, OUT_OF_MEMORY = 2 };

static __thread int current_device = 0;
static int devices(void) { char *n = getenv("NULL_GPUS"); return n ? atoi(n) : 1; }
static int success(void) { return SUCCESS; }
static int new_handle(void **handle) {
    static long last = 0x1000;
    *handle = (void *)__sync_add_and_fetch(&last, 0x100);
    return SUCCESS;
}

/* ------------------------------------------------------------------ devices: H100's numbers */
int cudaGetDeviceCount(int *n) { *n = devices(); return SUCCESS; }
int cudaGetDevice(int *device) { *device = current_device; return SUCCESS; }
int cudaSetDevice(int device) { current_device = device; return SUCCESS; }
int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0; *greatest = -5; return SUCCESS;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 1: *value = 1024; break;  /* threads per block */
        case 8: *value = 49152; break; /* shared memory per block */
        case 10: *value = 32; break;   /* warp */
        case 16: *value = 132; break;  /* multiprocessors */
        case 39: *value = 2048; break; /* threads per multiprocessor */
        case 75: *value = 9; break;    /* compute capability 9.0 */
        case 76: *value = 0; break;
        default: *value = 1;
    }
    return SUCCESS;
}
int cudaDeviceGetPCIBusId(char *id, int n, int device) {
    strncpy(id, "0000:00:00.0", n); return SUCCESS;
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0; *active = 1; return SUCCESS;
}
int cuCtxGetCurrent(void **context) { *context = (void *)0x10; return SUCCESS; }
const char *cudaGetErrorString(int error) { return "null GPU"; }
const char *cudaGetErrorName(int error) { return "null GPU"; }
int cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, u64 flags, int *status) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)success;
    if (status) *status = 0;
    return SUCCESS;
}

/* ------------------------------------------------------------------------------------ memory */
int cudaMalloc(void **p, size_t n) { *p = calloc(1, n + 512); return *p ? SUCCESS : OUT_OF_MEMORY; }
int cudaMallocAsync(void **p, size_t n, void *stream) { return cudaMalloc(p, n); }
int cudaFree(void *p) { free(p); return SUCCESS; }
int cudaFreeAsync(void *p, void *stream) { free(p); return SUCCESS; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) {
    return posix_memalign(p, 512, n) ? OUT_OF_MEMORY : SUCCESS;
}
int cudaFreeHost(void *p) { free(p); return SUCCESS; }
int cudaMemGetInfo(size_t *free_, size_t *total) {
    *free_ = 70ull << 30; *total = 80ull << 30; return SUCCESS;
}
int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
    memcpy(to, from, n); return SUCCESS;
}
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
    memcpy(to, from, n); return SUCCESS;
}
int cudaMemcpyPeerAsync(
    void *to, int device, const void *from, int source, size_t n, void *stream) {
    memcpy(to, from, n); return SUCCESS;
}
int cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return SUCCESS; }
int cudaMemsetAsync(void *p, int value, size_t n, void *stream) {
    memset(p, value, n); return SUCCESS;
}
int cudaGetSymbolAddress(void **p, const void *symbol) {
    static char memory[1 << 16]; *p = memory; return SUCCESS;
}

/* ----------------------------------------------------------------- streams, events, kernels */
int cudaStreamCreate(void **s) { return new_handle(s); }
int cudaStreamCreateWithFlags(void **s, unsigned flags) { return new_handle(s); }
int cudaStreamCreateWithPriority(void **s, unsigned flags, int priority) { return new_handle(s); }
int cudaStreamGetPriority(void *s, int *priority) { *priority = 0; return SUCCESS; }
int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return SUCCESS; }
int cudaStreamGetCaptureInfo(
    void *s, int *status, u64 *id, void *graph, void *dependencies, void *edges, void *number) {
    *status = 0; if (id) *id = 0; return SUCCESS;
}
int cudaEventCreate(void **e) { return new_handle(e); }
int cudaEventCreateWithFlags(void **e, unsigned flags) { return new_handle(e); }
int cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return SUCCESS; }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    function(data); return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *kernel, int threads, size_t shared, unsigned flags) {
    *blocks = 2; return SUCCESS;
}
int __cudaLaunchKernel(
    const void *kernel, struct dim3 grid, struct dim3 block, void **arguments, size_t shared,
    void *stream) {
    return SUCCESS;
}

/* ------------------------------------------------------------------------------------ cuBLAS */
int cublasCreate_v2(void **handle) { return new_handle(handle); }
int cublasLtCreate(void **handle) { return new_handle(handle); }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return SUCCESS; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return SUCCESS; }
int cublasGetStream_v2(void *handle, void **stream) { *stream = 0; return SUCCESS; }
int cublasGetVersion_v2(void *handle, int *version) { *version = 130000; return SUCCESS; }
int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
    int requested, void *results, int *number) {
    memset(results, 0, 512); *number = 1; return SUCCESS;
}

/* ---------------------------------- NCCL: as if every process had sent what this one has sent */
static size_t bytes_of(int type) {
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return bytes[type];
}
static int receive(void *to, const void *from, size_t n) {
    if (to != from) memmove(to, from, n);
    return SUCCESS;
}
int ncclGetVersion(int *version) { *version = 22800; return SUCCESS; }
int ncclCommCount(void *comm, int *n) { *n = devices(); return SUCCESS; }
int ncclCommGetAsyncError(void *comm, int *error) { *error = SUCCESS; return SUCCESS; }
int ncclCommInitRank(void **comm, int n, char id[128], int rank) { return new_handle(comm); }
const char *ncclGetErrorString(int error) { return "null GPU"; }
const char *ncclGetLastError(void *comm) { return "null GPU"; }
int ncclAllReduce(
    const void *from, void *to, size_t n, int type, int operation, void *comm, void *stream) {
    return receive(to, from, n * bytes_of(type));
}
int ncclBroadcast(
    const void *from, void *to, size_t n, int type, int root, void *comm, void *stream) {
    return receive(to, from, n * bytes_of(type));
}
int ncclAllGather(const void *from, void *to, size_t n, int type, void *comm, void *stream) {
    size_t bytes = n * bytes_of(type);
    for (int rank = 0; rank < devices(); rank++) receive((char *)to + rank * bytes, from, bytes);
    return SUCCESS;
}

/* A played CUDA device: what torch asks of the runtime and the driver where there is no GPU.

   It is preloaded, and is libcuda.so.1 too. Memory of the device is the host's, copies are memcpy and
   done at once, kernels are not launched, and a graph records nothing. PLAYED_CAPABILITIES is the
   compute capability of each device: "90,80" is two of them, of 9.0 and 8.0. What is not answered here
   fails as it does without a driver. */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local int current;
static const size_t TOTAL = (size_t)80 << 30;

/* The compute capability of a device, times ten; 0 where there is none. */
static int capability(int device) {
  const char *text = getenv("PLAYED_CAPABILITIES");
  for (; text && *text && device; device--) text = strchr(text, ',') ? strchr(text, ',') + 1 : "";
  return text ? atoi(text) : 0;
}
static int devices(void) {
  int count = 0;
  while (capability(count)) count++;
  return count;
}
/* The most shared memory of a block: 227 KiB of large cards, 163 of the A100, 96 of the V100. */
static int shared(int device) {
  int c = capability(device);
  return 1024 * (c == 90 || c == 100 ? 227 : c == 80 ? 163 : c == 70 ? 96 : 99);
}

/* ---- devices */
int cudaGetDeviceCount(int *n) { *n = devices(); return *n ? 0 : 100; }
int cudaGetDevice(int *d) { *d = current; return 0; }
int cudaSetDevice(int d) {
  if (d < 0 || d >= devices()) return 101;
  current = d;
  return 0;
}
int cudaDeviceGetAttribute(int *v, int a, int d) {
  *v = a == 75 ? capability(d) / 10 : a == 76 ? capability(d) % 10 : a == 97 ? shared(d) : a == 16 ? 132 : 1;
  return 0;
}
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  if (d < 0 || d >= devices()) return 101;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "played CUDA device");
  p->major = capability(d) / 10;
  p->minor = capability(d) % 10;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = TOTAL;
  p->warpSize = 32;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = shared(d);
  p->sharedMemPerMultiprocessor = shared(d) + 1024;
  p->regsPerMultiprocessor = p->regsPerBlock = 65536;
  p->l2CacheSize = 50 << 20;
  return 0;
}
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return cudaGetDeviceProperties(p, d); }
int cudaDriverGetVersion(int *v) { *v = 13020; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaDeviceCanAccessPeer(int *can, int a, int b) { (void)a, (void)b; *can = 0; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }

/* ---- memory: a list of what is pinned or on a device, to say of an address what it is */
struct block { char *start; size_t bytes; int type, device; struct block *next; };
static struct block *blocks;
static volatile int busy;
static void lock(void) { while (__sync_lock_test_and_set(&busy, 1)) {} }
static void unlock(void) { __sync_lock_release(&busy); }
static int take(void **p, size_t bytes, int type) {
  struct block *b = malloc(sizeof *b);
  if (posix_memalign(p, 512, bytes ? bytes : 1)) return 2;
  lock();
  *b = (struct block){*p, bytes, type, current, blocks};
  blocks = b;
  unlock();
  return 0;
}
static int give(void *p) {
  lock();
  for (struct block **at = &blocks; *at; at = &(*at)->next)
    if ((*at)->start == p) {
      struct block *b = *at;
      *at = b->next;
      free(b);
      break;
    }
  unlock();
  free(p);
  return 0;
}
int cudaMalloc(void **p, size_t bytes) { return take(p, bytes, 2); }
int cudaFree(void *p) { return give(p); }
int cudaHostAlloc(void **p, size_t bytes, unsigned flags) { (void)flags; return take(p, bytes, 1); }
int cudaMallocHost(void **p, size_t bytes) { return take(p, bytes, 1); }
int cudaFreeHost(void *p) { return give(p); }
int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = TOTAL; return 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->device = -1;
  lock();
  for (struct block *b = blocks; b; b = b->next)
    if (b->start <= (const char *)p && (const char *)p < b->start + b->bytes) {
      a->type = b->type;
      a->device = b->device;
      a->hostPointer = a->devicePointer = (void *)p;
    }
  unlock();
  return 0;
}
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { (void)kind; memcpy(to, from, n); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *s) {
  (void)s;
  return cudaMemcpy(to, from, n, kind);
}
int cudaMemset(void *to, int value, size_t n) { memset(to, value, n); return 0; }
int cudaMemsetAsync(void *to, int value, size_t n, void *s) { (void)s; return cudaMemset(to, value, n); }

/* ---- streams, events, kernels: all that is queued is done */
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -1; return 0; }
int cudaStreamCreateWithPriority(void **s, unsigned f, int priority) {
  (void)f, (void)priority;
  *s = malloc(1);
  return 0;
}
int cudaStreamDestroy(void *s) { free(s); return 0; }
int cudaStreamGetPriority(void *s, int *priority) { (void)s; *priority = 0; return 0; }
static void *capturing;
int cudaStreamIsCapturing(void *s, int *status) { *status = s && s == capturing; return 0; }
int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id) {
  if (id) *id = 1;
  return cudaStreamIsCapturing(s, status);
}
int cudaStreamGetCaptureInfo_v2(void *s, int *status, unsigned long long *id) {
  return cudaStreamGetCaptureInfo(s, status, id);
}
int cudaThreadExchangeStreamCaptureMode(int *mode) { *mode = 0; return 0; }
int cudaStreamQuery(void *s) { (void)s; return 0; }
int cudaStreamSynchronize(void *s) { (void)s; return 0; }
int cudaStreamWaitEvent(void *s, void *e, unsigned f) { (void)s, (void)e, (void)f; return 0; }
int cudaEventCreateWithFlags(void **e, unsigned f) { (void)f; *e = malloc(1); return 0; }
int cudaEventDestroy(void *e) { free(e); return 0; }
int cudaEventRecord(void *e, void *s) { (void)e, (void)s; return 0; }
int cudaEventRecordWithFlags(void *e, void *s, unsigned f) { (void)e, (void)s, (void)f; return 0; }
int cudaEventQuery(void *e) { (void)e; return 0; }
int cudaEventSynchronize(void *e) { (void)e; return 0; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { (void)a, (void)b; *ms = 1; return 0; }
int cudaLaunchKernel(void) { return 0; }

/* ---- graphs */
int cudaStreamBeginCapture(void *s, int mode) { (void)mode; capturing = s; return 0; }
int cudaStreamEndCapture(void *s, void **graph) {
  (void)s;
  capturing = 0;
  *graph = malloc(1);
  return 0;
}
int cudaGraphGetNodes(void *graph, void *nodes, size_t *count) {
  (void)graph, (void)nodes;
  *count = 1;
  return 0;
}
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long f) {
  (void)graph, (void)f;
  *executable = malloc(1);
  return 0;
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long f) {
  return cudaGraphInstantiate(executable, graph, f);
}
int cudaGraphUpload(void *executable, void *s) { (void)executable, (void)s; return 0; }
int cudaGraphLaunch(void *executable, void *s) { (void)executable, (void)s; return 0; }
int cudaGraphExecDestroy(void *executable) { free(executable); return 0; }
int cudaGraphDestroy(void *graph) { free(graph); return 0; }

/* ---- the driver */
int cuInit(unsigned f) { (void)f; return 0; }
int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
int cuDeviceGetCount(int *n) { *n = devices(); return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) { (void)d; *f = 0; *active = 1; return 0; }
int cuGetErrorString(int e, const char **text) { (void)e; *text = "played"; return 0; }

/* A libnvidia-ml.so.1 that tells a story: just the functions harness.device.sensors calls, at the level of NVML's ABI.
 *
 *     cc -shared -fPIC -pthread -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c
 *
 * The story is a line of settings, read from FAKE_NVML at the first nvmlInit and given to fake_nvml_set() at any time:
 *
 *     gpus=1 init=9                     how many GPUs there are (2), what nvmlInit answers (0)
 *     1.lost=1                          GPU 1 answers GPU_IS_LOST to everything
 *     throttle=0x24 0.power_mw=350000   numbers of one GPU (0., 1.), or of all where no number stands in front
 *     name=Emulated_NVIDIA_H100         an underscore stands for a space
 *     throttle_ns=500000000 mode=3      what each throttle counter stands at; the compute mode
 *     0.processes=2                     processes 4242, 4243, ... hold 1 GiB, 2 GiB, ... of it
 *     gpm=0 dram=12.5 sm=nan            whether it counts its activity; what a counter says, in per cent (MiB/s for tx, rx)
 *     0.nvmlDeviceGetSerial=3           what a function answers instead; field186=3 for a field value, gpm10=3 for a counter
 *
 * fake_nvml_reset() begins again with two healthy GPUs, fake_nvml_calls("nvmlDeviceGetName") counts calls.
 * Energy is the exact integral of power_mw since the machine started.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 }; /* types of a field's value */
enum { GPUS = 2, NAMES = 256, METRICS = 22 };

typedef struct {
    char name[64], uuid[48], bus[20];
    int lost, cc_major, cc_minor;
    uint64_t memory_bytes, power_mw, throttle, throttle_ns, processes, mode;
    int gpm;
    double counters[METRICS]; /* what each says now */
    double sums[METRICS], sampled_s; /* and has added up until it was last sampled */
} Gpu;

typedef struct {
    int gpu, code, calls; /* gpu -1: every GPU */
    char function[64];
} Answer;

typedef struct { char legacy[16]; uint32_t domain, bus, device, device_id, subsystem_id; char id[32]; } PciInfo;
typedef struct { uint64_t total, free, used; } Memory;
typedef struct { uint32_t gpu, memory; } Utilization;
typedef struct { uint64_t reference_us, violation; } ViolationTime;
typedef struct { uint32_t pid; uint64_t memory_bytes; uint32_t instance, compute_instance; } Process;
typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type;
    int32_t answer;
    union { double d; uint32_t ui; uint64_t ull; } value;
} FieldValue;
typedef struct { uint32_t version, supported; } GpmSupport;
typedef struct { const Gpu *gpu; double now_s, sums[METRICS]; } GpmSample; /* opaque to the caller: counters that only grow */
typedef struct {
    uint32_t metric;
    int32_t answer;
    double value;
    const char *short_name, *long_name, *unit;
} GpmMetric;
typedef struct { uint32_t version, count; GpmSample *first, *last; GpmMetric metrics[]; } GpmQuery;

static const char *const metric_names[METRICS] = {
    [2] = "sm", [3] = "occupancy", [4] = "integer", [5] = "tensor", [6] = "dfma", [7] = "hmma", [9] = "imma",
    [10] = "dram", [11] = "fp64", [12] = "fp32", [13] = "fp16", [20] = "tx", [21] = "rx",
};

static const Gpu healthy[GPUS] = {
    {"NVIDIA H100 80GB HBM3", "GPU-00000000-0000-4000-8000-000000000001",
     "00000000:17:00.0", 0, 9, 0, 85899345920, 650000, 0, 0, 0, 0, 1,
     {[2] = 99, [3] = 25, [4] = 12, [5] = 70, [6] = 1, [7] = 68, [9] = 2, [10] = 85, [11] = 5, [12] = 30, [13] = 4, [20] = 100, [21] = 200}, {0}, 0},
    {"NVIDIA GeForce RTX 4090", "GPU-00000000-0000-4000-8000-000000000002",
     "00000000:65:00.0", 0, 8, 9, 25757220864, 430000, 0, 0, 0, 0, 0, {0}, {0}, 0}, /* Ada has no GPM */
};
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER; /* samplers call from several threads */
static Gpu gpus[GPUS];
static Answer answers[NAMES];
static int answer_count, gpu_count = GPUS, init_answer, open_count, samples_held;

static Answer *find(int gpu, const char *function) { /* under the guard */
    for (int i = 0; i < answer_count; i++)
        if (answers[i].gpu == gpu && !strcmp(answers[i].function, function)) return &answers[i];
    if (answer_count == NAMES) abort();
    Answer *answer = &answers[answer_count++];
    answer->gpu = gpu;
    snprintf(answer->function, sizeof answer->function, "%s", function);
    return answer;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void count_up(Gpu *gpu) { /* under the guard */
    double at_s = now_s();
    if (gpu->sampled_s) for (int i = 0; i < METRICS; i++) gpu->sums[i] += gpu->counters[i] * (at_s - gpu->sampled_s);
    gpu->sampled_s = at_s;
}

static int metric_of(const char *key) {
    for (int i = 0; i < METRICS; i++)
        if (metric_names[i] && !strcmp(metric_names[i], key)) return i;
    return 0;
}

static void set_one(int gpu, const char *key, const char *value) {
    uint64_t number = strtoull(value, NULL, 0);
    Gpu *g = &gpus[gpu < 0 ? 0 : gpu];
    if (!strcmp(key, "gpus")) gpu_count = (int)number;
    else if (!strcmp(key, "init")) init_answer = (int)number;
    else if (!strncmp(key, "nvml", 4) || !strncmp(key, "field", 5) || (!strncmp(key, "gpm", 3) && key[3])) find(gpu, key)->code = (int)number;
    else if (gpu < 0) for (int i = 0; i < GPUS; i++) set_one(i, key, value);
    else if (!strcmp(key, "lost")) g->lost = (int)number;
    else if (!strcmp(key, "throttle")) g->throttle = number;
    else if (!strcmp(key, "power_mw")) g->power_mw = number;
    else if (!strcmp(key, "throttle_ns")) g->throttle_ns = number;
    else if (!strcmp(key, "processes")) g->processes = number;
    else if (!strcmp(key, "mode")) g->mode = number;
    else if (!strcmp(key, "gpm")) g->gpm = (int)number;
    else if (metric_of(key)) { count_up(g); g->counters[metric_of(key)] = strtod(value, NULL); }
    else if (!strcmp(key, "name")) {
        snprintf(g->name, sizeof g->name, "%s", value);
        for (char *c = g->name; *c; c++) if (*c == '_') *c = ' ';
    } else { fprintf(stderr, "fake_nvml: no setting '%s'\n", key); abort(); }
}

void fake_nvml_set(const char *story) {
    char *copy = strdup(story), *rest = copy, *word;
    while ((word = strtok_r(rest, " ", &rest))) {
        char *value = strchr(word, '=');
        if (!value) abort();
        *value++ = 0;
        int gpu = word[1] == '.' ? word[0] - '0' : -1;
        pthread_mutex_lock(&guard);
        set_one(gpu, gpu < 0 ? word : word + 2, value);
        pthread_mutex_unlock(&guard);
    }
    free(copy);
}

__attribute__((constructor)) void fake_nvml_reset(void) {
    memcpy(gpus, healthy, sizeof gpus);
    memset(answers, 0, sizeof answers);
    answer_count = init_answer = open_count = samples_held = 0;
    gpu_count = GPUS;
}

int fake_nvml_calls(const char *function) {
    pthread_mutex_lock(&guard);
    int calls = find(-1, function)->calls;
    pthread_mutex_unlock(&guard);
    return calls;
}

static int answer_of(const Gpu *gpu, const char *function) {
    pthread_mutex_lock(&guard);
    Answer *all = find(-1, function);
    int own = gpu ? find((int)(gpu - gpus), function)->code : OK;
    int code = !open_count ? UNINITIALIZED : gpu && gpu->lost ? LOST : own ? own : all->code;
    all->calls++;
    pthread_mutex_unlock(&guard);
    return code;
}

#define ASK(gpu) do { int code = answer_of(gpu, __func__); if (code) return code; } while (0)
#define TEXT(function, text) \
    int function(Gpu *gpu, char *out, unsigned size) { ASK(gpu); snprintf(out, size, "%s", text); return OK; }
#define NUMBER(function, type, number) int function(Gpu *gpu, type *out) { ASK(gpu); *out = (number); return OK; }
#define PAIR(function, one, two) \
    int function(Gpu *gpu, unsigned *a, unsigned *b) { ASK(gpu); *a = (one); *b = (two); return OK; }
#define BY_KIND(function, number) \
    int function(Gpu *gpu, unsigned kind, unsigned *out) { ASK(gpu); *out = (number); return OK; }

static uint64_t energy_mj(const Gpu *gpu) { return (uint64_t)(gpu->power_mw * now_s()); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (getenv("FAKE_NVML") && !open_count) fake_nvml_set(getenv("FAKE_NVML"));
    open_count += !init_answer;
    return init_answer;
}
int nvmlShutdown(void) { return open_count ? (open_count--, OK) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { ASK(NULL); snprintf(out, size, "580.95.05"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { ASK(NULL); *count = (unsigned)gpu_count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **out) {
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    ASK(&gpus[index]);
    *out = &gpus[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **out) {
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(uuid, gpus[i].uuid)) { ASK(&gpus[i]); *out = &gpus[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetPciInfo_v3(Gpu *gpu, PciInfo *out) {
    ASK(gpu);
    snprintf(out->id, sizeof out->id, "%s", gpu->bus);
    out->device_id = gpu == gpus ? 0x233010de : 0x268410de;
    return OK;
}
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *out) {
    ASK(gpu);
    *out = (Memory){gpu->memory_bytes, gpu->memory_bytes, 0};
    return OK;
}
int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *out) { ASK(gpu); *out = (Utilization){98, 41}; return OK; }
int nvmlDeviceGetTotalEccErrors(Gpu *gpu, unsigned kind, unsigned counter, uint64_t *out) {
    (void)counter;
    ASK(gpu);
    *out = kind ? 0 : 3;
    return OK;
}

/* As the real one: the call succeeds, and each field carries its own answer beside a value of 0. */
int nvmlDeviceGetFieldValues(Gpu *gpu, int count, FieldValue *fields) {
    ASK(gpu);
    for (int i = 0; i < count; i++) {
        char key[32];
        snprintf(key, sizeof key, "field%u", fields[i].field);
        fields[i].answer = answer_of(gpu, key);
        fields[i].value.ull = 0;
        fields[i].type = UNSIGNED_INT;
        if (fields[i].answer) continue;
        switch (fields[i].field) {
        case 82: fields[i].value.ui = 71; break;
        case 185: fields[i].value.ui = (uint32_t)gpu->power_mw - 1000; break; /* a mean */
        case 186: fields[i].value.ui = (uint32_t)gpu->power_mw; break;
        case 74: case 76: case 269: case 270: case 271:
            fields[i].type = UNSIGNED_LONG_LONG;
            fields[i].value.ull = gpu->throttle_ns + fields[i].field; /* tells the causes apart */
            break;
        default: fields[i].answer = NOT_SUPPORTED;
        }
    }
    return OK;
}
int nvmlDeviceGetViolationStatus(Gpu *gpu, unsigned policy, ViolationTime *out) {
    ASK(gpu);
    *out = (ViolationTime){0, gpu->throttle_ns + policy};
    return OK;
}
int nvmlDeviceGetRemappedRows(Gpu *gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    ASK(gpu);
    *corrected = 2;
    *uncorrected = *pending = *failed = 0;
    return OK;
}

/* As the real one: no room is an answer of its own, which says how much room it takes. */
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *out) {
    ASK(gpu);
    unsigned room = *count, running = (unsigned)gpu->processes;
    *count = running;
    if (running > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < running; i++) out[i] = (Process){4242 + i, (uint64_t)(i + 1) << 30, ~0u, ~0u};
    return OK;
}

/* Confidential computing: the first GPU signs a request of 37 bytes, which holds the nonce, and an answer; the second cannot. */
typedef struct { uint32_t has_cec, size, cec_size; uint8_t nonce[32], report[0x2000], cec[0x1000]; } Attestation;
typedef struct { uint32_t chain_size, attestation_size; uint8_t chain[0x1000], attestation[0x1400]; } Certificates;
int nvmlDeviceGetConfComputeGpuAttestationReport(Gpu *gpu, Attestation *out) {
    ASK(gpu);
    if (gpu != gpus) return NOT_SUPPORTED;
    memcpy(out->report, "\x11\xe0\x01\xff", 4);
    memcpy(out->report + 4, out->nonce, 32);
    memcpy(out->report + 37, "measurements", 12);
    out->size = 49;
    return OK;
}
int nvmlDeviceGetConfComputeGpuCertificate(Gpu *gpu, Certificates *out) {
    ASK(gpu);
    memcpy(out->attestation, "-----BEGIN", out->attestation_size = 10);
    return OK;
}

/* Activity counters. As the real ones: each metric carries its own answer, and a GPU without them takes no sample. */
int nvmlGpmQueryDeviceSupport(Gpu *gpu, GpmSupport *out) {
    ASK(gpu);
    if (out->version != 1) return INVALID_ARGUMENT;
    out->supported = (uint32_t)gpu->gpm;
    return OK;
}
int nvmlGpmSampleAlloc(GpmSample **out) {
    ASK(NULL);
    *out = calloc(1, sizeof **out);
    __atomic_add_fetch(&samples_held, 1, __ATOMIC_RELAXED);
    return OK;
}
int nvmlGpmSampleFree(GpmSample *sample) {
    ASK(NULL);
    free(sample);
    __atomic_sub_fetch(&samples_held, 1, __ATOMIC_RELAXED);
    return OK;
}
int fake_nvml_samples_held(void) { return __atomic_load_n(&samples_held, __ATOMIC_RELAXED); }
int nvmlGpmSampleGet(Gpu *gpu, GpmSample *sample) {
    ASK(gpu);
    if (!gpu->gpm) return NOT_SUPPORTED;
    pthread_mutex_lock(&guard);
    count_up(gpu);
    *sample = (GpmSample){.gpu = gpu, .now_s = gpu->sampled_s};
    memcpy(sample->sums, gpu->sums, sizeof sample->sums);
    pthread_mutex_unlock(&guard);
    return OK;
}
int nvmlGpmMetricsGet(GpmQuery *query) {
    ASK(NULL);
    const GpmSample *first = query->first, *last = query->last;
    if (query->version != 1 || !first->gpu || first->gpu != last->gpu) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < query->count; i++) {
        GpmMetric *metric = &query->metrics[i];
        char key[32];
        snprintf(key, sizeof key, "gpm%u", metric->metric);
        metric->answer = answer_of(first->gpu, key);
        if (!metric->answer && (metric->metric >= METRICS || !metric_names[metric->metric])) metric->answer = NOT_SUPPORTED;
        if (metric->answer) { metric->value = 0; continue; }
        metric->value = (last->sums[metric->metric] - first->sums[metric->metric]) / (last->now_s - first->now_s);
    }
    return OK;
}

TEXT(nvmlDeviceGetName, gpu->name)
TEXT(nvmlDeviceGetUUID, gpu->uuid)
TEXT(nvmlDeviceGetSerial, "1650123000001")
TEXT(nvmlDeviceGetVbiosVersion, "96.00.89.00.01")
PAIR(nvmlDeviceGetCudaComputeCapability, (unsigned)gpu->cc_major, (unsigned)gpu->cc_minor)
PAIR(nvmlDeviceGetEccMode, 1, 1)
PAIR(nvmlDeviceGetMigMode, 0, 0)
PAIR(nvmlDeviceGetPowerManagementLimitConstraints, 200000, 700000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, 600000)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, 700000)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned, gpu == gpus ? 132 * 128 : 128 * 128)
NUMBER(nvmlDeviceGetVirtualizationMode, unsigned, 0)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned, 5120)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, 1)
NUMBER(nvmlDeviceGetDisplayActive, unsigned, 0)
NUMBER(nvmlDeviceGetComputeMode, unsigned, (unsigned)gpu->mode)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, 5)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, 16)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, 4)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, 8)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, (unsigned)gpu->power_mw - 1000) /* differs from field 186: a mean */
NUMBER(nvmlDeviceGetTotalEnergyConsumption, uint64_t, energy_mj(gpu))
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, uint64_t, gpu->throttle)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, uint64_t, gpu->throttle)
BY_KIND(nvmlDeviceGetTemperature, 64 + kind)
BY_KIND(nvmlDeviceGetClockInfo, kind == 1 ? 1980 : 2619)
BY_KIND(nvmlDeviceGetMaxClockInfo, kind == 1 ? 1980 : 2619)
BY_KIND(nvmlDeviceGetPcieThroughput, kind ? 2000 : 1000)

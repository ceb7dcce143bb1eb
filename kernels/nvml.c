/* NVIDIA's management library, opened when it is asked for: builds and machines without it do without. */
#include "kernels/device.h"

#include <dlfcn.h>
#include <string.h>

/* As nvml.h has them; its values are fixed by its ABI. */
typedef void *nvml_device_t;
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEMORY = 2, NVML_TEMPERATURE_GPU = 0 };

struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_pci)(const char *, nvml_device_t *);
    int (*driver)(char *, unsigned);
    int (*clock)(nvml_device_t, int, unsigned *);
    int (*clock_max)(nvml_device_t, int, unsigned *);
    int (*power)(nvml_device_t, unsigned *);
    int (*temperature)(nvml_device_t, int, unsigned *);
    int (*link_generation)(nvml_device_t, unsigned *);
    int (*link_width)(nvml_device_t, unsigned *);
};

/* ISO C has no cast from a pointer to data to one to a function. */
static bool bind(void *library, const char *name, void *function_out)
{
    void *symbol = dlsym(library, name);
    memcpy(function_out, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool nvml_open(struct nvml *n)
{
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (n->library == NULL)
        return false;
    bool all = bind(n->library, "nvmlInit_v2", &n->init) &&
               bind(n->library, "nvmlShutdown", &n->shutdown) &&
               bind(n->library, "nvmlDeviceGetHandleByPciBusId_v2", &n->by_pci) &&
               bind(n->library, "nvmlSystemGetDriverVersion", &n->driver) &&
               bind(n->library, "nvmlDeviceGetClockInfo", &n->clock) &&
               bind(n->library, "nvmlDeviceGetMaxClockInfo", &n->clock_max) &&
               bind(n->library, "nvmlDeviceGetPowerUsage", &n->power) &&
               bind(n->library, "nvmlDeviceGetTemperature", &n->temperature) &&
               bind(n->library, "nvmlDeviceGetCurrPcieLinkGeneration", &n->link_generation) &&
               bind(n->library, "nvmlDeviceGetCurrPcieLinkWidth", &n->link_width);
    if (all && n->init() == 0)
        return true;
    dlclose(n->library);
    return false;
}

/* What a device does not tell stays 0. */
static void facts_read(const struct nvml *n, nvml_device_t device, struct hri_nvml_facts *f)
{
    unsigned milliwatts = 0;
    (void)n->driver(f->driver, sizeof f->driver);
    (void)n->clock(device, NVML_CLOCK_SM, &f->sm_mhz);
    (void)n->clock_max(device, NVML_CLOCK_SM, &f->sm_mhz_max);
    (void)n->clock(device, NVML_CLOCK_MEMORY, &f->memory_mhz);
    (void)n->clock_max(device, NVML_CLOCK_MEMORY, &f->memory_mhz_max);
    (void)n->power(device, &milliwatts);
    (void)n->temperature(device, NVML_TEMPERATURE_GPU, &f->temperature_c);
    (void)n->link_generation(device, &f->pcie_generation);
    (void)n->link_width(device, &f->pcie_lanes);
    f->power_w = milliwatts / 1000;
}

bool hri_nvml_read(const char *pci, struct hri_nvml_facts *facts_out)
{
    struct nvml n;
    nvml_device_t device = NULL;
    if (pci[0] == '\0' || !nvml_open(&n))
        return false;
    struct hri_nvml_facts facts = {0};
    bool found = n.by_pci(pci, &device) == 0;
    if (found) {
        facts_read(&n, device, &facts);
        *facts_out = facts;
    }
    (void)n.shutdown();
    dlclose(n.library);
    return found;
}

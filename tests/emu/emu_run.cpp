/* The emulator's machinery, once per program. */
#include "kernels/emu/emu_run.h"
